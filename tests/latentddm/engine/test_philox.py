"""Philox 4x32-10: the published numbers, their statistics, and their independence of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from latentddm.engine import philox as module
from latentddm.engine.philox import (
    WORD,
    draw,
    normal_numbers,
    philox,
    random_words,
    uniform_numbers,
)

# Random123's tests/kat_vectors: counter, key, result.
KNOWN = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def numbers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize("array", [torch.tensor, np.array], ids=["torch", "numpy"])
@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_the_words_are_those_that_the_inventors_publish(
    counter: str, key: str, result: str, array: Callable[[list[int]], Tensor]
) -> None:
    first, second = numbers(key)
    words = philox([array([word]) for word in numbers(counter)], (first, second))
    assert [int(word[0]) & WORD for word in words] == numbers(result)


def one_by_one(block: int, position: int, stream: int, key: tuple[int, int]) -> list[int]:
    """The rounds in Python's integers, written independently."""
    c = [block, position >> 32, position & WORD, stream]
    k = list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 1 << 32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % (1 << 32), (k[1] + 0xBB67AE85) % (1 << 32)]
    return c


def test_a_word_is_that_of_its_block_its_position_and_its_stream() -> None:
    """Far positions too: a training of more than 2^32 images repeats none."""
    key, first, stream = (0xFEDCBA98, 0x76543210), 5, 3
    positions = torch.tensor([0, 1, 2**31 + 7, 2**32, 2**40 + 1])
    words = random_words(key, positions, blocks=3, first=first, stream=stream)
    for row, position in enumerate(positions.tolist()):
        for block in range(3):
            expected = one_by_one(first + block, position, stream, key)
            assert [int(word) & WORD for word in words[row, :, block]] == expected


def test_tensors_have_the_words_of_arrays() -> None:
    """A device computes with torch what a CPU computes with numpy."""
    counter = [torch.arange(50), torch.arange(3)[:, None], torch.arange(3)[:, None] + WORD - 1]
    counter.append(torch.tensor([[7]]))
    key = (0xFEDCBA98, 0x76543210)
    arrays = philox([word.numpy() for word in counter], key)
    for tensor, array in zip(philox(counter, key), arrays, strict=True):
        assert torch.equal(tensor & WORD, torch.from_numpy(array) & WORD)


@pytest.mark.parametrize("blocks", [1, 3, 13, 100])
def test_numbers_are_the_same_to_the_bit_in_any_part_of_a_batch(blocks: int) -> None:
    """The vector code of a logarithm must not see where in the batch a sample is."""
    positions = torch.arange(61) + 77
    for convert in (normal_numbers, uniform_numbers):
        whole = draw(convert, (5, 6), positions, blocks)
        for first, last in ((0, 1), (1, 2), (3, 10), (7, 61), (0, 30), (60, 61)):
            assert torch.equal(
                draw(convert, (5, 6), positions[first:last], blocks), whole[first:last]
            )


def test_the_parts_that_fit_the_cache_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = torch.arange(9)
    whole = draw(normal_numbers, (5, 6), positions, 20)
    for at_once in (1, 50):
        monkeypatch.setattr(module, "COUNTERS_AT_ONCE", at_once)
        assert torch.equal(draw(normal_numbers, (5, 6), positions, 20), whole)


def many(convert: object = normal_numbers, key: tuple[int, int] = (1, 2)) -> Tensor:
    """[512, 2048], about a million numbers."""
    return draw(convert, key, torch.arange(512), 512)  # type: ignore[arg-type]


def test_normal_numbers_are_standard_normal_to_the_tails() -> None:
    z = many().double().flatten()
    count = len(z)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        error = math.sqrt((_moment(2 * power) - moment**2) / count)
        assert abs(z.pow(power).mean() - moment) < 5 * error
    for bound in (1.0, 2.0, 3.0, 4.0):
        expected = math.erfc(bound / math.sqrt(2))
        found = (z.abs() > bound).double().mean()
        assert abs(found - expected) < 5 * math.sqrt(expected / count)
    # Kolmogorov and Smirnov: sqrt(n) D is above 1.95 once in a thousand times.
    uniform = torch.special.ndtr(z.sort().values)
    steps = (torch.arange(count) + 0.5) / count
    assert math.sqrt(count) * (uniform - steps).abs().max() < 1.95


