"""Training of an autoencoder on images; the result, RUN/autoencoder, is an `AutoencoderKL`."""

from autoencoder.training.config import AdversarialConfig, AutoencoderConfig, NetworkConfig
from autoencoder.training.trainer import describe, train_autoencoder

__all__ = [
    "AdversarialConfig",
    "AutoencoderConfig",
    "NetworkConfig",
    "describe",
    "train_autoencoder",
]
