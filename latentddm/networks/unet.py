"""The generator: a UNet that turns (x_t, t, xi) into a draw of x_0.

A diffusers model: `save_pretrained`, `from_pretrained`, safetensors. It is one sequence of parts;
those before the place where the m particles split off run once for each x_t (the trunk), the rest
once for each particle. The parts are in `blocks`, their order is laid down in `plan`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentddm.diffusion.process import Prediction, to_x0
from latentddm.diffusion.schedules import FlowSchedule
from latentddm.networks.blocks import Output, State
from latentddm.networks.layers import TimeEmbedding, repeat_rows
from latentddm.networks.unet_builder import Plan

_FIRST_CONVOLUTION = "0.convolution.weight"
_MAY_DIFFER = {"expansion", "draw_blocks", "draw_width", "dropout"}  # in `start_from`


class UNet(ModelMixin, ConfigMixin):
    """Draws x_0 ~ p(x_0 | x_t) for xi ~ N(0, I); without xi, a mean denoiser.

    expansion: where the particles split off; xi enters every block from there on. "input": at
    once, and xi is concatenated to x_t too (the paper's form). "middle", "up0", "up1", ...: before
    the middle, or before a block of the way up (counted from the coarsest). "output": after the
    whole UNet; each particle then goes up a second, narrow path of `draw_blocks` blocks a
    level, which reads what the trunk has made at that level. "none": nowhere; xi is not read, and
    the network is a mean denoiser, for plain diffusion. ValueError for another place.

    patch_size: so many positions, an edge, are one to the network; a level whose maps then have
    one position wants to be in `pointwise_levels`: all of it is matrix products, and each sees
    all of the latents. That is for latents of few numbers.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)  # what a sharded training gathers at a time

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        channels: int = 64,  # width of the first level
        multipliers: tuple[int, ...] = (1, 2, 2),  # width of each level, in `channels`
        blocks: int = 2,  # residual blocks at each level of the way down
        up_blocks: int | None = None,  # and of the way up; None: one more
        patch_size: int = 1,  # of the latents, an edge, that the first level has as one position
        attention_levels: tuple[int, ...] = (1, 2),  # levels whose blocks attend, 0 the finest
        pointwise_levels: tuple[int, ...] = (),  # levels whose convolutions are 1 x 1
        head_channels: int = 32,
        embedding_width: int | None = None,  # of the time; None: four times `channels`
        dropout: float = 0.0,
        prediction: Prediction = "v",
        sigma_data: float = 1.0,  # of "edm": of the latents' finest detail; see `process`
        expansion: str = "input",
        draw_blocks: int = 1,  # at each level of the particles' own way up
        draw_width: float = 0.5,  # of its levels, as a share of the trunk's
        classes: int = 0,  # labels 0 ... classes - 1 can be asked for
    ) -> None:
        super().__init__()
        if patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, not {patch_size}")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be above 0, not {sigma_data}")
        self.gradient_checkpointing = False
        self.one_draw_at_a_time = False
        self.memory_format = torch.contiguous_format  # of feature maps; weights stay as they are
        embedding = embedding_width or 4 * channels
        plan = Plan(
            latent_channels=latent_channels,
            widths=[channels * multiplier for multiplier in multipliers],
            patch=patch_size,
            attention_levels=attention_levels,
            pointwise_levels=pointwise_levels,
            head_channels=head_channels,
            embedding=embedding,
            dropout=dropout,
            expansion=expansion,
        )
        ways_up = blocks + 1 if up_blocks is None else up_blocks
        plan.go_down(blocks, kept=ways_up)
        plan.turn()
        plan.go_up(ways_up)
        if expansion == "output":
            plan.go_up_again(draw_blocks, draw_width)
        plan.end()

        self.time_embedding = TimeEmbedding(embedding, classes)
        self.trunk = nn.ModuleList(plan.parts[: plan.split])
        self.draw_parts = nn.ModuleList(plan.parts[plan.split :])
        self.divisor = patch_size * 2 ** (len(multipliers) - 1)
        self.last = Output(
            plan.width, latent_channels, patch=patch_size, pointwise=0 in pointwise_levels
        )

    @torch.no_grad()
    def start_from(self, other: UNet) -> None:
        """Take over the weights of a network that differs in its expansion, and dropout, alone.

        What reads xi in one of the two only, and the particles' own way up, stay as they are here.
        ValueError names what else differs.
        """
        differing = [
            f"{key} {other.config[key]}, not {value}"
            for key, value in self.config.items()
            if not key.startswith("_")
            and key not in _MAY_DIFFER
            and _as_list(other.config[key]) != _as_list(value)
        ]
        if differing:
            raise ValueError(f"its network has {' and '.join(differing)}")
        theirs = other._weights_by_part()
        for name, mine in self._weights_by_part().items():
            if name not in theirs:
                continue
            if mine.shape == theirs[name].shape:
                mine.copy_(theirs[name])
            elif name == _FIRST_CONVOLUTION:  # it reads xi, if at all, behind x_t
                shared = min(mine.shape[1], theirs[name].shape[1])
                mine[:, :shared] = theirs[name][:, :shared]

    def _weights_by_part(self) -> dict[str, Tensor]:
        """The weights by the place of their part, be it of the trunk or of the particles."""
        parts = dict(enumerate([*self.trunk, *self.draw_parts]))
        others = {"time": self.time_embedding, "last": self.last}
        return {
            f"{place}.{name}": weights
            for place, part in (parts | others).items()
            for name, weights in part.named_parameters()
        }

    def forward(self, x_t: Tensor, t: Tensor, xi: Tensor, labels: Tensor | None = None) -> Tensor:
        """Draws of x_0 for x_t [B, C, H, W] at t [B]; H, W divisible by `divisor`.

        xi: [B, C, H, W] for one draw of each x_t, [B, m, C, H, W] for m; the result has its shape.
        labels: [B], of a network with classes; `classes` itself, or None: of any class.
        """
        if xi.ndim == x_t.ndim:
            return self.forward(x_t, t, xi[:, None], labels)[:, 0]
        embedding = self.time_embedding(t, labels)
        first = State(x_t.contiguous(memory_format=self.memory_format))
        state = self._run(self.trunk, first, embedding, None)
        if self.one_draw_at_a_time and torch.is_grad_enabled():
            output = self._draw_one_by_one(state, embedding, xi)
        else:
            output = self._draw(state, embedding, xi.flatten(0, 1)).unflatten(0, xi.shape[:2])
        prediction, sigma_data = self.config["prediction"], self.config["sigma_data"]
        return to_x0(output.to(x_t.dtype), x_t[:, None], t, prediction, FlowSchedule(), sigma_data)

    def _draw(self, state: State, embedding: Tensor, xi: Tensor) -> Tensor:
        """The network's outputs [B m, C, H, W] for the trunk's state and xi [B m, C, H, W]."""
        xi = xi.contiguous(memory_format=self.memory_format)
        x = self.last(self._run(self.draw_parts, state, embedding, xi).x)
        return repeat_rows(x, len(xi))  # of a mean denoiser the draws are all the same

    def _draw_one_by_one(self, state: State, embedding: Tensor, xi: Tensor) -> Tensor:
        """The outputs [B, m, C, H, W], keeping nothing of a particle but its output.

        The two-pass gradient: all draws without a graph, then, in the backward pass, each
        particle's forward pass again and its backward pass. All see the same dropout masks,
        because all start from the same state of the random generator.
        """
        devices = [xi.device] if xi.device.type == "cuda" else []
        outputs = []
        for particle in xi.unbind(1):
            with torch.random.fork_rng(devices, enabled=self.config["dropout"] > 0):
                outputs.append(
                    checkpoint(self._draw, state, embedding, particle, use_reentrant=False)
                )
        return torch.stack(outputs, dim=1)

    def _run(
        self, parts: Iterable[nn.Module], state: State, embedding: Tensor, xi: Tensor | None
    ) -> State:
        save_memory = self.gradient_checkpointing and torch.is_grad_enabled()
        for part in parts:
            if save_memory:
                state = self._gradient_checkpointing_func(part, state, embedding, xi)
            else:
                state = part(state, embedding, xi)
        return state


def _as_list(value: object) -> object:
    """A config that was read from a file has lists in the place of tuples."""
    return list(value) if isinstance(value, tuple) else value
