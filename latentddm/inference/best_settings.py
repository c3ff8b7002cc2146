"""The best settings measured for a run, by number of evaluations, kept in its folder.

`tools/compare.py --keep-best` and a distillation write sampling.json; `run_settings` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentddm.engine.atomic_io import read_json, write_json
from latentddm.engine.errors import UserError
from latentddm.inference.settings import SamplingConfig

FILE_NAME = "sampling.json"
FIELDS = ("solver", "grid", "power", "churn", "safety", "xi_scale", "noise_scale")
"""The fields of a `SamplingConfig` that are measured, and go together."""


def write_best_settings(
    run: Path, phase: int, chosen_by: str, best: Mapping[int, SamplingConfig]
) -> None:
    """Write the best settings by number of evaluations, in the place of earlier ones.

    phase: of the training, whose weights they are for; chosen_by: the distance and its reference,
    for people.
    """
    settings = {
        str(steps): {name: getattr(config, name) for name in FIELDS}
        for steps, config in sorted(best.items())
    }
    values = {"chosen_by": chosen_by, "phase": phase, "settings": settings}
    write_json(run / FILE_NAME, values)


def best_settings(run: Path, phase: int) -> dict[int, SamplingConfig]:
    """The best settings by number of evaluations for the weights of a phase of a run.

    Empty if none were measured, or those of another phase, which may have trained a mean where
    this one trains draws. UserError if the file is damaged.
    """
    path = run / FILE_NAME
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
        found = content["settings"] if content["phase"] == phase else {}
        return {int(steps): _from_json(int(steps), values) for steps, values in found.items()}
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, and measure the settings again."
        ) from None


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
