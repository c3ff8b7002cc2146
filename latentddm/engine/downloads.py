"""Downloaded weights of public networks, in torch's cache."""

from __future__ import annotations

from pathlib import Path

import torch

from latentddm.engine.errors import JobError


def cached_weights(url: str, sha256_prefix: str, otherwise: str) -> Path:
    """The cached file of `url`; downloaded on first use and checked by its hash.

    JobError if that fails; `otherwise` ends its message: the way without a network.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Atomic: it writes to a temporary name, checks the hash and renames.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256_prefix, progress=False)
    except (OSError, RuntimeError) as error:
        raise JobError(f"{url} could not be downloaded to {path} ({error}); {otherwise}") from error
    return path
