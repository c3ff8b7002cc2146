"""Raw latents [N,C,h,w] on disk: a .npy or .safetensors file, or a latent store."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from autoencoder.remote import is_remote
from autoencoder.sources.naming import public_name
from autoencoder.store import LatentStore
from autoencoder.store.locations import holds_store
from latentddm.engine.atomic_io import atomic_path, sha256_of
from latentddm.engine.errors import UserError, one_line

TENSOR_NAME = "latents"
FINGERPRINT_NAME = "autoencoder"


def save_latents(path: Path, latents: torch.Tensor, fingerprint: str) -> None:
    """Write raw latents [N,C,h,w] and the fingerprint of their autoencoder to .safetensors."""
    with atomic_path(path) as temporary:
        save_file(
            {TENSOR_NAME: latents.contiguous()}, temporary, metadata={FINGERPRINT_NAME: fingerprint}
        )


class Latents(Protocol):
    """Raw latents [N,C,h,w], read slice by slice.

    name: their location, for messages. fingerprint, autoencoder: the fingerprint and the reference
    of their autoencoder; None if not recorded.
    """

    name: str
    fingerprint: str | None
    autoencoder: str | None

    def __len__(self) -> int: ...

    @property
    def identity(self) -> str:
        """Equal for equal latents in equal order."""

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Raw latents `start` to `stop`, float32 [stop-start,C,h,w]."""


def open_latents(reference: str | Path) -> Latents:
    """The latents of a file or of a store (a folder or a URL); UserError for anything else."""
    if is_remote(reference) or holds_store(Path(reference)):
        return StoredLatents(reference)
    return LatentFile(Path(reference))


class StoredLatents:
    """The latents of a store in its (shuffled) order; the keys of the store identify the images."""

    def __init__(self, location: str | Path) -> None:
        self._store = LatentStore(location, memory=0)
        self.name = public_name(str(location))
        self.fingerprint: str | None = self._store.fingerprint
        self.autoencoder: str | None = str(self._store.manifest.plan.autoencoder["reference"])

    def __len__(self) -> int:
        return len(self._store)

    @property
    def identity(self) -> str:
        return f"sha256:{hashlib.sha256(self._store.manifest.to_bytes()).hexdigest()}"

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Raw latents `start` to `stop` of the store, float32 [stop-start,C,h,w]."""
        return self._store.raw(start, stop)


class LatentFile:
    """The raw latents [N,C,h,w] of a file, read slice by slice, never all at once.

    UserError if the file is missing, damaged, or of other contents.
    """

    def __init__(self, path: Path) -> None:
        readers = {".npy": self._open_array, ".safetensors": self._open_safetensors}
        if path.is_dir():
            raise UserError(
                f"{path} is a folder without a latent store; give a store or a .npy or "
                ".safetensors file of latents."
            )
        if not path.is_file():
            raise UserError(f"The latents file {path} does not exist; check the path.")
        if path.suffix not in readers:
            raise UserError(f"{path} is not a file of latents; give a .npy or .safetensors file.")
        self.path, self.name = path, str(path)
        self.fingerprint: str | None = None
        self.autoencoder: str | None = None
        self._values: Any = readers[path.suffix]()
        self.shape: tuple[int, ...] = tuple(self._read_shape())
        if len(self.shape) != 4 or not all(self.shape):
            raise UserError(
                f"{path} has the shape {list(self.shape)}; give an array of latents [N,C,h,w]."
            )

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def identity(self) -> str:
        return f"sha256:{sha256_of(self.path)}"

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Raw latents `start` to `stop`, float32 [stop-start,C,h,w]."""
        part = self._values[start:stop]
        if isinstance(part, np.ndarray):  # of any byte order and precision
            part = np.array(part, dtype=np.float32)
        return torch.as_tensor(part).float()

    def _read_shape(self) -> list[int]:
        if isinstance(self._values, np.ndarray):
            return list(self._values.shape)
        return self._values.get_shape()

    def _open_array(self) -> np.ndarray:
        try:
            values = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if not isinstance(values, np.ndarray):
                raise ValueError("an archive of several arrays")
        except Exception as error:  # numpy's reader of headers raises errors of many kinds
            raise UserError(
                f"{self.path} is damaged or not a plain array ({one_line(error)}); write it again "
                "with numpy.save."
            ) from error
        if not np.issubdtype(values.dtype, np.floating):
            raise UserError(f"{self.path} holds {values.dtype}; give floating-point latents.")
        return values

    def _open_safetensors(self) -> Any:
        try:
            file = safe_open(self.path, "pt")
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{self.path} is damaged or not a safetensors file ({error}); write it again."
            ) from error
        names = list(file.keys())
        if TENSOR_NAME not in names and len(names) != 1:
            raise UserError(
                f'{self.path} holds no tensor "{TENSOR_NAME}" but {", ".join(names)}; name the '
                f'latents "{TENSOR_NAME}".'
            )
        self.fingerprint = (file.metadata() or {}).get(FINGERPRINT_NAME)
        return file.get_slice(TENSOR_NAME if TENSOR_NAME in names else names[0])
