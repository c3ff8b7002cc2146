"""Random numbers are functions of (seed, purpose, position)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from latentddm.engine.seeding import (
    BatchDraws,
    BatchMasks,
    derive_seed,
    numpy_generator,
    torch_generator,
)


def test_equal_purposes_give_equal_numbers_and_others_do_not() -> None:
    first = torch.randn(4, generator=torch_generator(1, "train", 64))
    again = torch.randn(4, generator=torch_generator(1, "train", 64))
    assert torch.equal(first, again)
    seeds = {derive_seed(1, "a"), derive_seed(2, "a"), derive_seed(1, "b"), derive_seed(1, "a", 0)}
    assert len(seeds) == 4


def test_a_number_and_a_text_are_different_purposes() -> None:
    assert derive_seed(0, 1) != derive_seed(0, "1")
    assert derive_seed(0, "a", "b") != derive_seed(0, "a/b")


def test_the_seed_is_fixed_across_versions() -> None:
    # A change here would break the promise that an old run resumes bit-equal.
    assert derive_seed(0, "train", 0) == 2789555224199084667
    assert numpy_generator(7, "x").integers(1 << 30) == numpy_generator(7, "x").integers(1 << 30)


@dataclass(frozen=True)
class Processes:
    """This process's place among others, as accelerate states it."""

    process_index: int
    num_processes: int
    device: str = "cpu"


Draw = Callable[[BatchDraws], torch.Tensor]


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "draw",
    [
        lambda random: random.normal(),
        lambda random: random.normal(3, 5),
        lambda random: random.uniform(7),
        lambda random: torch.cat([random.normal(4), random.uniform(2), random.normal(4)], dim=1),
    ],
    ids=["scalars", "arrays", "uniform", "several calls"],
)
def test_any_number_of_processes_sees_the_same_numbers(draw: Draw, count: int) -> None:
    def share(rank: int, of: int) -> torch.Tensor:
        return draw(BatchDraws(3, "train", 640, 8 // of, Processes(rank, of)))  # type: ignore[arg-type]

    whole = share(0, 1)
    assert len(whole.unique(dim=0)) == 8  # no two images of a batch have the same
    assert torch.equal(torch.cat([share(rank, count) for rank in range(count)]), whole)


def test_the_numbers_of_an_image_depend_on_its_position_and_not_on_the_batch() -> None:
    alone = Processes(0, 1)
    first = BatchDraws(3, "train", 640, 8, alone).normal(5)  # type: ignore[arg-type]
    later = BatchDraws(3, "train", 644, 8, alone).normal(5)  # type: ignore[arg-type]
    assert torch.equal(first[4:], later[:4])


def test_calls_purposes_and_seeds_draw_numbers_of_their_own() -> None:
    def drawn(seed: int, purpose: str) -> list[torch.Tensor]:
        random = BatchDraws(seed, purpose, 0, 4, Processes(0, 1))  # type: ignore[arg-type]
        return [random.normal(3), random.normal(3)]

    found = torch.stack([*drawn(0, "a"), *drawn(0, "b"), *drawn(1, "a")])
    assert len(found.flatten().unique()) == found.numel()


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_masks_drop_their_share_and_keep_the_mean(probability: float) -> None:
    masks = BatchMasks(0, 0, 64, Processes(0, 1))  # type: ignore[arg-type]
    mask = masks.draw(slice(0, 64), 0, (33, 101), probability)
    dropped = (mask == 0).double()
    error = math.sqrt(probability * (1 - probability) / mask.numel())
    assert abs(dropped.mean() - probability) < 5 * error + 2**-17
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-4)
    other = masks.draw(slice(0, 64), 1, (33, 101), probability)
    both = ((mask == 0) & (other == 0)).double().mean()  # layers are independent
    assert abs(both - probability**2) < 5 * probability / math.sqrt(mask.numel())


def test_masks_are_those_of_the_images_in_any_part_and_on_any_process() -> None:
    whole = BatchMasks(0, 640, 8, Processes(0, 1)).draw(slice(0, 8), 2, (9,), 0.5)  # type: ignore[arg-type]
    assert len(whole.unique(dim=0)) > 6
    second = BatchMasks(0, 640, 4, Processes(1, 2))  # type: ignore[arg-type]
    assert torch.equal(second.draw(slice(1, 3), 2, (9,), 0.5), whole[5:7])
