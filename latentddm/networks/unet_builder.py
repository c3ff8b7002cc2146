"""The settings of a UNet, and the sequence of parts that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from latentddm.networks.blocks import Block, Downsample, Input, Keep, Restart, Upsample
from latentddm.networks.config import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class UNetConfig(NetworkConfig):
    """The settings of a UNet.

    expansion: where the draws split off; xi enters every block from there on. "input": at once,
    xi beside x_t in the first convolution (the paper's form). "middle", "up0", "up1", ...: before
    the middle, or before a block of the way up (counted from the coarsest). "output": after the
    whole UNet; each draw then goes up a second, narrow path of `draw_blocks` blocks a level, which
    reads the trunk's map of that level.

    patch_size: edge of the patch of latents that is one position of the first level. A level whose
    maps have one position belongs in `pointwise_levels`: all of it is matrix products, and each
    depends on all of the latents. That is for latents of few numbers.
    """

    kind: Literal["unet"] = "unet"
    channels: int = 64  # width of the first level
    multipliers: tuple[int, ...] = (1, 2, 2)  # width of each level, in `channels`
    blocks: int = 2  # residual blocks at each level of the way down
    up_blocks: int | None = None  # and of the way up; None: one more
    patch_size: int = 1
    attention_levels: tuple[int, ...] = (1, 2)  # levels with self-attention, 0 the finest
    pointwise_levels: tuple[int, ...] = ()  # levels whose convolutions are 1 x 1
    head_channels: int = 32
    embedding_width: int | None = None  # of the time; None: four times `channels`
    expansion: str = "input"
    draw_blocks: int = 1  # at each level of the second way up of "output"
    draw_width: float = 0.5  # of its levels, as a share of the trunk's
    global_noise: bool = False  # xi enters beside the time as well, averaged over the patches

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels", "blocks", "patch_size", "head_channels", "draw_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"multipliers must be at least one number of 1 or more, not {self.multipliers}"
            )
        fewest = 1 if self.expansion == "output" else 0
        if self.blocks_up < fewest:
            raise ValueError(
                f"up_blocks must be at least {fewest} with expansion {self.expansion}, not "
                f"{self.up_blocks}"
            )
        for level, multiplier in enumerate(self.multipliers):
            width = self.channels * multiplier
            if level in self.attention_levels and width < self.head_channels:
                raise ValueError(
                    f"level {level} of attention_levels has {width} channels, fewer than "
                    f"head_channels ({self.head_channels}); make that smaller, or leave the level "
                    "out"
                )
        if self.expansion not in self.expansions:
            raise ValueError(
                f"expansion must be one of {', '.join(self.expansions)}, not {self.expansion!r}"
            )

    @property
    def blocks_up(self) -> int:
        """Residual blocks at each level of the way up."""
        return self.blocks + 1 if self.up_blocks is None else self.up_blocks

    @property
    def expansions(self) -> list[str]:
        """The places where the draws can split off, in the order of the parts."""
        up = [f"up{index}" for index in range(len(self.multipliers) * self.blocks_up)]
        return ["input", "middle", *up, "output"]


class UNetBuilder:
    """Makes the parts of a UNet in sequence, and marks where the draws split off.

    parts[:split] are the trunk; width: channels of the last part's map.
    """

    def __init__(
        self, config: UNetConfig, input_channels: int, latent_channels: int, embedding: int
    ) -> None:
        self.config, self.embedding = config, embedding
        self.input_channels, self.latent_channels = input_channels, latent_channels
        self.widths = [config.channels * multiplier for multiplier in config.multipliers]
        self.parts: list[nn.Module] = []
        self.split: int | None = None
        self.width = self.widths[0]
        self._skips: list[list[int]] = []  # widths of the kept maps, by level
        self._expansions = iter(config.expansions)

    def go_down(self) -> None:
        """Input, blocks, downsampling; each level keeps its last maps for the way up."""
        self._pass_expansion()
        blocks, kept = self.config.blocks, self.config.blocks_up
        for level, width in enumerate(self.widths):
            keep: list[Keep | None] = [
                "skips" if index > blocks - kept else None for index in range(blocks + 1)
            ]
            if level == 0:
                first = Input(
                    self.input_channels,
                    self.width,
                    noise_channels=self.latent_channels if self.split is not None else 0,
                    patch=self.config.patch_size,
                    pointwise=0 in self.config.pointwise_levels,
                    keep=keep[0],
                )
                self.parts.append(first)
            else:
                self.parts.append(Downsample(self.width, keep[0]))
            self._skips.append([self.width] if keep[0] else [])
            for index in range(1, blocks + 1):
                self._block(width, level, keep=keep[index])
                self._skips[level] += [width] if keep[index] else []

    def turn(self) -> None:
        """Two blocks at the coarsest level."""
        self._pass_expansion()
        for _ in range(2):
            self._block(self.widths[-1], len(self.widths) - 1)

    def go_up(self) -> None:
        """Blocks that read the kept maps, the last one first, and upsampling."""
        blocks = self.config.blocks_up
        for level in reversed(range(len(self.widths))):
            for index in range(blocks):
                self._pass_expansion()
                skip = self._skips[level].pop() if self._skips[level] else 0
                last = self.config.expansion == "output" and index == blocks - 1
                self._block(self.widths[level], level, skip, "features" if last else None)
            if level > 0:
                self.parts.append(Upsample())

    def go_up_again(self) -> None:
        """The second, narrow way up of the draws, for the expansion "output"."""
        self._pass_expansion()
        self.parts.append(Restart())
        self.width = self.widths[-1]
        for level in reversed(range(len(self.widths))):
            # groups of 8 channels
            width = 8 * max(1, round(self.config.draw_width * self.widths[level] / 8))
            coarsest = level == len(self.widths) - 1
            for index in range(self.config.draw_blocks):
                reads_trunk = index == 0 and not coarsest
                self._block(width, level, self.widths[level] if reads_trunk else 0)
            if level > 0:
                self.parts.append(Upsample())

    def _pass_expansion(self) -> None:
        """Mark the split if the next place is the one where the draws split off."""
        if next(self._expansions) == self.config.expansion:
            self.split = len(self.parts)

    def _block(self, width: int, level: int, skip: int = 0, keep: Keep | None = None) -> None:
        reads_noise = self.split is not None
        heads = width // self.config.head_channels if level in self.config.attention_levels else 0
        while heads and width % heads:
            heads -= 1
        block = Block(
            self.width,
            width,
            self.embedding,
            skip_width=skip,
            noise_channels=self.latent_channels if reads_noise else 0,
            noise_stride=self.config.patch_size * 2**level,
            heads=heads,
            pointwise=level in self.config.pointwise_levels,
            dropout=self.config.dropout,
            keep=keep,
        )
        self.parts.append(block)
        self.width = width
