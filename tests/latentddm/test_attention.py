"""Whatever kernel runs, attention is softmax(q k^T / sqrt(D)) v."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from latentddm.attention import attention, default_backend, set_attention_backend


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = torch.einsum("bihd,bjhd->bhij", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), value)


@pytest.fixture(autouse=True)
def _default_backend() -> Iterator[None]:
    yield
    set_attention_backend(None)


@pytest.mark.parametrize("heads", [1, 3])
def test_sdpa_equals_the_plain_softmax_forward_and_backward(heads: int) -> None:
    parts = [torch.randn(2, 7, heads, 8, dtype=torch.float64, requires_grad=True) for _ in "qkv"]
    weight = torch.randn(2, 7, heads, 8, dtype=torch.float64)
    assert default_backend("cpu") == "sdpa"
    ours = attention(*parts)
    gradients = torch.autograd.grad((ours * weight).sum(), parts)
    reference = plain_attention(*parts)
    expected = torch.autograd.grad((reference * weight).sum(), parts)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    for gradient, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_xformers_agrees_with_sdpa_on_cuda(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available() or default_backend("cuda") != "xformers":
        pytest.skip("needs a CUDA device on which xformers runs")
    parts = [torch.randn(2, 256, 4, 32, device="cuda", dtype=dtype) for _ in "qkv"]
    results = []
    for backend in ("xformers", "sdpa"):
        set_attention_backend(backend)  # type: ignore[arg-type]
        results.append(attention(*parts))
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)
