"""Guidance extrapolates exactly, and labels guide a network that has learnt them."""

from __future__ import annotations

import pytest
import torch
from oracles import LEVELS, Levels, Mixture
from torch import Tensor, nn

from latentddm.diffusion.guidance import GuidedDenoiser, drop_labels
from latentddm.diffusion.process import corrupt, to_x0
from latentddm.diffusion.sampling import sample, time_grid
from latentddm.diffusion.schedules import SCHEDULES, FlowSchedule, Schedule, make_schedule
from latentddm.scores import energy_score

CENTRES, VARIANCE = torch.tensor([[-2.0], [2.0]], dtype=torch.float64), 0.25
NONE = 2  # the label of no class
ALL = [pytest.param(make_schedule(name), LEVELS[name], id=name) for name in SCHEDULES]


def handmade(x_t: Tensor, t: Tensor, xi: Tensor | None, labels: Tensor) -> Tensor:
    """Depends on all of its inputs, on the labels in no linear way."""
    x0 = x_t * t[:, None] + 10.0 * labels[:, None] ** 2
    return x0 if xi is None else x0 + (1 + labels[:, None]) * xi


class ExactClasses:
    """Draws from p(x_0 | x_t, label) of two Gaussian classes; NONE: of both with equal chance."""

    def __init__(self, levels: Levels) -> None:
        equal = torch.full((2,), 0.5, dtype=torch.float64)
        self.both = Mixture(equal, CENTRES, VARIANCE * torch.ones(2).double(), levels)
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, x_t: Tensor, t: Tensor, xi: Tensor, labels: Tensor) -> Tensor:
        weights, means, variances = self.both.posterior(x_t, t)
        chosen = torch.multinomial(weights, 1, generator=self.generator)[:, 0]
        component = torch.where(labels == NONE, chosen, labels)[:, None]
        mean = means.gather(1, component[..., None])[:, 0]
        return mean + variances.gather(1, component).sqrt() * xi


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 2.5])
def test_guidance_is_the_extrapolation_from_no_label_with_one_xi_for_both(guidance: float) -> None:
    seen: list[Tensor | None] = []

    def recording(x_t: Tensor, t: Tensor, xi: Tensor | None, labels: Tensor) -> Tensor:
        seen.append(xi)
        return handmade(x_t, t, xi, labels)

    generator = torch.Generator().manual_seed(0)
    x_t, xi = torch.randn(2, 3, 5, generator=generator)
    t = torch.rand(3, generator=generator)
    label = torch.tensor([0, 3, 1])
    guided = GuidedDenoiser(recording, label, classes=4, guidance=guidance)
    for noise in (xi, None):  # None: the mean
        none = handmade(x_t, t, noise, torch.full((3,), 4))
        with_label = handmade(x_t, t, noise, label)
        found = guided(x_t, t, noise)
        torch.testing.assert_close(found, none + guidance * (with_label - none))
        assert len(seen) == 1  # both branches in one call
        both = seen.pop()
        if noise is None:
            assert both is None
        else:
            assert both is not None
            assert torch.equal(both, xi if guidance == 1 else torch.cat([xi, xi]))


@pytest.mark.parametrize(("label", "named"), [(4, "4"), (-1, "-1"), (torch.tensor([0, 7]), "7")])
def test_a_label_that_is_no_class_is_refused(label: int | Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=rf"label .*0 \.\.\. 3.*{named}"):
        GuidedDenoiser(handmade, label, classes=4)


def test_dropped_and_missing_labels_become_none_and_the_rest_stay() -> None:
    labels, uniform = torch.tensor([0, 1, -1, 2]), torch.tensor([0.05, 0.5, 0.9, 0.1])
    assert drop_labels(labels, uniform, 0.1, classes=3).tolist() == [3, 1, 3, 2]


@pytest.mark.parametrize(("schedule", "levels"), ALL)
@pytest.mark.parametrize("steps", [1, 3])
def test_exact_draws_given_a_label_end_in_its_class_and_without_in_both(
    steps: int, schedule: Schedule, levels: Levels
) -> None:
    count, exact = 10_000, ExactClasses(levels)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    error = (VARIANCE / count) ** 0.5
    for label in (0, 1):
        of_class, of_both = (
            sample(
                GuidedDenoiser(exact, label, NONE, guidance),
                x,
                time_grid(steps),
                schedule=schedule,
                generator=generator,
            )
            for guidance in (1.0, 0.0)
        )
        assert abs(float(of_class.mean() - CENTRES[label])) < 4 * error
        assert abs(float(of_class.var()) / VARIANCE - 1) < 4 * (2 / count) ** 0.5
        assert abs(float((of_both > 0).double().mean()) - 0.5) < 4 * 0.5 / count**0.5


class TinyNetwork(nn.Module):
    """x_0 = G(t, x_t, xi, label) on a line, by way of v."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.label = nn.Embedding(NONE + 1, width)
        self.input = nn.Linear(3, width)
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, 1)

    def forward(self, x_t: Tensor, t: Tensor, xi: Tensor, labels: Tensor) -> Tensor:
        """Draws [B, m, 1]; x_t: [B, 1]; t, labels: [B]; xi: [B, m, 1]."""
        given = torch.stack([x_t, t[:, None]], dim=2).expand(-1, xi.shape[1], -1)
        hidden = self.input(torch.cat([given, xi], dim=2)) + self.label(labels)[:, None]
        hidden = hidden.relu()
        v = self.output(hidden + self.hidden(hidden).relu())
        return to_x0(v, x_t[:, None], t, "v", FlowSchedule())

    def denoise(self, x_t: Tensor, t: Tensor, xi: Tensor, labels: Tensor) -> Tensor:
        """One draw for each x_t, [B, 1]."""
        return self(x_t, t, xi[:, None], labels)[:, 0]


@pytest.fixture(scope="module")
def trained() -> TinyNetwork:
    """Trained with the energy score on two classes, a fifth of the labels dropped."""
    torch.manual_seed(0)
    network, generator = TinyNetwork(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(400):
        labels = torch.randint(2, (256,), generator=generator)
        noise = torch.randn(2, 256, 1, generator=generator)
        x0 = CENTRES[labels].float() + VARIANCE**0.5 * noise[0]
        t = torch.rand(256, generator=generator)
        uniform = torch.rand(256, generator=generator)
        shown = drop_labels(labels, uniform, 0.2, classes=NONE)
        x_t = corrupt(x0, t, noise[1], FlowSchedule())
        xi = torch.randn(256, 4, 1, generator=generator)
        energy_score(network(x_t, t, xi, shown), x0).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


def test_labels_that_a_network_has_learnt_choose_the_class(trained: TinyNetwork) -> None:
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(2))

    def drawn(label: int, guidance: float) -> Tensor:
        denoiser = GuidedDenoiser(trained.denoise, label, NONE, guidance)
        return sample(denoiser, x, time_grid(4), generator=torch.Generator().manual_seed(3))

    for label, side in ((0, -1), (1, 1)):
        of_class = side * drawn(label, 1.0)
        assert float((of_class > 0).double().mean()) > 0.97
        assert float(of_class.mean()) == pytest.approx(2, abs=0.25)
        without = drawn(label, 0.0)
        assert float((without > 0).double().mean()) == pytest.approx(0.5, abs=0.08)
        exaggerated = side * drawn(label, 2.0)
        assert float(exaggerated.mean()) > float(of_class.mean()) + 0.2
