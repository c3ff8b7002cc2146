"""Which schedulers fit a network's noise schedule, and in which form they take x_0."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch

from latentddm.diffusion.flow_maps import dyadic_times
from latentddm.diffusion.process import Prediction
from latentddm.diffusion.schedules import Schedule
from latentddm.hub.scheduler import DistributionalScheduler


def scheduler_prediction(scheduler: Any, schedule: Schedule) -> Prediction:
    """The form in which a scheduler takes x_0.

    ValueError for a scheduler of another noise schedule than the network's: a
    DistributionalScheduler must have the same, and diffusers' own must work on flow sigmas.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if isinstance(scheduler, DistributionalScheduler):
        own = config.get("schedule", "flow")
        if own != schedule.name:
            raise ValueError(
                f"The scheduler's schedule is {own!r}, but the network was trained with "
                f"{schedule.name!r}; use DistributionalScheduler(schedule={schedule.name!r})."
            )
        return "x0"
    if schedule.name != "flow":
        raise ValueError(
            f"{name} cannot drive a network of the schedule {schedule.name!r}: in a pipeline, "
            "diffusers' schedulers step on flow sigmas (x_t = (1 - t) x_0 + t eps); use "
            f"DistributionalScheduler(schedule={schedule.name!r}), or `latentddm sample --solver`, "
            "which has these solvers for every schedule."
        )
    if name.startswith("FlowMatch"):
        return "v"
    prediction = {"sample": "x0", "flow_prediction": "v"}.get(config.get("prediction_type"))
    if not config.get("use_flow_sigmas") or prediction is None:
        raise ValueError(
            f"{name} is not set for this process (x_t = (1 - t) x_0 + t eps); make it with "
            "use_flow_sigmas=True and prediction_type='flow_prediction', or use "
            "DistributionalScheduler."
        )
    return cast(Prediction, prediction)


def set_flow_map_times(scheduler: Any, learnt: str, steps: int) -> None:
    """Set the times of a flow map's steps; learnt: "free" or "dyadic".

    ValueError for a scheduler whose steps are not those of a flow map: DDIM from 1 to 0.
    """
    config = scheduler.config
    exact = isinstance(scheduler, DistributionalScheduler)
    if not exact or config["solver"] != "ddim" or config["churn"] or config["safety"]:
        raise ValueError(
            "The network is a flow map, which goes with DistributionalScheduler(solver='ddim') at "
            f"churn 0 and safety 0 alone, not with this {type(scheduler).__name__}."
        )
    if learnt == "dyadic":
        scheduler.set_timesteps(sigmas=dyadic_times(steps).tolist())
    else:
        scheduler.set_timesteps(steps)


def step_arguments(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """`generator`, where the scheduler's step has such an argument."""
    accepted = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": list(generators)} if accepted else {}
