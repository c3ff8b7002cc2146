"""The methods of tools/paper.py: an objective each, and the config of every training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from latentddm.cli.arguments import find_config
from latentddm.demo.sizing import shortened
from latentddm.engine.config import load_config
from latentddm.engine.errors import UserError
from latentddm.engine.task import SinglePhaseConfig
from latentddm.training.config import TrainConfig
from latentddm.training.distillation import DistillConfig
from latentddm.training.objective import Objective, PlainObjective
from latentddm.training.phases import Phase
from latentddm.training.rivals import InductiveObjective, MeanFlowObjective, ShortcutObjective

PLAIN, DDM = "plain", "DDM"
RIVALS: Mapping[str, Objective] = {
    "shortcut": ShortcutObjective(),
    "mean-flow": MeanFlowObjective(improved=True),
    "inductive": InductiveObjective(),
}
SOLVERS = {PLAIN: "ddim,dpmsolver++,unipc", DDM: "ddim,dpmsolver++"}


def methods(config: TrainConfig) -> dict[str, Objective]:
    """The objective of each method's second share, by name; UserError for other phases.

    A rival that compares the samples of a group has none of their labels, and is left out where
    the network has classes.
    """
    if [phase.objective.kind for phase in config.phases] != ["plain", "ddm"]:
        raise UserError(
            "phases must be two, of kind plain and ddm, from which every method has its share of "
            "images and its optimizer; change them."
        )
    rivals = {
        name: objective
        for name, objective in RIVALS.items()
        if not (config.network.classes and objective.group_size > 1)
    }
    return {PLAIN: PlainObjective(), DDM: config.phases[1].objective, **rivals}


def config_of(
    config: TrainConfig, objective: Objective, images: int, output: Path, seed: int
) -> TrainConfig:
    """The training of one method: `images` in the shares of the config's two phases."""
    (mean, own), batch = config.phases, config.loop.batch_size
    first = round(images * mean.images / (mean.images + own.images) / batch) * batch
    first = min(max(first, batch), images - batch)
    phases: tuple[Phase, ...] = (shortened(mean, images),)
    if not isinstance(objective, PlainObjective):
        own = replace(own, objective=objective)
        phases = (shortened(mean, first), shortened(own, images - first))
    network = replace(config.network, times=2 if objective.learns_flow_map else 1)
    return replace(config, network=network, phases=phases, output=str(output), seed=seed)


def student_of(
    config: TrainConfig,
    steps: int,
    images: int,
    teacher: Path,
    output: Path,
    options: Sequence[str] = (),
) -> DistillConfig:
    """The training of a student of `steps` on the images of the second share.

    Its optimizer is that of configs/distill.yaml: a distillation starts from trained weights.
    options: key=value, over that file.
    """
    only = config_of(config, config.phases[1].objective, images, output, config.seed).phases[1]
    base = load_config(DistillConfig, find_config("distill.yaml"), options)
    warmup = min(base.optimizer.warmup_images, only.images // 10)
    return replace(
        base,
        teacher=str(teacher),
        output=str(output),
        teacher_images=images,
        steps=steps,
        seed=config.seed,
        optimizer=replace(base.optimizer, warmup_images=warmup),
        loop=SinglePhaseConfig(images=only.images, **vars(config.loop)),
        ema=config.ema,
        precision=config.precision,
    )
