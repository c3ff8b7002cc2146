"""Which parts a UNet has, one behind the other, and where its particles split off."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from latentddm.networks.blocks import Block, Downsample, Input, Keep, Restart, Upsample


@dataclass(kw_only=True)
class Plan:
    """Lays the parts of a UNet one behind the other, and knows where the particles split off."""

    latent_channels: int
    widths: list[int]  # of the levels, the finest first
    patch: int
    attention_levels: tuple[int, ...]
    pointwise_levels: tuple[int, ...]
    head_channels: int
    embedding: int  # width of the time's embedding
    dropout: float
    expansion: str
    parts: list[nn.Module] = field(default_factory=list, init=False)
    skips: list[list[int]] = field(default_factory=list, init=False)  # kept widths, by level
    places: list[str] = field(default_factory=list, init=False)
    split: int | None = field(default=None, init=False)  # parts before the particles split off

    def __post_init__(self) -> None:
        self.width = self.widths[0]  # of the current map

    def go_down(self, blocks: int, kept: int) -> None:
        """Input, blocks, downsampling; each level keeps its last `kept` maps for the way up."""
        self._place("input")
        for level, width in enumerate(self.widths):
            keep: list[Keep | None] = [
                "skips" if index > blocks - kept else None for index in range(blocks + 1)
            ]
            if level == 0:
                first = Input(
                    self.latent_channels,
                    self.width,
                    with_noise=self.split is not None,
                    patch=self.patch,
                    pointwise=0 in self.pointwise_levels,
                    keep=keep[0],
                )
                self.parts.append(first)
            else:
                self.parts.append(Downsample(self.width, keep[0]))
            self.skips.append([self.width] if keep[0] else [])
            for index in range(1, blocks + 1):
                self._block(width, level, keep=keep[index])
                self.skips[level] += [width] if keep[index] else []

    def turn(self) -> None:
        """Two blocks at the coarsest level."""
        self._place("middle")
        for _ in range(2):
            self._block(self.widths[-1], len(self.widths) - 1)

    def go_up(self, blocks: int) -> None:
        """Blocks that read the kept maps, the last one first, and upsampling."""
        for level in reversed(range(len(self.widths))):
            for index in range(blocks):
                self._place(f"up{sum(name.startswith('up') for name in self.places)}")
                skip = self.skips[level].pop() if self.skips[level] else 0
                last = self.expansion == "output" and index == blocks - 1
                self._block(self.widths[level], level, skip, "features" if last else None)
            if level > 0:
                self.parts.append(Upsample())

    def go_up_again(self, blocks: int, share: float) -> None:
        """The particles' own way up, of `share` of the widths."""
        self._place("output")
        self.parts.append(Restart())
        self.width = self.widths[-1]
        for level in reversed(range(len(self.widths))):
            width = 8 * max(1, round(share * self.widths[level] / 8))  # groups of 8 channels
            coarsest = level == len(self.widths) - 1
            for index in range(blocks):
                reads_trunk = index == 0 and not coarsest
                self._block(width, level, self.widths[level] if reads_trunk else 0)
            if level > 0:
                self.parts.append(Upsample())

    def end(self) -> None:
        """With "none" all parts are the trunk; ValueError for a place that was not passed."""
        if self.expansion == "none":
            self.split = len(self.parts)
        if self.split is None:
            raise ValueError(
                f"expansion must be one of {', '.join([*self.places, 'output', 'none'])}, "
                f"not {self.expansion!r}"
            )

    def _place(self, name: str) -> None:
        self.places.append(name)
        if name == self.expansion:
            self.split = len(self.parts)

    def _block(self, width: int, level: int, skip: int = 0, keep: Keep | None = None) -> None:
        hears_noise = self.split is not None
        heads = width // self.head_channels if level in self.attention_levels else 0
        while heads and width % heads:
            heads -= 1
        block = Block(
            self.width,
            width,
            self.embedding,
            skip_width=skip,
            noise_channels=self.latent_channels if hears_noise else 0,
            noise_stride=self.patch * 2**level,
            heads=heads,
            pointwise=level in self.pointwise_levels,
            dropout=self.dropout,
            keep=keep,
        )
        self.parts.append(block)
        self.width = width
