"""Views of a sample, by kind. One more view is a file like these and a line below."""

from __future__ import annotations

from latentddm.scores.views.bands import BandsConfig
from latentddm.scores.views.position import PositionConfig
from latentddm.scores.views.view import VIEWS, Differences, View, ViewConfig, ViewInputs
from latentddm.scores.views.visible import VisibleConfig
from latentddm.scores.views.whole import WholeConfig

__all__ = ["VIEWS", "Differences", "View", "ViewConfig", "ViewInputs"]

VIEWS["whole"] = WholeConfig
VIEWS["position"] = PositionConfig
VIEWS["bands"] = BandsConfig
VIEWS["visible"] = VisibleConfig
