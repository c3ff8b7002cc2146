"""Multistep distillation by moment matching: its times and its two losses, nothing else.

A student draws x~ = g(z_t), which is noised to z_s ~ q(z_s | z_t, x~) with s < t. Its
distribution is right when E[x~ | z_s] is the teacher's E[x | z_s] at every s; an auxiliary network
learns the former.

Source: Salimans et al., "Multistep Distillation of Diffusion Models via Moment Matching",
arXiv 2406.04103, algorithm 2. Losses are per sample, [B]; the weight w(s) is 1.
"""

from __future__ import annotations

from torch import Tensor

from latentddm.diffusion.process import bridge_step
from latentddm.diffusion.schedules import Schedule
from latentddm.training.objective import mean_square


def distillation_times(uniform: Tensor, gap: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(t, s), [B] each: s is uniform, and t lies above it by at most 1 / steps, at most at 1.

    uniform, gap: uniform in [0, 1), [B]. The student of k steps learns steps of up to 1 / k.
    """
    return (uniform + gap / steps).clamp_max(1), uniform


def renoise(
    z_t: Tensor, drawn: Tensor, t: Tensor, s: Tensor, noise: Tensor, schedule: Schedule
) -> Tensor:
    """z_s ~ q(z_s | z_t, x~): the stochastic step that the student is also sampled with."""
    return bridge_step(z_t, drawn, t, s, noise, schedule, churn=1.0)


def auxiliary_loss(auxiliary: Tensor, drawn: Tensor, teacher: Tensor) -> Tensor:
    """|x~ - g_phi(z_s)|^2 + |g_theta(z_s) - g_phi(z_s)|^2, means over a sample, [B].

    Its minimiser lies half-way between E[x~ | z_s] and the teacher, which keeps it near both.
    """
    return mean_square(drawn - auxiliary) + mean_square(teacher - auxiliary)


def student_loss(drawn: Tensor, auxiliary: Tensor, teacher: Tensor) -> Tensor:
    """x~ . (g_phi(z_s) - g_theta(z_s)) over the dimension, [B]; the gradient goes to x~ only."""
    return (drawn * (auxiliary - teacher).detach()).flatten(1).mean(1)


def moment_gap(auxiliary: Tensor, teacher: Tensor) -> Tensor:
    """The root mean square of g_phi(z_s) - g_theta(z_s), [B]; zero when the moments match."""
    return mean_square(auxiliary - teacher).sqrt()
