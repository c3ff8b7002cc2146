"""A distilled student draws from the data in few steps; the teacher's mean does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latentddm.diffusion.process import corrupt
from latentddm.diffusion.sampling import sample, time_grid
from latentddm.diffusion.schedules import FlowSchedule
from latentddm.training.moment_matching import (
    auxiliary_loss,
    distillation_times,
    moment_gap,
    renoise,
    student_loss,
)

SCHEDULE = FlowSchedule()
MEAN, VARIANCE = torch.tensor([1.0, -1.0]).double(), torch.tensor([0.25, 1.0]).double()


def data(count: int, generator: torch.Generator) -> Tensor:
    return MEAN + VARIANCE.sqrt() * normal(count, generator)


def normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 2, generator=generator, dtype=torch.float64)


def posterior(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of p(x | z_t) for Gaussian data, both [B, 2]."""
    alpha, sigma = (1 - t)[:, None], t[:, None]
    gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    return MEAN + gain * (z - alpha * MEAN), VARIANCE * (1 - alpha * gain)


class Affine(nn.Module):
    """The teacher's mean plus a(t) z + b(t) + c(t) xi, polynomials of t for each coordinate."""

    def __init__(self, degree: int, spread: float = 0.0) -> None:
        super().__init__()
        self.powers = torch.arange(degree + 1)
        self.coefficients = nn.Parameter(torch.zeros(3, degree + 1, 2, dtype=torch.float64))
        self.coefficients.data[2, 0] = spread

    def forward(self, z: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        powers = (2 * t[:, None] - 1) ** self.powers
        a, b, c = torch.einsum("bd,kdc->kbc", powers, self.coefficients)
        return posterior(z, t)[0] + a * z + b + c * xi


def test_the_exact_posterior_is_a_fixed_point_and_the_mean_is_none() -> None:
    """E[x~ | z_s] by regression on z_s: the teacher's for a draw, another for the mean."""
    count, generator = 50_000, torch.Generator().manual_seed(0)
    t, s = (torch.full((count,), value, dtype=torch.float64) for value in (0.9, 0.5))
    z_t = corrupt(data(count, generator), t, normal(count, generator), SCHEDULE)
    mean, variance = posterior(z_t, t)
    gaps = {}
    for name, spread in (("draw", variance.sqrt()), ("mean", 0.0)):
        drawn = mean + spread * normal(count, generator)
        z_s = renoise(z_t, drawn, t, s, normal(count, generator), SCHEDULE)
        columns = torch.cat([z_s, torch.ones(count, 1).double()], 1)
        auxiliary = columns @ torch.linalg.lstsq(columns, drawn).solution
        gaps[name] = float(moment_gap(auxiliary, posterior(z_s, s)[0]).mean())
    assert gaps["draw"] < 0.02
    assert gaps["mean"] > 0.1


def test_training_ends_where_the_student_draws_from_the_data() -> None:
    """From pure noise, so that the fixed point is unique: x~ ~ N(MEAN, VARIANCE).

    (Over mixed t the auxiliary averages over t, as in the paper, and other students match too.)
    """
    batch, total, generator = 512, 800, torch.Generator().manual_seed(1)
    student, auxiliary = Affine(degree=0, spread=0.05), Affine(degree=4)
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=rate, betas=(0.5, 0.99))
        for network, rate in ((auxiliary, 0.1), (student, 0.02))
    ]
    for step in range(total):
        uniform = torch.rand(batch, generator=generator, dtype=torch.float64)
        t, s = distillation_times(uniform, torch.ones_like(uniform), steps=1)  # t = 1 always
        z_t, xi, noise = (normal(batch, generator) for _ in range(3))
        drawn = student(z_t, t, xi)
        z_s = renoise(z_t, drawn.detach(), t, s, noise, SCHEDULE)
        teacher, unused = posterior(z_s, s)[0], torch.zeros_like(z_s)

        auxiliary_loss(auxiliary(z_s, s, unused), drawn.detach(), teacher).mean().backward()
        optimizers[0].step()
        student_loss(drawn, auxiliary(z_s, s, unused), teacher).mean().backward()
        optimizers[1].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] *= 0.996
        if step == 0:
            _, before = moments_in_one_step(student)
    mean, variance = moments_in_one_step(student)
    assert float((before / VARIANCE).max()) < 0.1  # the teacher's mean is one point
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.05)
    torch.testing.assert_close(variance / VARIANCE, torch.ones(2).double(), rtol=0, atol=0.1)


def moments_in_one_step(student: nn.Module) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    out = sample(student, normal(20_000, generator), time_grid(1), generator=generator)
    return out.mean(0), out.var(0)


def test_losses_by_hand() -> None:
    drawn, auxiliary, teacher = (torch.tensor([[v, 0.0]]) for v in (3.0, 1.0, 2.0))
    drawn.requires_grad_()
    auxiliary.requires_grad_()
    assert auxiliary_loss(auxiliary, drawn, teacher).item() == pytest.approx((4 + 1) / 2)
    loss = student_loss(drawn, auxiliary, teacher)
    assert loss.item() == pytest.approx(3 * (1 - 2) / 2)
    loss.sum().backward()
    assert drawn.grad is not None
    assert drawn.grad.tolist() == [[-0.5, 0.0]]
    assert auxiliary.grad is None
    assert moment_gap(auxiliary, teacher).item() == pytest.approx(0.5**0.5)


def test_times_lie_within_one_step_and_reach_pure_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform, gap = torch.rand(2, 10_000, generator=generator)
    t, s = distillation_times(uniform, gap, 4)
    assert bool((t >= s).all())
    assert float((t - s).max()) <= 0.25
    assert float((t == 1).float().mean()) == pytest.approx(1 / 8, abs=0.01)  # E gap / k
