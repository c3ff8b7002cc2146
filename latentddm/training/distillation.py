"""Distillation of a run of plain diffusion into a student of few steps: config, task, `distill`.

The strongest rival of training without a teacher; the maths is in moment_matching.py. The student
is a run like any other, to be sampled with its number of steps and churn 1. No network here reads
xi: the student is a function of z_t, and its noise is that of the bridge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from autoencoder.sources.naming import public_name
from autoencoder.store import LatentBatch, LatentStore
from latentddm.diffusion.process import corrupt
from latentddm.diffusion.schedules import make_schedule
from latentddm.engine.config import MISSING, build, require_values, to_plain, to_yaml
from latentddm.engine.distributed import on_main, start_run
from latentddm.engine.ema import EMAConfig, require_average
from latentddm.engine.errors import UserError
from latentddm.engine.loop import run_loop
from latentddm.engine.metric_accumulator import MetricAccumulator
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.run import RunFolder
from latentddm.engine.seeding import BatchDraws
from latentddm.engine.task import (
    ENGINE_KEYS_THAT_MAY_CHANGE,
    SinglePhaseConfig,
    single_phase,
    whole_span,
)
from latentddm.engine.trainable_module import TrainableModule
from latentddm.inference.best_settings import best_settings, write_best_settings
from latentddm.inference.generator import RUN_KIND, Generator, denoiser_of, is_student
from latentddm.inference.latent_space import LatentSpace
from latentddm.inference.settings import SamplingConfig
from latentddm.networks.network import NetworkConfig, NetworkModel, make_network
from latentddm.networks.unet import UNetConfig
from latentddm.training.moment_matching import (
    auxiliary_loss,
    distillation_times,
    moment_gap,
    renoise,
    student_loss,
)
from latentddm.training.preview import Preview
from latentddm.training.task import labels_given, process_batches

ONLY_PHASE = 0


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Everything that defines a student's training."""

    teacher: str = MISSING  # the folder of a run of plain diffusion
    output: str = MISSING
    teacher_images: int | None = None  # which checkpoint; None: the newest
    store: str | None = None  # None: the one that the teacher was trained on
    steps: int = 4  # k, that the student is to be sampled with
    seed: int = 0
    schedule: str = "flow"  # filled in: the teacher's; another one is refused
    network: NetworkConfig = field(default_factory=UNetConfig)  # likewise
    label_dropout: float = 0.1  # likewise
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # of both networks
    loop: SinglePhaseConfig
    ema: EMAConfig = field(default_factory=EMAConfig)
    precision: Literal["no", "bf16", "fp16"] = "no"

    def __post_init__(self) -> None:
        """ValueError for a number of steps that makes no student."""
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


def distill(config: DistillConfig) -> RunFolder:
    """Train or resume the student at `config.output`; returns its folder.

    UserError if the teacher is no plain diffusion or belongs to other latents than the store's.
    """
    config, teacher, store = _resolve(config)
    run, accelerator = start_run(
        config.output, RUN_KIND, config, config.precision, ENGINE_KEYS_THAT_MAY_CHANGE
    )
    on_main(accelerator, lambda: LatentSpace.of_store(store).keep(run.path))
    on_main(accelerator, lambda: _keep_sampler(run, config.steps))
    before = RunFolder(Path(config.teacher)).effort(teacher.images)
    on_main(accelerator, lambda: run.keep_effort_before(before))
    task = StudentTask(config, teacher.network, store, accelerator)
    run_loop(single_phase(task, config.loop), run, config.loop, accelerator)
    accelerator.end_training()
    return run


def _keep_sampler(run: RunFolder, steps: int) -> None:
    """Write the steps and the churn that a student is trained for as its best settings.

    Unless better ones were measured.
    """
    if not best_settings(run.path, ONLY_PHASE):
        own = {steps: SamplingConfig(steps=steps, churn=1.0)}
        by = "its training, for these steps and this churn"
        write_best_settings(run.path, ONLY_PHASE, by, own)


def describe(config: DistillConfig) -> str:
    """The work of `distill`: the resolved config and the networks' size. Touches nothing."""
    config, teacher, store = _resolve(config)
    parameters = teacher.network.num_parameters()
    return (
        f"{to_yaml(config)}\n{parameters:,} parameters each of student, auxiliary and teacher; "
        f"the teacher has seen {teacher.images:,} images; latents {list(store.shape)}."
    )


def _resolve(config: DistillConfig) -> tuple[DistillConfig, Generator, LatentStore]:
    """The config with nothing left open, the teacher, and the store; checked against each other."""
    require_values(config, "teacher", "output")
    require_average(config.ema)
    teacher = Generator.load(config.teacher, images=config.teacher_images)
    theirs = RunFolder.open(config.teacher, RUN_KIND).read_config()
    _check_teacher(config.teacher, teacher, theirs)
    reference = config.store or theirs["store"]
    store = LatentStore(reference)
    reference = public_name(reference)
    if theirs["network"].get("classes") and not store.manifest.labelled:
        raise UserError(
            f"{config.teacher} takes labels, but the store {reference} holds none; give the "
            "teacher's store."
        )
    remedy = f"give the teacher's store, not {reference}"
    teacher.space.require_store(store, config.teacher, remedy)
    network = {**theirs["network"], "dropout": 0.0}
    taught = {
        "schedule": theirs["schedule"],
        "network": build(NetworkConfig, network, config.teacher, "network."),
        "label_dropout": theirs["label_dropout"],
    }
    _require_as_taught(config, taught)
    return replace(config, store=reference, teacher_images=teacher.images, **taught), teacher, store


