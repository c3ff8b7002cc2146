"""`latentddm --version` is enough for a report of a fault: versions, attention kernel, reason."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from messages import assert_names

import latentddm
from latentddm.cli import main
from latentddm.engine import devices
from latentddm.networks import attention
from latentddm.networks.attention import Kernel


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_the_version_names_the_kernel_and_why_it_is_not_xformers() -> None:
    command = [sys.executable, "-m", "latentddm", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert_names(first, f"latentddm {latentddm.__version__}", f"torch {torch.__version__}")
    assert re.search(r"(for CUDA [\d.]+|without CUDA), (xformers \d|no xformers)", first)
    assert_names(second, "attention on", "sdpa (no CUDA device)", "in float32 and bfloat16")


def test_each_number_format_has_its_own_operator(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "default_device", lambda: torch.device("cuda", 0))
    chosen = {
        ("cuda", torch.float32): Kernel("xformers", "cutlassF-pt"),
        ("cuda", torch.bfloat16): Kernel("sdpa", "xformers is not usable: ImportError"),
    }
    monkeypatch.setattr(attention, "_defaults", chosen)
    line = printed(capsys)[1]
    assert_names(line, "xformers (cutlassF-pt) in float32", "ImportError) in bfloat16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_an_xformers_operator_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    kernels = printed(capsys)[1]
    if "xformers (" not in kernels:
        pytest.skip(f"xformers does not run on this GPU: {kernels}")
    assert re.search(r"xformers \((cutlassF|fa[23]F)", kernels), kernels
