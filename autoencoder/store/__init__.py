"""The latent store: images encoded once into tar shards, then streamed in an exact order."""

from autoencoder.store.importing import import_latents
from autoencoder.store.manifest import Manifest
from autoencoder.store.reader import LatentStore
from autoencoder.store.statistics import Standardisation
from autoencoder.store.stream import LatentBatch
from autoencoder.store.verify import Problem, StoreReport, verify_store
from autoencoder.store.writer import encode_store

__all__ = [
    "LatentBatch",
    "LatentStore",
    "Manifest",
    "Problem",
    "Standardisation",
    "StoreReport",
    "encode_store",
    "import_latents",
    "verify_store",
]
