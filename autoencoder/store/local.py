"""A store in a folder of this machine."""

from __future__ import annotations

from pathlib import Path

from autoencoder.store.manifest import MANIFEST_NAME, Manifest
from autoencoder.store.shard import RECORDS
from latentddm.engine.atomic_io import size_problem
from latentddm.engine.errors import JobError, UserError


def holds_store(folder: Path) -> bool:
    """Whether `folder` is that of a store, finished or not."""
    return (folder / MANIFEST_NAME).is_file() or (folder / RECORDS).is_dir()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the store in `folder`; the error says whether it was never finished."""
    path = folder / MANIFEST_NAME
    try:
        return Manifest.from_bytes(path.read_bytes(), str(path))
    except FileNotFoundError:
        if (folder / RECORDS).is_dir():
            raise UserError(
                f"{folder} is not finished; run the same encode again to finish it."
            ) from None
        raise UserError(f"{folder} holds no latent store; check the path.") from None
    except OSError as error:
        raise JobError(f"{path} cannot be read ({error.strerror}).") from None


class LocalShards:
    """The shards of a folder."""

    advice = "run `latentddm verify` on the store, or restore the shard from a copy"

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._paths = [folder / shard.name for shard in manifest.shards]
        self._sizes = [shard.bytes for shard in manifest.shards]

    def path(self, shard: int) -> Path:
        return self._paths[shard]

    def prepare(self, shards: list[int]) -> None:
        """Nothing has to be fetched."""

    def check_sizes(self) -> None:
        """JobError if a shard is missing or has the wrong size."""
        for path, size in zip(self._paths, self._sizes, strict=True):
            problem = size_problem(path, size)
            if problem:
                raise JobError(f"{path} {problem}; {self.advice}.")
