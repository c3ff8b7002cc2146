"""Mean flows: the average velocity of a step by a differential identity.

Source: Geng, Deng, Bai, Kolter, He, "Mean Flows for One-step Generative Modeling", arXiv
2505.13447 (its r is our s), and "Improved Mean Flows", arXiv 2512.02012.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from latentddm.diffusion.process import corrupt, expand_time
from latentddm.diffusion.schedules import Schedule
from latentddm.networks.attention import forward_derivative
from latentddm.networks.config import NetworkConfig
from latentddm.networks.layers import HIGHEST_FREQUENCY, SMOOTH_FREQUENCY
from latentddm.training.objective import ObjectiveTerms, mean_square
from latentddm.training.protocols import Evaluator, RandomNumbers
from latentddm.training.rivals.flow_map import (
    FlowMapObjective,
    flow_map_terms,
    velocity_of,
)


def mean_flow_target(velocity: Tensor, slope: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """u = v - (t - s) du/dt, [B, ...] (the MeanFlow identity, section 4.1).

    From (t - s) u = int_s^t v dtau, differentiated by t along the trajectory. slope: du/dt = v .
    grad_x u + d_t u, of the network as it is. With the conditional velocity eps - x_0 in the place
    of v the target is right on average, as it is linear in v.
    """
    return velocity - expand_time(t - s, velocity) * slope


def adaptive_weight(error: Tensor, power: float, floor: float) -> Tensor:
    """1 / (||error||^2 + floor)^power, [B], without gradient (the paper's loss metric).

    error: mean squares [B]; power 0 is the squared error, 1/2 like a pseudo-Huber loss.
    """
    return (error.detach() + floor) ** -power


@dataclass(frozen=True, kw_only=True)
class MeanFlowObjective(FlowMapObjective):
    """MeanFlow: (t, s) as two draws of a time in order, s = t for a share of the samples.

    improved: the derivative is taken along the velocity of the network, u(x_t, t, t), in the place
    of eps - x_0, so that the regression's input is x_t alone (arXiv 2512.02012, section 4.1); its
    loss of v is this one, as their gradients are the same. One evaluation more.
    """

    derivatives: ClassVar[bool] = True

    kind: Literal["mean_flow"] = "mean_flow"
    flow_map: Literal["free"] = "free"
    time_mean: float = -0.4
    velocity_share: float = 0.75  # of samples with s = t
    improved: bool = False
    adaptive_power: float = 1.0
    adaptive_floor: float = 1e-3

    def __post_init__(self) -> None:
        """ValueError names a setting out of range."""
        super().__post_init__()
        if not 0 <= self.velocity_share < 1:
            raise ValueError(f"velocity_share must lie in [0, 1), not {self.velocity_share}")
        if not (self.adaptive_power >= 0 and self.adaptive_floor > 0):
            raise ValueError(
                "adaptive_power must be at least 0 and adaptive_floor above 0, not "
                f"{self.adaptive_power} and {self.adaptive_floor}"
            )

    def check_network(self, network: NetworkConfig, schedule: str) -> None:
        if (network.time_frequency or HIGHEST_FREQUENCY) > SMOOTH_FREQUENCY:
            raise ValueError(
                f"kind {self.kind} takes derivatives by t, which the sines of its highest "
                f"frequencies would bury; set network.time_frequency to {SMOOTH_FREQUENCY:g}"
            )
        super().check_network(network, schedule)

    def numbers(self, random: RandomNumbers, x0: Tensor) -> dict[str, Tensor]:
        """t, s and noise."""
        one, other = self.times(random.normal()), self.times(random.normal())
        noise, uniform = random.normal(*x0.shape[1:]), random.uniform()
        t = torch.maximum(one, other)
        s = torch.where(uniform < self.velocity_share, t, torch.minimum(one, other))
        return {"t": t, "s": s, "noise": noise}

    def evaluate(
        self,
        network: Evaluator,
        x0: Tensor,
        numbers: Mapping[str, Tensor],
        global_x0: Tensor,
        schedule: Schedule,
    ) -> ObjectiveTerms:
        """w ||u - sg(v - (t - s) du/dt)||^2 / D, [B]; sg: without gradient."""
        t, s, noise = numbers["t"], numbers["s"], numbers["noise"]
        x_t = corrupt(x0, t, noise, schedule)
        target, stepping = noise - x0, s < t
        rows = stepping.nonzero()[:, 0]
        if len(rows):
            slope = self._slope(network.on(rows), x_t[rows], t[rows], s[rows], target[rows])
            stepped = mean_flow_target(target[rows], slope, t[rows], s[rows])
            target = target.index_copy(0, rows, stepped.to(target.dtype))
        error = mean_square(velocity_of(network.with_gradient, x_t, t, s) - target)
        weight = adaptive_weight(error, self.adaptive_power, self.adaptive_floor)
        return flow_map_terms(self.weight(t, schedule) * weight * error, error)

    def _slope(
        self, network: Evaluator, x_t: Tensor, t: Tensor, s: Tensor, velocity: Tensor
    ) -> Tensor:
        """du/dt along the velocity given, or along the network's own if `improved`."""
        if self.improved:
            with torch.no_grad():
                velocity = velocity_of(network.current, x_t, t, t)

        def u(x: Tensor, time: Tensor) -> Tensor:
            return velocity_of(network.current, x, time, s)

        return forward_derivative(u, (x_t, t), (velocity, torch.ones_like(t)))[1]
