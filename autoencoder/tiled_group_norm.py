"""Group norms of tiles with the statistics of the whole image.

The statistics of a norm depend on those of all norms before it, so they are measured one norm after
the other, each in a pass over all tiles that ends at that norm: n norms cost about n / 2 further
decodings. Exact if the overlap of the tiles covers the receptive field of the layers between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn


@dataclass(frozen=True)
class Span:
    """One tile along one axis: cells start to stop are decoded, own_start to own_stop are its own.

    Every cell is the own cell of exactly one tile.
    """

    start: int
    stop: int
    own_start: int
    own_stop: int


@contextmanager
def whole_image_norms(
    norms: list[nn.GroupNorm],
    decode: Callable[[torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    rows: list[Span],
    columns: list[Span],
) -> Iterator[None]:
    """A context in which `decode` of a tile of `features` normalises as for all of them.

    norms: the group norms of `decode` in order of execution.
    """
    tiled = len(rows) * len(columns) > 1
    try:
        for norm in norms if tiled else ():
            statistics = _Statistics()
            for row in rows:
                for column in columns:
                    norm.forward = partial(_measure, norm, statistics, row, column)  # type: ignore[method-assign]
                    part = features[:, :, row.start : row.stop, column.start : column.stop]
                    try:
                        decode(part)
                    except _NormReached:
                        continue
            norm.forward = partial(_normalise, norm, *statistics.finished(norm))  # type: ignore[method-assign]
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)  # restores the method of the class


class _NormReached(Exception):
    """The end of a pass, at the norm in measurement."""


class _Statistics:
    """Mean and variance per image and group, [B,groups], merged from tiles (Chan et al.)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())  # summed squared deviations from the mean

    def add(self, values: torch.Tensor) -> None:
        """Add the values of one tile, [B,groups,n]."""
        variance, mean = torch.var_mean(values.float(), dim=2, correction=0)
        added, total = values.shape[2], self.count + values.shape[2]
        step = mean.double().cpu() - self.mean
        self.squares = (
            self.squares
            + variance.double().cpu() * added
            + step.square() * (self.count * added / total)
        )
        self.mean = self.mean + step * (added / total)
        self.count = total

    def finished(self, norm: nn.GroupNorm) -> tuple[torch.Tensor, torch.Tensor]:
        """The gain and the offset of each channel, float32 [B,C,1,1] each."""
        reciprocal = (self.squares / self.count + norm.eps).rsqrt()
        width = norm.num_channels // norm.num_groups
        weight, bias = norm.weight.detach().double().cpu(), norm.bias.detach().double().cpu()
        gain = reciprocal.repeat_interleave(width, dim=1) * weight
        offset = bias - self.mean.repeat_interleave(width, dim=1) * gain
        device = norm.weight.device
        return gain.float().to(device)[..., None, None], offset.float().to(device)[..., None, None]


def _measure(
    norm: nn.GroupNorm, statistics: _Statistics, row: Span, column: Span, values: torch.Tensor
) -> torch.Tensor:
    own = values[:, :, _own(row, values.shape[2]), _own(column, values.shape[3])]
    statistics.add(own.unflatten(1, (norm.num_groups, -1)).flatten(2))
    raise _NormReached


def _own(span: Span, size: int) -> slice:
    """The tile's own positions in a layer in which it is `size` positions long."""
    scale = size // (span.stop - span.start)
    return slice((span.own_start - span.start) * scale, (span.own_stop - span.start) * scale)


def _normalise(
    norm: nn.GroupNorm, gain: torch.Tensor, offset: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    return torch.addcmul(offset, values, gain).to(values.dtype)
