"""Pretrained autoencoders behind one interface: pixels uint8 -> raw latents -> pixels uint8.

No constant such as 0.18215 is applied: the statistics for standardisation are measured during
encoding and stored in the latent store.
"""

from autoencoder.models.adapters import wrap_network
from autoencoder.models.base import Autoencoder, latent_edge
from autoencoder.models.checking import check_reconstruction
from autoencoder.models.loading import load_autoencoder
from autoencoder.models.pixels import PixelAutoencoder

__all__ = [
    "Autoencoder",
    "PixelAutoencoder",
    "check_reconstruction",
    "latent_edge",
    "load_autoencoder",
    "wrap_network",
]
