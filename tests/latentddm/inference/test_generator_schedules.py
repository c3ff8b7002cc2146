"""A generator samples in the schedule of its network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import LEVELS, gaussian
from torch import Tensor

from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.inference.latent_space import LatentSpace

VARIANCE, COUNT = 0.25, 4000
SPACE = LatentSpace((1, 2, 2), (0.0,), (1.0,), "none", "none")


class ExactNetwork:
    """Draws from the posterior of N(0, .25 I), or its mean, in a schedule."""

    device = torch.device("cpu")

    def __init__(self, schedule: str, prediction: str = "v", draws: bool = True) -> None:
        self.config: dict[str, Any] = {
            "schedule": schedule,
            "prediction": prediction,
            "classes": 0,
        }
        self.target = gaussian(VARIANCE, 4, LEVELS[schedule])
        self.draws = draws
        self.times: list[float] = []

    def __call__(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        self.times.append(float(t[0]))
        _, mean, variance = self.target.posterior(x_t.flatten(1).double(), t.double())
        noise = variance.sqrt() * xi.flatten(1) if self.draws else 0.0
        return (mean[:, 0] + noise).reshape(x_t.shape).to(x_t.dtype)


@pytest.mark.parametrize("schedule", LEVELS)
@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_exact_draws_end_in_the_data_distribution(churn: float, schedule: str) -> None:
    network: Any = ExactNetwork(schedule)
    config = SamplingConfig(steps=3, churn=churn, batch_size=COUNT)
    drawn = Generator(network, SPACE, 0).draw(COUNT, config)
    assert abs(float(drawn.var()) / VARIANCE - 1) < 4 * (2 / (4 * COUNT)) ** 0.5


@pytest.mark.parametrize("schedule", LEVELS)
@pytest.mark.parametrize("solver", ["dpmsolver++", "unipc", "heun"])
def test_solvers_bring_the_mean_to_the_data_distribution(solver: str, schedule: str) -> None:
    network: Any = ExactNetwork(schedule, draws=False)
    config = SamplingConfig(steps=31, solver=solver, batch_size=COUNT)
    drawn = Generator(network, SPACE, 0).draw(COUNT, config)
    assert float(drawn.var()) == pytest.approx(VARIANCE, rel=0.05)


@pytest.mark.parametrize("schedule", LEVELS)
def test_a_network_that_predicts_eps_is_not_evaluated_at_pure_noise(schedule: str) -> None:
    network: Any = ExactNetwork(schedule, prediction="eps")
    Generator(network, SPACE, 0).draw(1, SamplingConfig(steps=2))
    alpha, sigma = LEVELS[schedule](torch.tensor(network.times[0], dtype=torch.float64))
    assert float(sigma / alpha) == pytest.approx(999, rel=1e-3)
