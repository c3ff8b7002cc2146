"""Views that need more than tensors: a frozen network. Each is a file and a line below.

Views of tensors alone are in `scores.views`.
"""

from __future__ import annotations

from latentddm.scores.views import VIEWS
from latentddm.training.views.inputs import TrainingInputs
from latentddm.training.views.trunk import TrunkConfig

__all__ = ["TrainingInputs"]

VIEWS["trunk"] = TrunkConfig