def _check_teacher(path: str, teacher: Generator, theirs: Mapping[str, Any]) -> None:
    """UserError unless the checkpoint is of plain diffusion, with a mean at t = 1."""
    if is_student(theirs):
        raise UserError(
            f"{path} is a distilled student, whose output is no mean of plain diffusion; give its "
            f"own teacher, {theirs.get('teacher')}, or another run of plain diffusion."
        )
    if teacher.reads_xi or teacher.flow_map:
        raise UserError(
            f"{path} is no run of plain diffusion (the objective of its last phase is "
            "not 'plain'), whose mean the student is to match; give one that is."
        )
    if teacher.least_safety:
        raise UserError(
            f"{path} has network.prediction eps, which gives no x_0 at t = 1, where a student's "
            "first step begins; give a teacher of another prediction."
        )


def _require_as_taught(config: DistillConfig, taught: Mapping[str, Any]) -> None:
    """UserError for a key given with another value than the teacher's, which a student has."""
    defaults = DistillConfig(loop=config.loop)
    changed = [
        key
        for key, value in to_plain(taught).items()
        if to_plain(getattr(config, key)) not in (to_plain(getattr(defaults, key)), value)
    ]
    if changed:
        raise UserError(
            f"A student has its teacher's {', '.join(changed)}, and other values are given than "
            f"those of {config.teacher}; leave them out."
        )


class StudentTask:
    """The student's part of the training loop: an auxiliary step, then a student step, a batch."""

    def __init__(
        self,
        config: DistillConfig,
        teacher: NetworkModel,
        store: LatentStore,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.store, self.accelerator = config, store, accelerator
        self.schedule = make_schedule(config.schedule)
        self.teacher = teacher.to(accelerator.device)
        self.student = self._trainable(config.ema)
        self.auxiliary = self._trainable(None)
        self.averages = self.student.averages
        self._preview = Preview(store, config.seed, accelerator)

    def _trainable(self, ema: EMAConfig | None) -> TrainableModule:
        """Student and auxiliary both start as the teacher."""
        config, loop = self.config, self.config.loop
        network = make_network(config.network, self.store.shape, config.schedule)
        network.load_state_dict(self.teacher.state_dict())
        for parameter in network.draw_parameters():
            parameter.requires_grad_(False)
        return TrainableModule(
            network, config.optimizer, loop, whole_span(loop), self.accelerator, ema
        )

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {
            "network": self.student.network,
            "auxiliary": self.auxiliary.network,
            **self.averages.modules,
        }

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        return {
            "optimizer": self.student.optimizer,
            "auxiliary_optimizer": self.auxiliary.optimizer,
        }

    def batches(self, start: int) -> Iterator[LatentBatch]:
        loop = self.config.loop
        return process_batches(self.store, self.config.seed, loop, self.accelerator, start)

    def step(self, batch: LatentBatch, images: int, accumulator: MetricAccumulator) -> None:
        x0 = batch.to(self.accelerator.device).latents  # [B, C, H, W]
        random = BatchDraws(self.config.seed, "distill", images, len(x0), self.accelerator)
        t, s = distillation_times(random.uniform(), random.uniform(), self.config.steps)
        z_t = corrupt(x0, t, random.normal(*x0.shape[1:]), self.schedule)
        noise = random.normal(*x0.shape[1:])
        labels = labels_given(batch, images, self.config, self.accelerator)

        # A step of the student as it is now, and the teacher's mean where the step arrives.
        with torch.no_grad(), self.accelerator.autocast():
            drawn = self.student.network(z_t, t, None, labels)
            z_s = renoise(z_t, drawn, t, s, noise, self.schedule)
            target = self.teacher(z_s, s, None, labels)
        for part in self.auxiliary.micro_batches(len(x0)):
            with self.accelerator.autocast():
                given = None if labels is None else labels[part]
                mean = self.auxiliary.wrapped(z_s[part], s[part], None, given)
            loss = auxiliary_loss(mean, drawn[part], target[part])
            self.auxiliary.backward(loss.mean())
            accumulator.add("loss", loss)
        accumulator.add("auxiliary_gradient_norm", *self.auxiliary.step(images))

        with torch.no_grad(), self.accelerator.autocast():
            mean = self.auxiliary.network(z_s, s, None, labels)
        for part in self.student.micro_batches(len(x0)):
            with self.accelerator.autocast():
                given = None if labels is None else labels[part]
                again = self.student.wrapped(z_t[part], t[part], None, given)
            self.student.backward(student_loss(again, mean[part], target[part]).mean())
        accumulator.add("moment_gap", moment_gap(mean, target))
        accumulator.add("gradient_norm", *self.student.step(images))

    def preview(self, path: Path) -> None:
        """A grid of the student's own steps."""
        student = denoiser_of(self.averages.first, reads_xi=False)
        prediction, steps = self.config.network.prediction, self.config.steps
        settings = SamplingConfig(steps=steps, churn=1.0)
        self._preview.write(student, path, self.schedule, prediction, settings)
