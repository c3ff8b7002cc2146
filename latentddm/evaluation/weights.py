"""The identity of a network that makes features: a hash of its weights, whatever file held them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names and float32 values in the order given; counters of batches are left out."""
    digest = hashlib.sha256()
    for name, values in weights.items():
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode() + values.float().cpu().numpy().tobytes())
    return "sha256:" + digest.hexdigest()
