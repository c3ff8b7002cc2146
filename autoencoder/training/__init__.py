"""Trains an autoencoder on images. The result is a diffusers `AutoencoderKL`, RUN/autoencoder."""

from autoencoder.training.config import AdversarialConfig, AutoencoderConfig, NetworkConfig
from autoencoder.training.trainer import describe, train_autoencoder

__all__ = [
    "AdversarialConfig",
    "AutoencoderConfig",
    "NetworkConfig",
    "describe",
    "train_autoencoder",
]
