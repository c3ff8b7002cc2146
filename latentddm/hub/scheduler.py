"""`solvers.solve`, step by step, as a scheduler of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from latentddm.diffusion.process import bridge_step, corrupt
from latentddm.diffusion.sampling import POWER, GridKind, check_times, normal_like
from latentddm.diffusion.schedules import make_schedule
from latentddm.diffusion.solvers import (
    ONE_EVALUATION_A_STEP,
    SolverSteps,
    check_noise,
    evaluation_times,
    solver_grid,
)


@dataclass
class DistributionalSchedulerOutput(BaseOutput):
    """prev_sample: x_s; pred_original_sample: the draw of x_0 that led there. Both [B, ...]."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class DistributionalScheduler(SchedulerMixin, ConfigMixin):
    """Giant steps with draws of x_0: algorithm 2 of arXiv 2502.02483 behind diffusers' interface.

    The model predicts x_0 itself (`prediction_type` "sample"). `timesteps` are t times
    `num_train_timesteps`, and `sigmas` the times t, as in diffusers' flow-matching schedulers.
    solver: that algorithm, "ddim", with churn 0 DDIM ... 1 DDPM, or another solver of one
    evaluation a step; grid: spacing of the times, None for the solver's own, with the exponent
    `power`; safety: their distance from 1 and 0; noise_scale: of the noise at t = 1, 1 is exact;
    schedule: a name in `diffusion.schedules.SCHEDULES`, that of the network. ValueError for others.
    """

    order = 1
    _compatibles: ClassVar[list[str]] = []  # no other scheduler works on draws

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        churn: float = 0.0,
        grid: GridKind | None = None,
        safety: float = 0.0,
        prediction_type: str = "sample",
        schedule: str = "flow",
        solver: str = "ddim",
        power: float = POWER,
        noise_scale: float = 1.0,
    ) -> None:
        if prediction_type != "sample":
            raise ValueError(f"prediction_type must be 'sample', not {prediction_type!r}.")
        if num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1, not {num_train_timesteps}.")
        if solver not in ONE_EVALUATION_A_STEP:
            known = ", ".join(ONE_EVALUATION_A_STEP)
            raise ValueError(f"solver must be one of {known}, not {solver!r}.")
        check_noise(solver, churn, noise_scale)
        self.schedule = make_schedule(schedule)
        check_times(self._grid(1), churn)
        self.init_noise_sigma = noise_scale  # times standard normal noise: the sample at t = 1
        self.num_inference_steps: int | None = None
        self._step: int | None = None
        self._solver: SolverSteps | None = None
        self._set_times(self._grid(num_train_timesteps), "cpu")

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    @property
    def step_index(self) -> int | None:
        """The number of the next step; None before the first."""
        return self._step

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Choose the times of a sampling run: a number of steps, or the decreasing times t.

        sigmas: steps + 1 times, the last one being where sampling ends. ValueError for others.
        """
        if (num_inference_steps is None) == (sigmas is None):
            raise ValueError("Give either num_inference_steps or sigmas.")
        if sigmas is not None:
            times = torch.as_tensor(sigmas, dtype=torch.float64)
            check_times(times)
            if self.config["solver"] != "ddim":
                times = evaluation_times(times, self.config["solver"], self.schedule)
        else:
            assert num_inference_steps is not None
            times = self._grid(num_inference_steps)
        self.num_inference_steps = len(times) - 1
        self._step = None
        self._set_times(times, device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The sample itself: the network takes x_t as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DistributionalSchedulerOutput | tuple[Tensor, Tensor]:
        """From x_t, `sample`, and a draw of x_0, `model_output`, to x_s; both [B, ...].

        `timestep` is one of `timesteps`. The last step returns the draw itself, as `sample` does.
        A list of generators holds one for each sample; they are used where churn > 0 only.
        """
        if self.num_inference_steps is None:
            raise ValueError("Call set_timesteps before step.")
        index = self._index_of(timestep) if self._step is None else self._step
        if index >= self.num_inference_steps:
            raise ValueError("All steps are done; call set_timesteps to sample again.")
        if self._step is None and self.config["solver"] != "ddim":
            self._solver = SolverSteps(self.config["solver"], self._times, self.schedule, index)
        self._step = index + 1
        if self._step == self.num_inference_steps:
            arrived = model_output
        else:
            arrived = self._advance(sample, model_output, index, generator)
        if not return_dict:
            return arrived, model_output
        return DistributionalSchedulerOutput(arrived, model_output)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t noise at each sample's timestep [B]."""
        times = timesteps.to(original_samples.device, torch.float64) / len(self)
        return corrupt(original_samples, times, noise, self.schedule)

    def _advance(
        self,
        x_t: Tensor,
        x0: Tensor,
        index: int,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> Tensor:
        # In float32 even for a network in half precision: rounding adds up over the steps.
        precise = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        x0, churn, solver = x0.to(precise.dtype), self.config["churn"], self._solver
        fresh = solver.stochastic if solver is not None else churn > 0
        noise = normal_like(precise, generator) if fresh else torch.zeros_like(precise)
        if solver is not None:
            return solver.step(index, precise, x0, noise).to(x_t.dtype)
        t, s = self._times[index : index + 2].to(precise.dtype).to(precise.device)
        return bridge_step(precise, x0, t, s, noise, self.schedule, churn).to(x_t.dtype)

    def _grid(self, steps: int) -> Tensor:
        """The steps + 1 times of the config's grid."""
        solver, grid, safety, power = (
            self.config[name] for name in ("solver", "grid", "safety", "power")
        )
        return solver_grid(solver, steps, grid, safety, power, self.schedule)

    def _set_times(self, times: Tensor, device: torch.device | str | None) -> None:
        self._times = times  # float64, on the CPU
        self.sigmas = times.float().to(device)
        self.timesteps = (times[:-1] * len(self)).float().to(device)

    def _index_of(self, timestep: Tensor | float) -> int:
        """Sampling may begin at any of the timesteps, as image-to-image does."""
        distance = (self.timesteps - float(timestep)).abs()
        index = int(distance.argmin())
        if distance[index] > 1e-3 * len(self):
            raise ValueError(f"{float(timestep)} is not one of the timesteps of this run.")
        return index
