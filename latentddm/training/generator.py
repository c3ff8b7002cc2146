"""Trains the generator on a latent store: the config, the task, and `train`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from autoencoder.store import LatentBatch, LatentStore
from latentddm.diffusion.guidance import drop_labels
from latentddm.diffusion.process import corrupt
from latentddm.diffusion.schedules import FlowSchedule
from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.config import MISSING, require_values, to_yaml
from latentddm.engine.distributed import (
    on_main,
    process_batch_size,
    start_processes,
    start_run,
)
from latentddm.engine.dry_run import dry_run
from latentddm.engine.ema import EMAConfig
from latentddm.engine.errors import UserError
from latentddm.engine.loop import LOOP_KEYS_THAT_MAY_CHANGE, LoopConfig, run_loop
from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.run import RunFolder
from latentddm.engine.seeding import BatchDraws, derive_seed
from latentddm.engine.trainable_module import TrainableModule
from latentddm.inference.generator import RUN_KIND, Generator, record_start
from latentddm.inference.latent_space import LatentSpace
from latentddm.networks.layers import place_rows
from latentddm.networks.network import NetworkConfig, NetworkModel, default_config, make_network
from latentddm.scores.score import antithetic_pairs
from latentddm.training.diagnostics import Diagnostics
from latentddm.training.objective import Objective, ObjectiveTerms, draw_targets, objective_terms
from latentddm.training.performance import (
    PERFORMANCE_KEYS_THAT_MAY_CHANGE,
    PerformanceConfig,
    apply_performance,
    describe_performance,
    record_cuda_graphs,
)
from latentddm.training.preview import Preview

TIME_BINS = 4  # of t, for the logged interaction and spread

_log = logging.getLogger("latentddm")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that defines a generator's training; configs/*.yaml say what differs."""

    store: str = MISSING
    output: str = MISSING
    seed: int = 0
    start: str | None = None  # a run (of plain diffusion) whose averaged weights it begins with
    network: NetworkConfig = field(default_factory=default_config)
    objective: Objective = field(default_factory=Objective)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig
    ema: EMAConfig = field(default_factory=EMAConfig)
    precision: Literal["no", "bf16", "fp16"] = "no"
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    label_dropout: float = 0.1  # share of labels hidden, so that guidance can be used


def train(config: TrainConfig) -> RunFolder:
    """Train or resume the run at `config.output`; returns its folder."""
    require_values(config, "store", "output")
    store = LatentStore(config.store)
    config = _resolve(config, store)
    network = _first_network(config, store)
    may_change = (*LOOP_KEYS_THAT_MAY_CHANGE, *PERFORMANCE_KEYS_THAT_MAY_CHANGE)
    run, accelerator = start_run(config.output, RUN_KIND, config, config.precision, may_change)
    on_main(accelerator, lambda: LatentSpace.of_store(store).write(run.path))
    if config.start is not None:
        on_main(accelerator, partial(record_start, run, config.start))
    if accelerator.is_main_process:
        _log.info(describe_performance(config.performance, config.precision, accelerator.device))
    task = GeneratorTask(config, network, store, accelerator)
    run_loop(task, run, config.loop, accelerator, Diagnostics(config.objective, config.loop.images))
    accelerator.end_training()
    return run


def describe(config: TrainConfig) -> str:
    """What `train` would do: config, size, memory and speed of a few steps. Touches nothing."""
    require_values(config, "store", "output")
    store = LatentStore(config.store)
    config = _resolve(config, store)
    accelerator = start_processes(config.precision)
    task = GeneratorTask(config, _first_network(config, store), store, accelerator)
    parameters = sum(parameter.numel() for parameter in task.trainable.network.parameters())
    return (
        f"{to_yaml(config)}\n{parameters:,} parameters; latents {list(store.shape)}; "
        f"{len(store):,} images in the store.\n"
        f"{dry_run(task, config.loop, accelerator).describe()}"
    )


def _resolve(config: TrainConfig, store: LatentStore) -> TrainConfig:
    """The config, checked against the store."""
    network = config.network
    _check_network(network, store, config.store)
    if network.classes and not store.manifest.labelled:
        raise UserError(
            f"network.classes is {network.classes}, but the store {config.store} holds no "
            "labels; encode images that have some, or leave network.classes out."
        )
    if network.classes and config.objective.targets > 1:
        raise UserError(
            "objective.targets takes what is behind an x_t from the whole batch, whatever its "
            "label; set it to 1 with network.classes."
        )
    return config


def _check_network(config: NetworkConfig, store: LatentStore, name: str) -> None:
    """UserError for a network that does not fit the store's latents."""
    try:
        with torch.device("meta"):
            make_network(config, store.shape[0]).check_latents(store.shape)
    except ValueError as error:
        raise UserError(f"network, with the latents in {name}: {error}.") from None


def _first_network(config: TrainConfig, store: LatentStore) -> NetworkModel:
    """The network that training begins with: of the seed or, with `start`, of another run.

    A mean is learnt fast, with one draw; a DDM that starts from it has only the rest of the
    posterior to learn.
    """
    torch.manual_seed(config.seed)  # every later draw is derived
    network = make_network(config.network, store.shape[0])
    if config.start is None:
        return network
    if newest_checkpoint(RunFolder(Path(config.output)).checkpoints) is not None:
        return network  # a run that is resumed has weights of its own
    start = Generator.load(config.start)
    if start.space != LatentSpace.of_store(store):
        raise UserError(
            f"start is {config.start}, which was trained on other latents than those in "
            f"{config.store}: their shape, statistics or autoencoder differ; give a run of that "
            "store."
        )
    try:
        network.load_state_dict(start.network.state_dict())
    except RuntimeError:
        raise UserError(f"start is {config.start}, whose network is another.") from None
    return network


