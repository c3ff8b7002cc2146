"""Other few-step models without a teacher, as objectives: their maths and their lines.

They train on the same network (with `times: 2`), store and trainer as a DDM, and are sampled as
flow maps.
"""

from latentddm.training.rivals.flow_map import FlowMapObjective
from latentddm.training.rivals.inductive import InductiveObjective
from latentddm.training.rivals.mean_flow import MeanFlowObjective
from latentddm.training.rivals.shortcut import ShortcutObjective

# One more rival is one more line.
RIVALS: dict[str, type[FlowMapObjective]] = {
    "shortcut": ShortcutObjective,
    "mean_flow": MeanFlowObjective,
    "moment_matching_inductive": InductiveObjective,
}
