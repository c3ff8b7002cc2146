"""Views of a sample, by name. One more view is a file like these and a line in VIEWS."""

from __future__ import annotations

from collections.abc import Callable

from latentddm.scores.views.position import Position
from latentddm.scores.views.view import Differences, View
from latentddm.scores.views.whole import Whole

__all__ = ["VIEWS", "Differences", "View"]

VIEWS: dict[str, Callable[[], View]] = {
    "whole": Whole,
    "position": Position,
}
