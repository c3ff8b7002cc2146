"""How much of a picture an autoencoder keeps: the stage behind `latentddm evaluate-autoencoder`."""

from latentddm.reconstruction.evaluate import (
    ReconstructionOptions,
    Reconstructions,
    evaluate_autoencoder,
)
from latentddm.reconstruction.report import write_reconstruction_report

__all__ = [
    "ReconstructionOptions",
    "Reconstructions",
    "evaluate_autoencoder",
    "write_reconstruction_report",
]
