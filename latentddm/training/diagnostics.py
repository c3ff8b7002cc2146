"""Warnings for the logged figures of a generator's training, with the key to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from latentddm.training.objective import DistributionalObjective, Objective

# Calibrated draws are as far from each other as from the data: interaction equals confinement.
IGNORES_XI = 0.02  # interaction, as a share of confinement
EXPLODES = 3.0  # spread, in standard deviations of the data (model space has 1)
LONG = 0.05  # of the training: how long a figure must stay so


class Diagnostics:
    """Yields each warning once, when its figure has been out of bounds for long."""

    def __init__(self, objective: Objective, total_images: int) -> None:
        lams: list[float] = []  # at noise and at data
        if isinstance(objective, DistributionalObjective):
            score = objective.score
            lams = [score.lam, score.lam if score.lam_data is None else score.lam_data]
        self.interacts, self.lam_is_one = any(lams), min(lams, default=0) == 1
        self.patience = LONG * total_images
        self._since: dict[str, int] = {}
        self._reported: set[str] = set()

    def __call__(self, images: int, metrics: Mapping[str, float]) -> Iterator[str]:
        """Warnings for the figures logged after `images`."""
        if not self.interacts:
            return
        share = metrics["interaction"] / max(metrics["confinement"], 1e-12)
        if self._lasts("xi", share < IGNORES_XI, images):
            yield (
                f"After {images:,} images the draws hardly differ: interaction is {share:.1%} of "
                "confinement, where calibrated draws have 100 %. The network ignores xi; in a new "
                f"run {'' if self.lam_is_one else 'raise objective.score.lam of the phase, '}lower "
                "objective.score.beta of the phase, or let xi in earlier (network.expansion)."
            )
        if self._lasts("spread", metrics["spread"] > EXPLODES, images):
            yield (
                f"After {images:,} images the draws spread {metrics['spread']:.3g} standard "
                "deviations of the data and should not exceed 1: training diverges; in a new run "
                "lower optimizer.learning_rate or objective.score.lam of the phase."
            )

    def _lasts(self, fault: str, present: bool, images: int) -> bool:
        """Whether a fault has lasted long enough for its warning, for the first time."""
        if not present or fault in self._reported:
            self._since.pop(fault, None)
            return False
        if images - self._since.setdefault(fault, images) < self.patience:
            return False
        self._reported.add(fault)
        return True
