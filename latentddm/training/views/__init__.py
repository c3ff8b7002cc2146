"""Views that need more than tensors: networks, frozen or learnt. Each is a file and a line below.

Views of tensors alone are in `scores.views`.
"""

from __future__ import annotations

from latentddm.training.views.inputs import TrainingInputs

__all__ = ["TrainingInputs"]
