"""Whatever kernel runs, attention is softmax(q k^T / sqrt(D)) v."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentddm.networks import attention as attention_module
from latentddm.networks.attention import (
    attention,
    default_backend,
    default_kernel,
    set_attention_backend,
)


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
    assert default_backend("cpu", torch.float64) == "sdpa"
    ours = attention(*parts)
    gradients = torch.autograd.grad((ours * weight).sum(), parts)
    reference = plain_attention(*parts)
    expected = torch.autograd.grad((reference * weight).sum(), parts)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    for gradient, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not find_spec("xformers"), reason="xformers is not installed")
def test_xformers_is_imported_without_a_word_and_with_its_extension() -> None:
    code = (
        "import autoencoder.models, latentddm.networks.network, xformers._cpp_lib as library\n"
        "assert not library._cpp_library_load_exception, library._cpp_library_load_exception"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "xformers" not in (run.stdout + run.stderr).lower()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_xformers_that_does_not_run_is_a_reason_and_no_error() -> None:
    kernel = attention_module._xformers_kernel(torch.float32)
    assert kernel.backend == "sdpa"
    assert "xformers" in kernel.detail


@pytest.mark.skipif(not find_spec("xformers"), reason="xformers is not installed")
def test_the_operator_is_named_by_the_function_by_which_xformers_chooses_it() -> None:
    from xformers.ops import fmha

    parameters = list(signature(fmha.dispatch._dispatch_fw).parameters)
    assert parameters == ["inp", "needs_gradient"]
    assert all(operator.NAME for operator in fmha.ALL_FW_OPS)
    chosen = SimpleNamespace(_dispatch_fw=lambda inputs, gradient: fmha.cutlass.FwOp)
    stand_in: Any = SimpleNamespace(Inputs=fmha.Inputs, dispatch=chosen)
    probe = torch.randn(1, 16, 2, 32)
    assert attention_module._operator(stand_in, probe) == fmha.cutlass.FwOp.NAME
    assert "not named" in attention_module._operator(SimpleNamespace(), probe)


@pytest.mark.gpu
@pytest.mark.parametrize("head", [32, 64, 128])
@pytest.mark.parametrize("positions", [64, 256, 1024, 4096])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)]
)
def test_xformers_agrees_with_sdpa_on_cuda(
    dtype: torch.dtype, tolerance: float, positions: int, head: int
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    kernel = default_kernel("cuda", dtype)
    if kernel.backend != "xformers":
        pytest.skip(f"attention in {dtype} is {kernel}")
    torch.manual_seed(0)
    shape = 2, positions, 256 // head, head
    parts = [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for _ in "qkv"]
    weight = torch.randn(shape, device="cuda", dtype=dtype)
    results = []
    for backend in ("xformers", "sdpa"):
        set_attention_backend(backend)  # type: ignore[arg-type]
        result = attention(*parts)
        results.append((result, *torch.autograd.grad((result * weight).sum(), parts)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
