"""`sampling.sample`, step by step, as a scheduler of diffusers."""

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
from latentddm.diffusion.sampling import GridKind, check_times, normal_like, time_grid
from latentddm.diffusion.schedules import make_schedule


@dataclass
class DistributionalSchedulerOutput(BaseOutput):
    """prev_sample: x_s; pred_original_sample: the draw of x_0 that led there. Both [B, ...]."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class DistributionalScheduler(SchedulerMixin, ConfigMixin):
    """Giant steps with draws of x_0: algorithm 2 of arXiv 2502.02483 behind diffusers' interface.

    The model predicts x_0 itself (`prediction_type` "sample"). `timesteps` are t times
    `num_train_timesteps`, and `sigmas` the times t, as in diffusers' flow-matching schedulers.
    churn: 0 DDIM ... 1 DDPM; grid: spacing of the times; safety: their distance from 1 and 0;
    schedule: a name in `diffusion.schedules.SCHEDULES`, that of the network. ValueError for others.
    """

    order = 1
    _compatibles: ClassVar[list[str]] = []  # no other scheduler works on draws

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        churn: float = 0.0,
        grid: GridKind = "uniform",
        safety: float = 0.0,
        prediction_type: str = "sample",
        schedule: str = "flow",
    ) -> None:
        if prediction_type != "sample":
            raise ValueError(f"prediction_type must be 'sample', not {prediction_type!r}.")
        if num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1, not {num_train_timesteps}.")
        self.schedule = make_schedule(schedule)
        check_times(time_grid(1, grid, safety), churn)
        self.init_noise_sigma = 1.0  # at t = 1 the sample is standard normal
        self.num_inference_steps: int | None = None
        self._step: int | None = None
        self._set_times(time_grid(num_train_timesteps, grid, safety, self.schedule), "cpu")

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
        else:
            assert num_inference_steps is not None
            grid, safety = self.config["grid"], self.config["safety"]
            times = time_grid(num_inference_steps, grid, safety, self.schedule)
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
        self._step = index + 1
        if self._step == self.num_inference_steps:
            arrived = model_output
        else:
            arrived = self._bridge(sample, model_output, index, generator)
        if not return_dict:
            return arrived, model_output
        return DistributionalSchedulerOutput(arrived, model_output)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t noise at each sample's timestep [B]."""
        times = timesteps.to(original_samples.device, torch.float64) / len(self)
        return corrupt(original_samples, times, noise, self.schedule)

    def _bridge(
        self,
        x_t: Tensor,
        x0: Tensor,
        index: int,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> Tensor:
        # In float32 even for a network in half precision: rounding adds up over the steps.
        precise = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        t, s = self._times[index : index + 2].to(precise.dtype).to(precise.device)
        churn = self.config["churn"]
        noise = normal_like(precise, generator) if churn > 0 else torch.zeros_like(precise)
        x_s = bridge_step(precise, x0.to(precise.dtype), t, s, noise, self.schedule, churn)
        return x_s.to(x_t.dtype)

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
