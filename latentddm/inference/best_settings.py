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
