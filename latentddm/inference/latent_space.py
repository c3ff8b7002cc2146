"""Shape, statistics and autoencoder of a run's latents: a run is usable without its store."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from autoencoder.models import Autoencoder, load_autoencoder
from autoencoder.store import LatentStore, Standardisation
from latentddm.engine.atomic_io import read_json, write_json
from latentddm.engine.errors import UserError

FILE_NAME = "latents.json"


@dataclass(frozen=True)
class LatentSpace:
    """Shape and statistics of the raw latents, and their autoencoder."""

    shape: tuple[int, int, int]  # channels, height, width
    mean: tuple[float, ...]  # of the raw latents, per channel
    std: tuple[float, ...]
    autoencoder: str  # its reference
    fingerprint: str

    @classmethod
    def of_store(cls, store: LatentStore) -> LatentSpace:
        plan = store.manifest.plan
        return cls(
            shape=store.shape,
            mean=tuple(store.manifest.mean),
            std=tuple(store.manifest.std),
            autoencoder=str(plan.autoencoder["reference"]),
            fingerprint=store.fingerprint,
        )

    @classmethod
    def read(cls, run: Path) -> LatentSpace:
        """The latent space of the run in folder `run`."""
        values = read_json(run / FILE_NAME)
        try:
            channels, height, width = (int(size) for size in values["shape"])
            space = cls(
                shape=(channels, height, width),
                mean=tuple(float(value) for value in values["mean"]),
                std=tuple(float(value) for value in values["std"]),
                autoencoder=str(values["autoencoder"]),
                fingerprint=str(values["fingerprint"]),
            )
            if min(space.shape) < 1 or not len(space.mean) == len(space.std) == channels:
                raise ValueError(f"a shape {space.shape} of {len(space.mean)} channels")
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(
                f"{run / FILE_NAME} lacks a value or has a wrong one ({error}); run the training "
                "command again to restore it."
            ) from error
        return space

    def write(self, folder: Path) -> None:
        write_json(folder / FILE_NAME, asdict(self))

    def keep(self, run: Path) -> None:
        """Write it into a run whose store has it; UserError if the run was begun on another.

        A damaged file is written again.
        """
        try:
            begun = LatentSpace.read(run) if (run / FILE_NAME).is_file() else self
        except UserError:
            begun = self
        if not begun.is_same_as(self):
            raise UserError(
                f"{run} was begun on other latents than those that its store holds now: their "
                "shape, statistics or autoencoder differ; restore the store, or train into another "
                "output."
            )
        self.write(run)

    def is_same_as(self, other: LatentSpace) -> bool:
        """Whether latents of the two are the same; their autoencoder may have been moved."""
        return replace(self, autoencoder=other.autoencoder) == other

    def require_store(self, store: LatentStore, run: str, remedy: str) -> None:
        """UserError unless these latents, a run's, are those of `store`.

        run: the beginning of the message, which names the run; remedy: its end.
        """
        if not self.is_same_as(LatentSpace.of_store(store)):
            raise UserError(
                f"{run} was trained on other latents than the store's: their shape, statistics or "
                f"autoencoder differ; {remedy}."
            )

    def restore(self, model_space: Tensor) -> Tensor:
        """Model space [B, C, H, W] -> raw latents, float32."""
        return Standardisation(self.mean, self.std).restore(model_space)

    def load_autoencoder(
        self,
        device: torch.device | str = "cpu",
        reference: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Autoencoder:
        """The autoencoder of these latents; UserError if the one found is another."""
        autoencoder = load_autoencoder(reference or self.autoencoder, device=device, dtype=dtype)
        if autoencoder.fingerprint != self.fingerprint:
            raise UserError(
                f"The run was trained on latents of {self.autoencoder} ({self.fingerprint}), but "
                f"{autoencoder.reference} is {autoencoder.fingerprint}; give the right autoencoder."
            )
        return autoencoder
