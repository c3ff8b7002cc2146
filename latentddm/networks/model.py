"""The base class of our networks: everything that does not depend on the architecture.

A new network is one file: a config, and a subclass of `NetworkModel` with four methods. `build`
makes the layers; `run_trunk` is the part that runs once for each x_t, `run_draws` the rest, which
runs once for each draw; `noise_layers` lists the layers that read xi. Then one line in `network`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentddm.diffusion.process import to_x0
from latentddm.diffusion.schedules import make_schedule
from latentddm.networks.config import NetworkConfig, signature
from latentddm.networks.gaussian_posterior import GaussianLatents, PosteriorNoise
from latentddm.networks.layers import NoiseGate, TimeEmbedding

C = TypeVar("C", bound=NetworkConfig)
S = TypeVar("S")  # the state that goes from the trunk to the draws


class NetworkModel(ModelMixin, ConfigMixin, Generic[C, S], ABC):
    """A generator of draws x_0 ~ p(x_0 | x_t) from xi ~ N(0, I); without xi a mean denoiser.

    A diffusers model: `save_pretrained`, `from_pretrained`, safetensors. Its keyword arguments are
    `latent_channels`, `latent_size` (height and width, where a part depends on them), the name of
    the `schedule`, and the fields of `Config`; all of them stand in `config`, so that a saved
    folder is self-contained.
    """

    Config: ClassVar[type[NetworkConfig]] = NetworkConfig
    time_embedding: TimeEmbedding  # made by `build`

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[tuple[str, ...]] = ()  # gathered one by one if sharded

    def __init__(
        self,
        latent_channels: int,
        latent_size: Sequence[int] | None = None,
        schedule: str = "flow",
        **settings: Any,
    ) -> None:
        super().__init__()
        # A saved config has lists in the place of tuples.
        settings = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in settings.items()
        }
        config = self.Config(**settings)
        size = None if latent_size is None else tuple(latent_size)
        self.register_to_config(
            latent_channels=latent_channels, latent_size=size, schedule=schedule, **vars(config)
        )
        self.schedule = make_schedule(schedule)
        self.gradient_checkpointing = False
        self.one_draw_at_a_time = False
        self.memory_format = torch.contiguous_format  # of feature maps; weights stay as they are
        self.input_channels = (2 if config.gaussian_mean else 1) * latent_channels
        self.build(config, latent_channels)  # type: ignore[arg-type]
        self.gaussian_latents: GaussianLatents | None = None
        self.posterior_noise: PosteriorNoise | None = None
        if config.gaussian_mean or config.noise == "posterior":
            if size is None:
                raise ValueError("noise: posterior and gaussian_mean need the size of the latents")
            shape = (latent_channels, size[0], size[1])
            self.gaussian_latents = GaussianLatents(shape, config.gaussian_components)
        if config.noise == "posterior" and self.gaussian_latents is not None:
            self._begin_without_xi()
            components = self.gaussian_latents.axes.shape[1]
            width = self.time_embedding.output.out_features
            self.posterior_noise = PosteriorNoise(components, width)

    def __init_subclass__(cls, **options: Any) -> None:
        """Give the class an __init__ whose signature has the fields of its config."""
        super().__init_subclass__(**options)

        def __init__(self: NetworkModel, **settings: Any) -> None:
            NetworkModel.__init__(self, **settings)

        __init__.__signature__ = signature(cls.Config)  # type: ignore[attr-defined]
        # DiffusionPipeline.from_pretrained finds the base class by name in the class's own module.
        vars(sys.modules[cls.__module__]).setdefault("ModelMixin", ModelMixin)
        cls.__init__ = __init__  # type: ignore[method-assign, assignment]

    def __getattr__(self, name: str) -> Any:
        """A layer even where a setting has its name, which diffusers would return instead."""
        return nn.Module.__getattr__(self, name)

    @abstractmethod
    def build(self, config: C, latent_channels: int) -> None:
        """Make the layers, `time_embedding` among them; the first reads `input_channels`."""

    @abstractmethod
    def run_trunk(self, x_t: Tensor, embedding: Tensor) -> S:
        """The part that all draws of an x_t share. embedding: [B, width].

        x_t: [B, input_channels, H, W], with the posterior mean of Gaussian latents behind it where
        the layers read that.
        """

    @abstractmethod
    def run_draws(self, state: S, embedding: Tensor, xi: Tensor | None) -> Tensor:
        """Outputs [B m, C, H, W] for xi [B m, C, H, W]; without xi [B, C, H, W], as for xi = 0."""

    @abstractmethod
    def noise_layers(self) -> list[nn.Module]:
        """The layers that read xi alone: without xi their parameters have no gradient."""

    def draw_parameters(self) -> list[nn.Parameter]:
        """The parameters that xi alone uses: without xi they have no gradient."""
        own = [] if self.posterior_noise is None else [self.posterior_noise]
        return [p for layer in [*self.noise_layers(), *own] for p in layer.parameters()]

    def check_latents(self, shape: Sequence[int]) -> None:
        """ValueError, naming the setting to change, if latents [C, H, W] do not fit."""
        channels = shape[0]
        if channels != self.config["latent_channels"]:
            raise ValueError(
                f"latent_channels is {self.config['latent_channels']}, but the latents have "
                f"{channels} channels"
            )
        size = self.config["latent_size"]
        if self.gaussian_latents is not None and tuple(shape[1:]) != tuple(size):
            raise ValueError(
                f"noise: posterior and gaussian_mean are of latents of {size[0]} x {size[1]}, but "
                f"these have {shape[1]} x {shape[2]}"
            )

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        xi: Tensor | None = None,
        labels: Tensor | None = None,
        s: Tensor | None = None,
    ) -> Tensor:
        """Draws of x_0 for x_t [B, C, H, W] at t [B].

        xi: [B, m, C, H, W] for m draws of each x_t, [B, C, H, W] for one; the result has its shape.
        None gives the mean [B, C, H, W]: everything that reads xi is skipped, as if xi were 0.
        labels: [B], of a network with classes; `classes` itself, or None: no label. s: [B], the
        time at which the step ends, of a network of two times; None: at t, a step of length 0.
        """
        embedding = self.time_embedding(t, labels, None if s is None else t - s)
        state = self.run_trunk(self._input(x_t, t), embedding)
        if xi is None or self.posterior_noise is None:
            return self._draw(state, embedding, xi, x_t, t)
        read, added = self.posterior_noise(xi, t, embedding, self.gaussian_latents, self.schedule)
        return self._draw(state, embedding, read, x_t, t) + added

    def _begin_without_xi(self) -> None:
        """Zero what xi adds to the layers; the gates are kept, so that there is a gradient."""
        for layer in self.noise_layers():
            for module in layer.modules():
                if not isinstance(module, NoiseGate):
                    for parameter in module.parameters(recurse=False):
                        nn.init.zeros_(parameter)

    def _input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the first layer reads, [B, input_channels, H, W]."""
        if self.gaussian_latents is None or not self.config["gaussian_mean"]:
            return x_t
        mean = self.gaussian_latents.posterior_mean(x_t, t, self.schedule)
        return torch.cat([x_t, mean], dim=1)

    def _draw(
        self, state: S, embedding: Tensor, xi: Tensor | None, x_t: Tensor, t: Tensor
    ) -> Tensor:
        """What the layers make of xi as they read it; shapes as in `forward`."""
        if xi is None or xi.ndim == x_t.ndim:
            return self._to_x0(self.run_draws(state, embedding, xi), x_t, t)
        if self.one_draw_at_a_time and torch.is_grad_enabled():
            outputs = self._draw_one_by_one(state, embedding, xi)
        else:
            outputs = self.run_draws(state, embedding, xi.flatten(0, 1)).unflatten(0, xi.shape[:2])
        return self._to_x0(outputs, x_t[:, None], t)

    def run_parts(self, parts: Iterable[nn.Module], state: Any, *inputs: Any) -> Any:
        """state = part(state, *inputs) for each part, with gradient checkpointing if it is on."""
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        for part in parts:
            if recompute:
                state = self._gradient_checkpointing_func(part, state, *inputs)
            else:
                state = part(state, *inputs)
        return state

    def _to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        prediction, sigma_data = self.config["prediction"], self.config["sigma_data"]
        return to_x0(output.to(x_t.dtype), x_t, t, prediction, self.schedule, sigma_data)

    def _draw_one_by_one(self, state: S, embedding: Tensor, xi: Tensor) -> Tensor:
        """The outputs [B, m, C, H, W], without the activations of any draw.

        The two-pass gradient: all draws without a graph, then, in the backward pass, each draw's
        forward pass again and its backward pass. All have the same dropout masks, because all
        start from the same state of the random generator.
        """
        devices = [xi.device] if xi.device.type == "cuda" else []
        outputs = []
        for one in xi.unbind(1):
            with torch.random.fork_rng(devices, enabled=self.config["dropout"] > 0):
                outputs.append(
                    checkpoint(self.run_draws, state, embedding, one, use_reentrant=False)
                )
        return torch.stack(outputs, dim=1)
