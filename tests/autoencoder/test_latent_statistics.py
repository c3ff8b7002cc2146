"""Statistics of latents and SSIM against numpy and scipy, for any division into batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from autoencoder.latent_statistics import LatentStatistics
from autoencoder.metrics import psnr, ssim
from latentddm.engine.errors import UserError


@pytest.fixture
def latents() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(7, 3, 5, 6, generator=generator, dtype=torch.float64)
    noise[:, 1] = noise[:, 1].exp()  # heavy tails
    noise[:, 2] = 0.8 * noise[:, 0] + 0.3 * noise[:, 2].cumsum(-1)  # correlated, and smooth
    return noise * torch.tensor([1.0, 20.0, 0.1])[:, None, None] + 1000


def test_they_equal_those_of_numpy_and_scipy(latents: torch.Tensor) -> None:
    statistics = LatentStatistics()
    for batch in latents.split(3):
        statistics.add(batch)
    summary = statistics.summary()
    flat = latents.movedim(1, 0).flatten(1).numpy()
    assert summary.positions == flat.shape[1]
    np.testing.assert_allclose(summary.mean, flat.mean(1))
    np.testing.assert_allclose(summary.std, flat.std(1))
    np.testing.assert_allclose(summary.kurtosis, stats.kurtosis(flat, axis=1), atol=1e-8)
    np.testing.assert_allclose(summary.channels, np.corrcoef(flat), atol=1e-10)
    for channel in range(3):
        values = latents[:, channel].numpy()
        right = np.corrcoef(values[:, :, :-1].ravel(), values[:, :, 1:].ravel())[0, 1]
        below = np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]
        np.testing.assert_allclose(summary.right[channel], right, atol=1e-10)
        np.testing.assert_allclose(summary.below[channel], below, atol=1e-10)


def test_a_constant_channel_and_a_single_position_give_no_nan() -> None:
    statistics = LatentStatistics()
    statistics.add(torch.ones(4, 2, 1, 1))
    summary = statistics.summary()
    numbers = torch.tensor([summary.std, summary.kurtosis, summary.right, summary.below])
    assert torch.equal(numbers, torch.zeros(4, 2))


def test_ssim_is_one_for_equal_and_falls_where_psnr_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    size = (2, 32, 32, 3)
    first = torch.randint(64, 192, size, generator=generator, dtype=torch.uint8)
    brighter = first + 10
    noise = 10 * (2 * torch.randint(0, 2, size, generator=generator) - 1)
    noisy = (first.int() + noise).to(torch.uint8)
    torch.testing.assert_close(ssim(first, first), torch.ones(2))
    torch.testing.assert_close(psnr(first, brighter), psnr(first, noisy))
    assert (ssim(first, noisy) < ssim(first, brighter)).all()
    assert (ssim(first, brighter) > 0.95).all()
    with pytest.raises(UserError, match="11 pixels a side, not 32x8"):
        ssim(first[:, :8], first[:, :8])
