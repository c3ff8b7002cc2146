"""Training of an autoencoder on images; the result, RUN/autoencoder, is an `AutoencoderKL`."""

from autoencoder.training.config import AdversarialConfig, AutoencoderConfig, NetworkConfig
from autoencoder.training.trainer import describe, measure_training, train_autoencoder

__all__ = [
    "AdversarialConfig",
    "AutoencoderConfig",
    "NetworkConfig",
    "describe",
    "measure_training",
    "train_autoencoder",
]
