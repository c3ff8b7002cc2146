"""What tools/compare.py measures: methods, the settings of each, and the cells of the sweep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, cast, get_args

from compare_sweep import Sweep, limited

from latentddm.diffusion.sampling import POWER, GridKind
from latentddm.diffusion.solvers import SOLVERS, evaluations_of, steps_within
from latentddm.engine.atomic_io import read_json
from latentddm.engine.checkpoint import Checkpoint, valid_checkpoints
from latentddm.engine.config import to_plain
from latentddm.engine.errors import UserError
from latentddm.engine.run import BEFORE, RunFolder
from latentddm.inference.generator import (
    RUN_KIND,
    SamplingConfig,
    checkpoint_at,
    flow_map,
    is_student,
    reads_xi,
)
from latentddm.inference.run_settings import sampler_of
from latentddm.inference.sampler import SamplerConfig
from latentddm.inference.xi_scale import cut_scales, scales_of

ALL = "all"


@dataclass(frozen=True)
class Trained:
    """A run at the number of images of its method. weights: sha256 of the averaged weights."""

    run: str
    weights: str
    reads_xi: bool
    flow_map: str | None = None  # the steps that a flow map has learnt
    classes: int = 0  # of the network; it is drawn from in every class in turn
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    student: bool = False  # made for churn 1

    def own_sampling(self, evaluations: int) -> SamplingConfig:
        """What it is sampled by as long as no better settings were measured."""
        if self.student:
            return SamplingConfig(steps=evaluations, churn=1.0)
        return self.sampler.settings(evaluations)


@dataclass(frozen=True)
class Method:
    """A solver with a run at a number of images, or with several that differ in their seed."""

    name: str
    images: int
    solver: str
    runs: tuple[Trained, ...]
    grid: GridKind | None = None  # of its times, in the place of those swept over
    grid_named: bool = False  # the solver is there with another grid too

    @property
    def series(self) -> str:
        """The name of a curve: the same for all checkpoints of a run."""
        solver = f"{self.solver}/{self.grid}" if self.grid_named and self.grid else self.solver
        return self.name if solver == "ddim" else f"{self.name}, {solver}"

    def __str__(self) -> str:
        return f"{self.series} at {self.images:,} images"

    def is_own(self, sampling: SamplingConfig) -> bool:
        """Whether its first run is sampled so as long as no better settings were measured."""
        return sampling == self.runs[0].own_sampling(sampling.steps)


@dataclass(frozen=True)
class Cell:
    """One setting of one method: drawn, decoded and measured as a whole, and not done again."""

    method: Method
    trained: Trained
    sampling: SamplingConfig

    @property
    def setting(self) -> tuple[Any, ...]:
        """All that is swept over but the seeds, and the number of evaluations."""
        sampling = self.sampling
        times = sampling.safety, sampling.grid, sampling.power
        return sampling.churn, *times, sampling.xi_scale, sampling.noise_scale

    def describe(self, protocol: dict[str, Any]) -> dict[str, Any]:
        """All that the numbers depend on, as plain JSON values."""
        sampling = {k: v for k, v in to_plain(self.sampling).items() if k != "batch_size"}
        weights = {"weights": self.trained.weights, "images": self.method.images}
        return {**weights, "sampling": sampling, "protocol": protocol}

    def key(self, protocol: dict[str, Any]) -> str:
        """The name of the cell's file; another weight, setting or protocol has another name."""
        text = json.dumps(self.describe(protocol), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def parse_methods(texts: Sequence[str]) -> list[Method]:
    """Methods from NAME=RUN[,RUN...][@IMAGES][:SOLVER[/GRID],...].

    Several runs are one method, to be averaged: trainings of other seeds. @all: a method for every
    checkpoint, :all: for every solver. UserError for another form, a run without such a
    checkpoint, or a name that stands twice.
    """
    methods = [method for text in texts for method in _parse(text)]
    found = [(method.series, method.images) for method in methods]
    twice = {name for name in found if found.count(name) > 1}
    if twice:
        raise UserError(f"The method {min(twice)[0]!r} is named twice; give it another name.")
    return methods


def _parse(text: str) -> Iterator[Method]:
    name, equals, rest = text.partition("=")
    if not equals or not name or not rest:
        form = "NAME=RUN[,RUN...][@IMAGES][:SOLVER[/GRID],...]"
        raise UserError(f"{text!r} is no method; write {form}.")
    rest, _, solvers = rest.partition(":")
    runs, _, images = rest.partition("@")
    chosen = solvers_of(text, solvers)
    for seen, trained in _checkpoints(runs.split(","), images).items():
        if trained[0].flow_map:  # which has a sampler of its own
            if solvers != ALL and chosen != [("ddim", None, False)]:
                raise UserError(f"{text!r}: {trained[0].run} is a flow map; leave the solver out.")
            yield Method(name, seen, "ddim", trained)
            continue
        for solver, grid, grid_named in chosen:
            yield Method(name, seen, solver, trained, grid, grid_named)


def solvers_of(text: str, solvers: str) -> list[tuple[str, GridKind | None, bool]]:
    """Each SOLVER[/GRID] of the method `text`, and whether the solver has other grids too."""
    words = list(SOLVERS) if solvers == ALL else (solvers or "ddim").split(",")
    chosen = [_solver_and_grid(text, word) for word in words]
    several = [solver for solver, _ in chosen]
    return [(solver, grid, several.count(solver) > 1) for solver, grid in chosen]


def _solver_and_grid(text: str, word: str) -> tuple[str, GridKind | None]:
    """SOLVER or SOLVER/GRID, of the method `text`; UserError for an unknown one."""
    solver, slash, grid = word.partition("/")
    if solver not in SOLVERS:
        raise UserError(f"{text!r}: the solver {solver!r} is none of {', '.join(SOLVERS)}.")
    if slash and grid not in get_args(GridKind):
        raise UserError(f"{text!r}: the grid {grid!r} is none of {', '.join(get_args(GridKind))}.")
    return solver, cast(GridKind, grid) if slash else None


def _checkpoints(runs: Sequence[str], images: str) -> dict[int, tuple[Trained, ...]]:
    """By the number of images: each of the runs then."""
    if images and images != ALL and not images.isdigit():
        raise UserError(f"@{images}: write the number of images seen, or all.")
    found: dict[int, list[Trained]] = {}
    for run in runs:
        folder = RunFolder.open(run, RUN_KIND)
        config = folder.read_config()
        if (config.get("start") or is_student(config)) and not (folder.path / BEFORE).is_file():
            raise UserError(
                f"{run} began with the weights of another run, and its file {BEFORE}, which says "
                "how long that one was trained, is missing; restore it."
            )
        for checkpoint in _checkpoints_of(folder, images):
            described = read_json(checkpoint.path / "state.json")["files"]["ema.safetensors"]
            phase = checkpoint.phase
            draws, learnt = reads_xi(config, phase), flow_map(config, phase)
            one = Trained(
                run,
                described["sha256"],
                draws,
                learnt,
                classes=config["network"]["classes"],
                sampler=sampler_of(config, folder.path, draws, learnt is not None),
                student=is_student(config),
            )
            found.setdefault(checkpoint.images, []).append(one)
    for seen, trained in found.items():
        if len(trained) < len(runs):
            missing = next(run for run in runs if run not in [each.run for each in trained])
            raise UserError(
                f"{missing} has no checkpoint at {seen:,} images, as {trained[0].run} has; runs "
                "that are averaged must have seen as many."
            )
    return {seen: tuple(trained) for seen, trained in found.items()}


def _checkpoints_of(folder: RunFolder, images: str) -> list[Checkpoint]:
    if images == ALL:
        found = sorted(valid_checkpoints(folder.checkpoints), key=lambda each: each.images)
        return found or [checkpoint_at(folder)]  # which refuses a run that has none
    return [checkpoint_at(folder, int(images) if images else None)]


def plan_cells(methods: Sequence[Method], sweep: Sweep, batch_size: int) -> list[Cell]:
    """The cells of a sweep, cheapest first; settings that make no difference stand once."""
    cells = []
    for evaluations in sorted(sweep.evaluations):
        settings = [(m, each) for m in methods for each in _settings(m, evaluations, sweep)]
        for method, sampling in limited(settings, sweep.tries):
            sampling = replace(sampling, batch_size=batch_size)
            cells += _drawn(method, sampling, sweep.seeds)
    return cells


def _drawn(method: Method, sampling: SamplingConfig, seeds: Sequence[int]) -> list[Cell]:
    """A setting with every seed and run of its method."""
    return [
        Cell(method, trained, replace(sampling, seed=seed, label="every" if classes else None))
        for seed, trained in product(seeds, method.runs)
        for classes in [trained.classes]
    ]


def _settings(method: Method, evaluations: int, sweep: Sweep) -> Iterator[SamplingConfig]:
    """The settings of one method at one number of evaluations.

    Churn is DDIM's. The grid of times is for the other solvers and for flow maps of free steps,
    unless the method names one; a power grid comes with each of the exponents. Safety is not for
    flow maps; the scale of xi is for networks that read it, that of the noise for all. In one step
    churn and grid make no difference.
    """
    steps = steps_within(method.solver, evaluations)
    learnt, ddim = method.runs[0].flow_map, method.solver == "ddim"
    churns: tuple[float, ...] = sweep.churn if ddim and not learnt else (0.0,)
    grids: tuple[Any, ...] = (None,) if ddim and learnt != "free" else sweep.grids
    if method.grid is not None:
        grids = (method.grid,)
    powers, safeties = sweep.powers, (0.0,) if learnt else sweep.safety
    if steps == 1:
        churns, grids, powers = churns[:1], grids[:1], (POWER,)
    times = [(grid, p) for grid in grids for p in (powers if grid == "power" else (POWER,))]
    xi_scales = sweep.xi_scales if method.runs[0].reads_xi else (1.0,)
    calls = evaluations_of(method.solver, steps)
    given = [cut_scales(scales_of(each, method.solver, evaluations), calls) for each in xi_scales]
    scales = dict.fromkeys(given)  # in one evaluation a range is its first scale
    settings = product(churns, times, safeties, scales, sweep.noise_scales)
    for churn, (grid, power), safety, xi_scale, noise_scale in settings:
        yield SamplingConfig(
            steps=evaluations,
            churn=churn,
            xi_scale=xi_scale,
            noise_scale=noise_scale,
            safety=safety,
            solver=method.solver,
            grid=grid,
            power=power,
        )


def fresh_cells(
    chosen: Sequence[tuple[Method, SamplingConfig]], methods: Sequence[Method], seeds: int
) -> list[Cell]:
    """The settings chosen, of all runs of their methods, with seeds above the `seeds` first."""
    whole = {(method.series, method.images): method for method in methods}
    return [
        cell
        for method, sampling in chosen
        for cell in _drawn(whole[method.series, method.images], sampling, range(seeds, 2 * seeds))
    ]


def actual_evaluations(cell: Cell) -> int:
    """The network evaluations that a cell really spends: Heun's method makes an odd number."""
    solver = cell.method.solver
    return evaluations_of(solver, steps_within(solver, cell.sampling.steps))
