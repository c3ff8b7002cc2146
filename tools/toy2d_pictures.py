"""The three pictures of the toy: samples, posteriors, spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from toy2d_measures import TIMES, noised, posterior_draws
from toy2d_targets import Target

from latentddm.diffusion.sampling import Denoiser
from latentddm.engine.atomic_io import atomic_path
from latentddm.engine.seeding import torch_generator

EXACT, DDM, DIFFUSION = "#404040", "#1f6fb4", "#d1661f"  # the colours of all pictures
RIVAL = "#5c8a3a"
COLOURS = {"target": EXACT, "DDM": DDM, "diffusion": DIFFUSION}
LABELS = {"DDM": "DDM", "diffusion": "plain diffusion"}


def draw_samples(
    path: Path,
    points: Mapping[str, Mapping[tuple[str, int], Tensor]],
    targets: Mapping[str, Target],
    seed: int,
) -> None:
    """Samples of each model (rows) at each NFE (columns), with the target in the last column."""
    rows = [
        (target, model)
        for target, drawn in points.items()
        for model in dict.fromkeys(model for model, _ in drawn)
    ]
    evaluations = sorted({steps for drawn in points.values() for _, steps in drawn})
    figure, axes = _panels(len(rows), len(evaluations) + 1)
    for line, (name, model) in zip(axes, rows, strict=True):
        target = targets[name]
        shown = [points[name][model, steps] for steps in evaluations]
        truth = target.sample(len(shown[0]), torch_generator(seed, "picture", name))
        for axis, values in zip(line, [*shown, truth], strict=True):
            colour = COLOURS.get("target" if values is truth else model, RIVAL)
            _scatter(axis, values, target, colour)
        line[0].set_ylabel(f"{name}\n{LABELS.get(model, model)}")
    for axis, title in zip(axes[0], [*(f"NFE {n}" for n in evaluations), "target"], strict=True):
        axis.set_title(title)
    _save(figure, path)


def draw_posteriors(
    path: Path,
    networks: Mapping[str, Mapping[str, Denoiser]],
    targets: Mapping[str, Target],
    seed: int,
    draws: int = 1500,
) -> None:
    """Draws of x_0 at one x_t for each of three times: exact, and the DDM's."""
    figure, axes = _panels(2 * len(networks), len(TIMES), size=2.1)
    for line, name in enumerate(networks):
        target = targets[name]
        for column, time in enumerate(TIMES):
            random = torch_generator(seed, "posterior picture", name, column)
            x_t, t = noised(target, time, 1, random)
            exact = target.posterior(x_t, t, draws, random)[0]
            drawn = posterior_draws(networks[name]["DDM"], x_t, t, draws, random)[0]
            mean = posterior_draws(networks[name]["diffusion"], x_t, t, 1, random)[0]
            for axis, values, colour in (
                (axes[2 * line][column], exact, EXACT),
                (axes[2 * line + 1][column], drawn, DDM),
            ):
                _scatter(axis, values, target, colour)
                axis.plot(*mean.T, "X", color=DIFFUSION, markeredgecolor="white", markersize=9)
                axis.plot(*x_t.T, "P", color="black", markeredgecolor="white", markersize=9)
                axis.set_title(f"t = {time}" if axis is axes[0][column] else "")
        axes[2 * line][0].set_ylabel(f"{name}\nexact posterior")
        axes[2 * line + 1][0].set_ylabel(f"{name}\nDDM's draws")
    figure.supxlabel("black: x_t; orange: plain diffusion, the mean", fontsize=9)
    _save(figure, path)


def draw_spread(path: Path, rows: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """The standard deviation of x_0 given x_t against t, exact and the DDM's."""
    figure = Figure(figsize=(4.2 * len(rows), 3.2), layout="constrained")
    axes = figure.subplots(1, len(rows), squeeze=False)[0]
    for axis, (name, line) in zip(axes, rows.items(), strict=True):
        times = [row["t"] for row in line]
        axis.plot(times, [row["exact"] for row in line], color=EXACT, linewidth=5, alpha=0.35)
        axis.plot(times, [row["DDM"] for row in line], "o-", color=DDM, markersize=3)
        axis.axhline(0, color=DIFFUSION)
        axis.set(title=name, xlabel="t (0 data, 1 noise)", ylabel="posterior standard deviation")
        axis.legend(["exact", "DDM", "plain diffusion"], frameon=False)
    _save(figure, path)


def _panels(rows: int, columns: int, size: float = 1.5) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(size * columns, size * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _scatter(axis: Axes, points: Tensor, target: Target, colour: str) -> None:
    points = points[:2000]
    axis.scatter(points[:, 0], points[:, 1], s=1.5, color=colour, alpha=0.6, linewidths=0)
    limit = 2.2 * target.scale if target.name == "checkerboard" else 1.7 * target.scale
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140)