def process_batches(
    store: LatentStore, seed: int, loop: LoopConfig, accelerator: Accelerator, start: int
) -> Iterator[LatentBatch]:
    """This process's share of the batches after the first `start` images, for ever."""
    return store.stream(
        process_batch_size(loop.batch_size, accelerator),
        seed=seed,
        start=start,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


class GeneratorTask:
    """The generator's part of the training loop."""

    def __init__(
        self,
        config: TrainConfig,
        network: NetworkModel,
        store: LatentStore,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.store, self.accelerator = config, store, accelerator
        self.schedule = FlowSchedule()
        apply_performance(network, config.performance, accelerator.device)
        self.trainable = TrainableModule(
            network, config.optimizer, config.loop, accelerator, config.ema
        )
        self.averages = self.trainable.averages
        if config.performance.cuda_graphs:
            record_cuda_graphs(self.trainable, config.objective.draws, store.shape)
        self._preview = Preview(store, config.seed, accelerator)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.trainable.network, **self.averages.modules}

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        return {"optimizer": self.trainable.optimizer}

    def batches(self, start: int) -> Iterator[LatentBatch]:
        loop = self.config.loop
        return process_batches(self.store, self.config.seed, loop, self.accelerator, start)

    def step(self, batch: LatentBatch, images: int, accumulator: MetricAccumulator) -> None:
        config = self.config
        x0 = batch.latents.to(self.accelerator.device, non_blocking=True)  # [B, C, H, W]
        t, noise, xi, uniform = self._random_draws(images, x0)
        labels = self._labels(batch, images)
        everyone = self.accelerator.gather(x0) if config.objective.targets > 1 else x0

        for part in self.trainable.micro_batches(len(x0)):
            self._seed_dropout(images, part, len(x0))
            # Corrupt the data, draw m guesses of what it was, and score them.
            x_t = corrupt(x0[part], t[part], noise[part], self.schedule)
            with self.accelerator.autocast():
                given = () if labels is None else (labels[part],)
                draws = self.trainable.wrapped(x_t, t[part], xi[part], *given)  # [B, m, C, H, W]
            targets = x0[part]
            if config.objective.targets > 1:
                targets = draw_targets(x_t, t[part], everyone, uniform[part], self.schedule)
            terms = objective_terms(draws, targets, t[part], config.objective, self.schedule)
            self.trainable.backward(terms.loss.mean())
            _report(accumulator, terms, t[part])
        accumulator.add("gradient_norm", self.trainable.step(images))

    def preview(self, path: Path) -> None:
        """A grid drawn in a few evaluations."""
        self._preview.write(self.averages.first, path)

    def _random_draws(self, images: int, x0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """t [B], noise [B, ...], xi [B, m, ...] and the choice of n targets, uniform [B, n].

        They are for the images after the first `images`.
        """
        objective = self.config.objective
        draws = BatchDraws(self.config.seed, "train", images, len(x0), self.accelerator)
        t = objective.times(draws.normal())
        noise = draws.normal(*x0.shape[1:])
        if objective.antithetic:
            xi = antithetic_pairs(draws.normal(objective.draws // 2, *x0.shape[1:]))
        else:
            xi = draws.normal(objective.draws, *x0.shape[1:])
        return t, noise, xi, draws.uniform(objective.targets)

    def _seed_dropout(self, images: int, part: slice, share: int) -> None:
        """Every part of the global batch, on whatever process, takes its rows of the same masks."""
        if self.config.network.dropout:
            torch.manual_seed(derive_seed(self.config.seed, "dropout", images))
            first = self.accelerator.process_index * share + part.start
            place_rows(self.trainable.network, first, share * self.accelerator.num_processes)

    def _labels(self, batch: LatentBatch, images: int) -> Tensor | None:
        """The labels [B] that the network is shown, some dropped; None for one without classes."""
        classes, labels = self.config.network.classes, batch.labels
        if not classes or labels is None:
            return None
        if int(labels.max()) >= classes:
            raise UserError(
                f"The store has the label {int(labels.max())}, but network.classes is {classes}; "
                "it must be larger than every label."
            )
        draws = BatchDraws(self.config.seed, "labels", images, len(labels), self.accelerator)
        labels = labels.to(self.accelerator.device, non_blocking=True)
        return drop_labels(labels, draws.uniform(), self.config.label_dropout, classes)


def _report(accumulator: MetricAccumulator, terms: ObjectiveTerms, t: Tensor) -> None:
    """Loss and score terms; interaction and spread in bins of t as well."""
    accumulator.add("loss", terms.loss)
    accumulator.add("confinement", terms.confinement)
    accumulator.add("interaction", terms.interaction)
    accumulator.add("spread", terms.spread)
    for index in range(TIME_BINS):
        inside = (t * TIME_BINS).long().clamp_max(TIME_BINS - 1) == index
        bounds = f"t{index / TIME_BINS:.2f}-{(index + 1) / TIME_BINS:.2f}"
        accumulator.add(f"interaction/{bounds}", terms.interaction, inside)
        accumulator.add(f"spread/{bounds}", terms.spread, inside)