def _moment(power: int) -> int:
    """E z^power of a standard normal z, for an even power: (power - 1)!!."""
    return math.prod(range(power - 1, 0, -2))


def test_uniform_numbers_are_uniform_and_below_one() -> None:
    u = many(uniform_numbers).double().flatten()
    assert u.min() >= 0
    assert u.max() < 1
    assert torch.equal(u * 2**24, (u * 2**24).round())
    steps = (torch.arange(len(u)) + 0.5) / len(u)
    assert math.sqrt(len(u)) * (u.sort().values - steps).abs().max() < 1.95
    extremes = torch.tensor([[-(2**31), 2**31 - 1, 0, -1]], dtype=torch.int32)
    assert uniform_numbers(extremes).tolist() == [[0.0, 1 - 2**-24, 0.5, 0.5 - 2**-24]]


def test_no_word_gives_a_normal_number_that_is_not_finite() -> None:
    extremes = torch.tensor([0, 1, -1, 2**31 - 1, -(2**31)], dtype=torch.int32)
    words = torch.cartesian_prod(extremes, extremes).T[:, None]  # [2, 1, 25]: of r and of a
    z = normal_numbers(words.repeat_interleave(2, dim=1).reshape(1, 4, -1))
    assert torch.isfinite(z).all()
    assert z.abs().max() == pytest.approx(math.sqrt(64 * math.log(2)), rel=1e-5)


def test_numbers_of_other_positions_places_and_purposes_are_uncorrelated() -> None:
    z, other = many(), many(key=(1, 3))
    bound = 5 / math.sqrt(z.numel())
    assert abs((z * other).mean()) < bound
    for shift in (1, 2, 64):  # of samples, and of places within a sample, among them r's own pair
        assert abs((z[shift:] * z[:-shift]).mean()) < bound * 1.1
        assert abs((z[:, shift:] * z[:, :-shift]).mean()) < bound * 1.1
    for shift in (512, 1024):  # cosine and sine of one angle are 2 x 512 apart
        first, second = z[:, shift:], z[:, :-shift]
        assert abs((first * second).mean()) < bound * 1.5
        assert abs((first.square() * second.square()).mean() - 1) < 8 * bound


class Launches(TorchDispatchMode):
    """Counts the operations of torch that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        schema = function._schema
        moves_only = all(
            result.alias_info and not result.alias_info.is_write for result in schema.returns
        )
        self.count += not moves_only
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("convert", [normal_numbers, uniform_numbers])
def test_a_device_is_asked_for_the_same_few_operations_whatever_the_batch(
    convert: Callable[[Tensor], Tensor],
) -> None:
    """On a device other than a CPU; here one without memory, which computes shapes alone."""
    counts = []
    for images, blocks in ((2, 2), (64, 512), (1024, 4096)):
        with Launches() as launches:
            drawn = draw(convert, (1, 2), torch.arange(images, device="meta"), blocks)
        assert drawn.shape == (images, 4 * blocks)
        counts.append(launches.count)
    assert len(set(counts)) == 1
    assert counts[0] <= 140


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_words_and_the_same_numbers_to_rounding() -> None:
    positions = torch.arange(5) + 2**33
    words = random_words((8, 9), positions, 50, 0, 1)
    assert torch.equal(random_words((8, 9), positions.cuda(), 50, 0, 1).cpu(), words)
    z = draw(normal_numbers, (8, 9), positions.cuda(), 50).cpu()
    torch.testing.assert_close(z, draw(normal_numbers, (8, 9), positions, 50), rtol=1e-5, atol=1e-5)
