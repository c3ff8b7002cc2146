"""Proper scores: how well m draws describe a distribution of which one sample is seen."""

from __future__ import annotations

from latentddm.scores.energy import EnergyConfig, energy_score
from latentddm.scores.kernels import KernelConfig, kernel_score
from latentddm.scores.score import SCORES, Score, ScoreConfig, ScoreTerms

__all__ = [
    "SCORES",
    "EnergyConfig",
    "KernelConfig",
    "Score",
    "ScoreConfig",
    "ScoreTerms",
    "energy_score",
    "kernel_score",
]

# One more score: its class, and a line here.
SCORES["energy"] = EnergyConfig
SCORES["kernel"] = KernelConfig
