"""What the logged figures of a generator's training give away, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from latentddm.training.objective import Objective

# Calibrated draws are as far from each other as from the data: interaction equals confinement.
IGNORES_XI = 0.02  # interaction, as a share of confinement
EXPLODES = 3.0  # spread, in standard deviations of the data (model space has 1)
LONG = 0.05  # of the training: how long a figure must stay so


class Diagnostics:
    """Yields each warning once, when its figure has been out of bounds for long."""

    def __init__(self, objective: Objective, total_images: int) -> None:
        self.interacts = objective.draws > 1 and (objective.lam > 0 or bool(objective.lam_data))
        self.patience = LONG * total_images
        self._since: dict[str, int] = {}
        self._said: set[str] = set()

    def __call__(self, images: int, metrics: Mapping[str, float]) -> Iterator[str]:
        """Warnings for the figures logged after `images`."""
        if not self.interacts:
            return
        share = metrics["interaction"] / max(metrics["confinement"], 1e-12)
        if self._lasts("xi", share < IGNORES_XI, images):
            yield (
                f"After {images:,} images the draws hardly differ: interaction is {share:.1%} of "
                "confinement, where calibrated draws have 100 %. The network ignores xi; raise "
                "objective.lam (towards 1), lower objective.beta, or let xi in earlier "
                "(network.expansion)."
            )
        if self._lasts("spread", metrics["spread"] > EXPLODES, images):
            yield (
                f"After {images:,} images the draws spread {metrics['spread']:.3g} standard "
                "deviations of the data and should not exceed 1: training diverges; lower "
                "optimizer.learning_rate or objective.lam."
            )

    def _lasts(self, symptom: str, present: bool, images: int) -> bool:
        """Whether a symptom has lasted long enough to be told, for the first time."""
        if not present or symptom in self._said:
            self._since.pop(symptom, None)
            return False
        if images - self._since.setdefault(symptom, images) < self.patience:
            return False
        self._said.add(symptom)
        return True
