"""Philox 4x32-10: random numbers as a function of a key and a counter, in integer operations.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The numbers
of a sample depend on the key and on the sample's position alone: a process draws those of its own
samples, and any number of processes draws the same. Words are equal on every device; floating
numbers made from them agree to the rounding of the device's logarithm, sine and cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85  # from round to round: golden ratio, sqrt(3) - 1
ROUNDS = 10
WORD = 0xFFFFFFFF  # the low 32 bits
COUNTERS_AT_ONCE = 1 << 17  # on a CPU: about 8 MB of numbers in work

Key = tuple[int, int]  # two words


def philox(counter: Sequence[Tensor], key: Key) -> list[Tensor]:
    """Four random words for each counter of four words, int64; their shapes broadcast.

    The low 32 bits of a result are the word; the high ones are arbitrary.
    """
    words = list(counter)
    for number in range(2):  # of few numbers yet: where counters share words, so do these
        words = _round(words, _round_key(key, number))
    words = [word.contiguous() for word in torch.broadcast_tensors(*words)]
    spare = [torch.empty_like(word) for word in words[:2]]
    for number in range(2, ROUNDS):
        words, spare = _round_in_place(words, _round_key(key, number), spare)
    return words


def _round_key(key: Key, number: int) -> Key:
    """The key of round `number`: k + number * step, in 32 bits."""
    first, second = (
        (word + number * step) & WORD for word, step in zip(key, KEY_STEPS, strict=True)
    )
    return first, second


def _round(words: Sequence[Tensor], key: Key) -> list[Tensor]:
    """(high(M1 c2) ^ c1 ^ k0, low(M1 c2), high(M0 c0) ^ c3 ^ k1, low(M0 c0))."""
    c0, c1, c2, c3 = words
    first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
    return [
        ((second >> 32) ^ c1 ^ key[0]) & WORD,
        second,
        ((first >> 32) ^ c3 ^ key[1]) & WORD,
        first,
    ]


def _round_in_place(
    words: Sequence[Tensor], key: Key, spare: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """`_round` in the memory of `words` and of two spare tensors: half the time on a CPU."""
    c0, c1, c2, c3 = words
    first = torch.mul(c0, MULTIPLIERS[0], out=spare[0])
    second = torch.mul(c2, MULTIPLIERS[1], out=spare[1])
    for product, mixed, word, part in ((second, c0, c1, key[0]), (first, c2, c3, key[1])):
        torch.bitwise_right_shift(product, 32, out=mixed)
        mixed.bitwise_xor_(word).bitwise_xor_(part).bitwise_and_(WORD)
    return [c0, second, c2, first], [c1, c3]


def random_words(key: Key, positions: Tensor, blocks: int, first: int, stream: int) -> Tensor:
    """Four words of each block of each position: int32 [R, 4, blocks].

    positions: int64 [R], below 2^63. first: number of the first block. The counter is (block, high
    word of the position, low word, stream).
    """
    block = torch.arange(first, first + blocks, device=positions.device)
    column = positions[:, None]
    streams = torch.full_like(column[:1], stream)
    words = philox((block, column >> 32, column & WORD, streams), key)
    out = torch.empty(len(positions), 4, blocks, dtype=torch.int32, device=positions.device)
    for index, word in enumerate(words):
        out[:, index] = word  # the low 32 bits
    return out


def uniform_numbers(words: Tensor) -> Tensor:
    """Multiples of 2^-24 in [0, 1), float32, from words int32."""
    return (words >> 8).float().mul_(2.0**-24).add_(0.5)


def normal_numbers(words: Tensor) -> Tensor:
    """Standard normal numbers float32 [R, 4, n] from words int32 [R, 4, n], by Box and Muller.

    r = sqrt(-2 ln u), (r cos a, r sin a); u = |w| 2^-31 + 2^-32 in (0, 1], a = pi w' 2^-31. The
    largest is 6.66.
    """
    radius = words[:, :2].float().abs_().mul_(2.0**-31).add_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = words[:, 2:].float().mul_(math.pi * 2.0**-31)
    out = torch.empty(words.shape, device=words.device)
    torch.mul(radius, angle.cos(), out=out[:, :2])
    torch.mul(radius, angle.sin_(), out=out[:, 2:])
    return out


def half_words(words: Tensor) -> Tensor:
    """Two numbers of 16 bits from each word: int16 [R, 4, 2 n] from int32 [R, 4, n]."""
    return words.view(torch.int16)


def draw(
    convert: Callable[[Tensor], Tensor],
    key: Key,
    positions: Tensor,
    blocks: int,
    first: int = 0,
    stream: int = 0,
) -> Tensor:
    """The numbers that `convert` makes of each position's words, [R, numbers of all blocks].

    On a CPU in parts, whose temporary tensors stay in the cache.
    """
    on_cpu = positions.device.type == "cpu"
    rows = max(1, COUNTERS_AT_ONCE // blocks) if on_cpu else max(1, len(positions))
    parts = [
        convert(random_words(key, part, blocks, first, stream)).flatten(1)
        for part in positions.split(rows)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
