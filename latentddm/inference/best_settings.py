"""The best settings measured for a run, by number of evaluations, kept in its folder.

`tools/compare.py --keep-best`, a distillation and the demo write sampling.json; the verbs sample,
play and export read it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentddm.engine.atomic_io import read_json, write_json
from latentddm.engine.errors import UserError
from latentddm.inference.settings import SamplingConfig
from latentddm.inference.xi_scale import ScaleRange, scales_of

_log = logging.getLogger("latentddm")

FILE_NAME = "sampling.json"
FIELDS = ("solver", "grid", "power", "churn", "safety", "xi_scale", "noise_scale")
"""The fields of a `SamplingConfig` that are measured, and go together."""
STEPS = SamplingConfig().steps


def write_best_settings(run: Path, chosen_by: str, best: Mapping[int, SamplingConfig]) -> None:
    """Write the best settings by number of evaluations, in the place of earlier ones.

    chosen_by: the distance and its reference, for people.
    """
    settings = {
        str(steps): {name: getattr(config, name) for name in FIELDS}
        for steps, config in sorted(best.items())
    }
    write_json(run / FILE_NAME, {"chosen_by": chosen_by, "settings": settings})


def best_settings(run: Path) -> dict[int, SamplingConfig]:
    """The best settings of a run by number of evaluations; empty if none were measured.

    UserError if the file is damaged.
    """
    path = run / FILE_NAME
    if not path.is_file():
        return {}
    try:
        return {
            int(steps): _from_json(int(steps), values)
            for steps, values in read_json(path)["settings"].items()
        }
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, and measure the settings again."
        ) from None


def usual_steps(best: Mapping[int, SamplingConfig]) -> int:
    """The evaluations to begin with: 4, or of a run with settings for others the nearest."""
    return min(best or (STEPS,), key=lambda steps: abs(steps - STEPS))


def chosen_settings(run: Path, steps: int, **given: Any) -> SamplingConfig:
    """The settings given; if none of FIELDS is among them, with the run's best for `steps`.

    UserError as of `best_settings`.
    """
    own = {} if any(name in given for name in FIELDS) else best_settings(run)
    if steps in own:
        _log.info("The best settings for %d evaluations are of %s.", steps, run / FILE_NAME)
    return replace(own.get(steps, SamplingConfig(steps=steps)), **given)


def nearest_settings(
    best: Mapping[int, SamplingConfig], solver: str, evaluations: int
) -> SamplingConfig:
    """The best settings of a solver, those of the nearest number of evaluations that has some.

    Scales of xi go evenly from the first to the last then. The exact settings if there are none.
    """
    own = {count: config for count, config in best.items() if config.solver == solver}
    if not own:
        return SamplingConfig()
    nearest = min(own, key=lambda count: abs(count - evaluations))
    found = own[nearest]
    if nearest == evaluations or not isinstance(found.xi_scale, tuple):
        return found
    between = ScaleRange(found.xi_scale[0], found.xi_scale[-1])
    return replace(found, xi_scale=scales_of(between, solver, evaluations))


def _from_json(steps: int, values: Mapping[str, Any]) -> SamplingConfig:
    scale = values["xi_scale"]
    return SamplingConfig(
        steps=steps,
        solver=str(values["solver"]),
        grid=values["grid"],
        xi_scale=tuple(map(float, scale)) if isinstance(scale, list) else float(scale),
        power=float(values["power"]),
        churn=float(values["churn"]),
        safety=float(values["safety"]),
        noise_scale=float(values["noise_scale"]),
    )
