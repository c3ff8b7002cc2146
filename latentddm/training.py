"""Trains the generator on a latent store: the config, the task, and `train`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from autoencoder.decode import decode_latents
from autoencoder.models import Autoencoder
from autoencoder.pictures import image_grid, save_image
from autoencoder.store import LatentBatch, LatentStore
from latentddm.engine.config import (
    MISSING,
    complete_arguments,
    require_values,
    to_yaml,
)
from latentddm.engine.ema import EMA
from latentddm.engine.loop import (
    LOOP_KEYS_THAT_MAY_CHANGE,
    LoopConfig,
    process_batch_size,
    run_loop,
    start_processes,
)
from latentddm.engine.means import Means
from latentddm.engine.optimisation import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
    optimizer_step,
)
from latentddm.engine.randomness import torch_generator
from latentddm.engine.run import RunFolder
from latentddm.latent_space import LatentSpace
from latentddm.objective import Objective, ObjectiveTerms, objective_terms
from latentddm.process import FlowSchedule, corrupt
from latentddm.sampling import sample, time_grid
from latentddm.unet import UNet

RUN_KIND = "generator"
TIME_BINS = 4  # of t, for the logged interaction and spread
PREVIEW_STEPS, PREVIEW_IMAGES = 4, 32


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that defines a generator's training; configs/*.yaml say what differs."""

    store: str = MISSING
    output: str = MISSING
    seed: int = 0
    network: dict[str, Any] = field(default_factory=dict)  # arguments of UNet
    objective: Objective = field(default_factory=Objective)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig
    ema_std: float = 0.10  # width of the moving average, as a share of the training so far
    precision: Literal["no", "bf16", "fp16"] = "no"


def train(config: TrainConfig) -> RunFolder:
    """Train or resume the run at `config.output`; returns its folder."""
    require_values(config, "store", "output")
    store = LatentStore(config.store)
    config = _resolve(config, store)
    run = RunFolder.create(Path(config.output), RUN_KIND, config, LOOP_KEYS_THAT_MAY_CHANGE)
    LatentSpace.of_store(store).write(run.path)
    accelerator = start_processes(run, config.precision)
    task = GeneratorTask(config, store, accelerator)
    run_loop(task, run, config.loop, accelerator)
    accelerator.end_training()
    return run


def describe(config: TrainConfig) -> str:
    """What `train` would do: the resolved config and the network's size. Touches nothing."""
    require_values(config, "store", "output")
    store = LatentStore(config.store)
    config = _resolve(config, store)
    with torch.device("meta"):
        parameters = UNet(**config.network).num_parameters()
    return (
        f"{to_yaml(config)}\n{parameters:,} parameters; latents {list(store.shape)}; "
        f"{len(store):,} images in the store."
    )


def _resolve(config: TrainConfig, store: LatentStore) -> TrainConfig:
    """The config with every argument of the network spelt out; channels come from the store."""
    given = {**config.network, "latent_channels": store.shape[0]}
    network = complete_arguments(UNet.__init__, given, config.output, "network.")
    return TrainConfig(**{**vars(config), "network": network})


class GeneratorTask:
    """The generator's part of the training loop."""

    def __init__(self, config: TrainConfig, store: LatentStore, accelerator: Accelerator) -> None:
        self.config, self.store, self.accelerator = config, store, accelerator
        self.schedule = FlowSchedule()
        torch.manual_seed(config.seed)  # the initial weights; every later draw is derived
        network = UNet(**config.network).to(accelerator.device)
        self.ema = EMA(network, config.ema_std)
        self.network = network
        self.optimizer = make_optimizer(network, config.optimizer)
        self.wrapped, self.wrapped_optimizer = accelerator.prepare(network, self.optimizer)
        self._autoencoder: Autoencoder | None = None

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.network, "ema": self.ema.module}

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        return {"optimizer": self.optimizer}

    def batches(self, start: int) -> Iterator[LatentBatch]:
        return self.store.stream(
            process_batch_size(self.config.loop.batch_size, self.accelerator),
            seed=self.config.seed,
            start=start,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    def step(self, batch: LatentBatch, images: int, means: Means) -> None:
        config = self.config
        x0 = batch.latents.to(self.accelerator.device, non_blocking=True)  # [B, C, H, W]
        t, noise, xi = self._random_draws(images, x0)

        # Corrupt the data, draw m guesses of what it was, and score them.
        x_t = corrupt(x0, t, noise, self.schedule)
        with self.accelerator.autocast():
            draws = self.wrapped(x_t, t, xi)  # [B, m, C, H, W]
        terms = objective_terms(draws, x0, t, config.objective, self.schedule)

        rate = learning_rate(config.optimizer, images, config.loop.images)
        norm = optimizer_step(
            self.accelerator,
            self.network,
            self.wrapped_optimizer,
            terms.loss.mean(),
            config.optimizer,
            images,
            rate,
        )
        self.ema.update(images + config.loop.batch_size, config.loop.batch_size)
        _report(means, terms, t, norm)

    def preview(self, path: Path) -> None:
        """A grid drawn in a few evaluations from noise that is the same every time."""
        if self._autoencoder is None:
            self._autoencoder = LatentSpace.of_store(self.store).load_autoencoder()
        shape = (PREVIEW_IMAGES, *self.store.shape)
        generator = torch_generator(self.config.seed, "preview")
        noise = torch.randn(shape, generator=generator).to(self.accelerator.device)
        x0 = sample(self.ema.module, noise, time_grid(PREVIEW_STEPS), generator=generator)
        pixels = decode_latents(self.store.restore(x0.cpu()), self._autoencoder)
        save_image(path, image_grid(pixels.numpy(), columns=8))

    def _random_draws(self, images: int, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t [B], noise [B, ...] and xi [B, m, ...] of the images after the first `images`.

        They are drawn for the global batch and each process takes its part, so that a run sees
        the same draws on any number of processes.
        """
        share, rank = len(x0), self.accelerator.process_index
        everyone = share * self.accelerator.num_processes
        mine = slice(rank * share, (rank + 1) * share)
        generator = torch_generator(self.config.seed, "train", images, device=x0.device)

        def normal(*shape: int) -> Tensor:
            return torch.randn(everyone, *shape, generator=generator, device=x0.device)[mine]

        t = self.config.objective.times(normal())
        return t, normal(*x0.shape[1:]), normal(self.config.objective.draws, *x0.shape[1:])


def _report(means: Means, terms: ObjectiveTerms, t: Tensor, norm: Tensor) -> None:
    """Loss and score terms; interaction and spread in bins of t as well."""
    means.add("loss", terms.loss)
    means.add("gradient_norm", norm)
    means.add("confinement", terms.confinement)
    means.add("interaction", terms.interaction)
    means.add("spread", terms.spread)
    for index in range(TIME_BINS):
        inside = (t * TIME_BINS).long().clamp_max(TIME_BINS - 1) == index
        bounds = f"t{index / TIME_BINS:.2f}-{(index + 1) / TIME_BINS:.2f}"
        means.add(f"interaction/{bounds}", terms.interaction, inside)
        means.add(f"spread/{bounds}", terms.spread, inside)
