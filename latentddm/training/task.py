"""One phase of a generator's training, as the loop sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from autoencoder.store import LatentBatch, LatentStore
from latentddm.diffusion.guidance import drop_labels
from latentddm.diffusion.schedules import make_schedule
from latentddm.engine.distributed import process_batch_size
from latentddm.engine.errors import UserError
from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.engine.seeding import BatchDraws, BatchMasks
from latentddm.engine.task import LoopConfig, Span
from latentddm.engine.trainable_module import TrainableModule
from latentddm.inference.flow_maps import FlowMapNetwork
from latentddm.inference.generator import denoiser_of
from latentddm.inference.sampler import fitting_sampler
from latentddm.networks.dropout import place_masks
from latentddm.networks.network import NetworkConfig, NetworkModel
from latentddm.training.config import TrainConfig
from latentddm.training.evaluator import NetworkEvaluator
from latentddm.training.objective import ObjectiveTerms
from latentddm.training.performance import apply_performance, record_cuda_graphs
from latentddm.training.phases import Phase
from latentddm.training.preview import Preview
from latentddm.training.views import TrainingInputs

PREVIEW_STEPS = 4
TIME_BINS = 4  # of t, for the logged interaction and spread


class GeneratorTask:
    """A generator in one phase of its training."""

    def __init__(
        self,
        config: TrainConfig,
        phase: Phase,
        span: Span,
        network: NetworkModel,
        store: LatentStore,
        preview: Preview,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.store = config, store
        self.accelerator, self._preview = accelerator, preview
        self.schedule = make_schedule(config.schedule)
        inputs = TrainingInputs(store, self.schedule, config.seed, accelerator)
        self.objective = phase.objective.prepared(inputs)
        if not self.objective.draw_count:  # without gradient, which several processes cannot share
            for parameter in network.draw_parameters():
                parameter.requires_grad_(False)
        apply_performance(network, config.performance, accelerator.device)
        self.trainable = TrainableModule(
            network, phase.optimizer, config.loop, span, accelerator, config.ema
        )
        self.averages = self.trainable.averages
        self._recorded_masks = record_cuda_graphs(
            self.trainable, self.objective.draw_count, store.shape, config.performance
        )

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
        objective = self.objective
        x0 = batch.to(self.accelerator.device).latents  # [B, C, H, W]
        labels = labels_given(batch, images, self.config, self.accelerator)

        # Every random number is a function of (seed, images seen), on any number of processes.
        random = BatchDraws(self.config.seed, "train", images, len(x0), self.accelerator)
        numbers = objective.numbers(random, x0)
        if labels is not None:
            if objective.group_size > 1:
                x0, labels = in_order_of_labels(x0, labels, self.accelerator)
            numbers["labels"] = labels
        global_x0 = self.accelerator.gather(x0) if objective.targets > 1 else x0

        for part in self.trainable.micro_batches(len(x0)):
            self._place_dropout(images, part, len(x0))
            network = self._evaluator(part, labels)
            rows = {name: values[part] for name, values in numbers.items()}
            terms = objective.evaluate(network, x0[part], rows, global_x0, self.schedule)
            self.trainable.backward(terms.loss.mean())
            _report(accumulator, terms, rows["t"], draws=objective.draw_count > 0)
            for name, (values, where) in objective.figures(terms, rows).items():
                accumulator.add(name, values, where)
        accumulator.add("gradient_norm", *self.trainable.step(images))

    def preview(self, path: Path) -> None:
        """A grid drawn in a few evaluations."""
        network, draws = self.averages.first, self.objective.draw_count > 0
        sampler = fitting_sampler(self.config.sampler, self.store.shape).for_network(draws)
        self._preview.write(
            FlowMapNetwork(network)
            if self.objective.learns_flow_map
            else denoiser_of(network, reads_xi=draws),
            path,
            self.schedule,
            self.config.network.prediction,
            sampler.settings(PREVIEW_STEPS),
        )

    def _evaluator(self, part: slice, labels: Tensor | None) -> NetworkEvaluator:
        given = None if labels is None else labels[part]
        bare = self.objective.derivatives
        return NetworkEvaluator(self.trainable, given, bare)

    def _place_dropout(self, images: int, part: slice, share: int) -> None:
        """Every image has its own masks, in whatever part of whatever process it is."""
        if not self.config.network.dropout:
            return
        masks = partial(BatchMasks(self.config.seed, images, share, self.accelerator).draw, part)
        if self._recorded_masks is None:
            place_masks(self.trainable.network, masks)
        else:
            self._recorded_masks.refill(masks)


class LabelSettings(Protocol):
    """The settings of a training that concern labels."""

    @property
    def network(self) -> NetworkConfig: ...
    @property
    def label_dropout(self) -> float: ...
    @property
    def seed(self) -> int: ...


def labels_given(
    batch: LatentBatch, images: int, config: LabelSettings, accelerator: Accelerator
) -> Tensor | None:
    """The labels [B] given to a network, a share of them hidden; None for one without classes."""
    labels, classes = batch.labels, config.network.classes
    if not classes or labels is None:
        return None
    if int(labels.max()) >= classes:
        raise UserError(
            f"The store has the label {int(labels.max())}, but network.classes is {classes}; "
            "it must be larger than every label."
        )
    random = BatchDraws(config.seed, "labels", images, len(labels), accelerator)
    labels = labels.to(accelerator.device, non_blocking=True)
    return drop_labels(labels, random.uniform(), config.label_dropout, classes)


def in_order_of_labels(
    x0: Tensor, labels: Tensor, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """x_0 and labels of this process in the batch of all processes sorted by label, [B, ...] each.

    The samples beside each other that an objective compares then mostly have one label, and are the
    same on any number of processes.
    """
    global_x0, given = accelerator.gather((x0, labels))
    first = accelerator.process_index * len(x0)
    rows = given.argsort(stable=True)[first : first + len(x0)]
    return global_x0[rows], given[rows]


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
        pinned=accelerator.device.type == "cuda",
    )


def _report(accumulator: MetricAccumulator, terms: ObjectiveTerms, t: Tensor, draws: bool) -> None:
    """The loss; of draws the score's terms too, interaction and spread in bins of t as well."""
    accumulator.add("loss", terms.loss)
    if not draws:
        return
    accumulator.add("confinement", terms.confinement)
    accumulator.add("interaction", terms.interaction)
    accumulator.add("spread", terms.spread)
    for index in range(TIME_BINS):
        inside = (t * TIME_BINS).long().clamp_max(TIME_BINS - 1) == index
        bounds = f"t{index / TIME_BINS:.2f}-{(index + 1) / TIME_BINS:.2f}"
        accumulator.add(f"interaction/{bounds}", terms.interaction, inside)
        accumulator.add(f"spread/{bounds}", terms.spread, inside)
