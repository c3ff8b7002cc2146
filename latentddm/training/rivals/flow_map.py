"""The part that all objectives of a flow map share: the second time, and its demands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from latentddm.diffusion.flow_maps import average_velocity
from latentddm.networks.config import NetworkConfig
from latentddm.training.objective import Objective, ObjectiveTerms


@dataclass(frozen=True, kw_only=True)
class FlowMapObjective(Objective):
    """An objective whose network is a flow map, see `diffusion.flow_maps`.

    flow_map: the steps that it learns, "free" for all of them, and "dyadic" for lengths 1/2^k; each
    kind has one. It is recorded in the run, and sampling goes by it.
    """

    flow_map: Literal["free", "dyadic"]

    def __post_init__(self) -> None:
        """ValueError names a setting out of range."""
        super().__post_init__()
        if self.targets != 1:
            raise ValueError(f"targets must be 1 for the kind {self.kind}, not {self.targets}")

    def check_network(self, network: NetworkConfig, schedule: str) -> None:
        if network.times != 2:
            raise ValueError(
                f"kind {self.kind} needs a network of two times; set network.times to 2"
            )
        if schedule != "flow":
            raise ValueError(
                f"kind {self.kind} is derived for schedule: flow, not {schedule}; change one"
            )

    def figures(
        self, terms: ObjectiveTerms, numbers: Mapping[str, Tensor]
    ) -> Mapping[str, tuple[Tensor, Tensor]]:
        """The error where s = t, and elsewhere."""
        of_velocity = numbers["s"] == numbers["t"]
        error = terms.confinement
        return {"velocity_error": (error, of_velocity), "step_error": (error, ~of_velocity)}


def velocity_of(network: Callable[..., Tensor], x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """u(x_t, t, s) of a network that returns g, in the precision of x_t."""
    return average_velocity(network(x_t, t, s=s), x_t, t)


def rows_where(chosen: Tensor) -> Tensor:
    """The indices of the samples where `chosen`, bool [B], is true; the first if there is none.

    So every process evaluates a sharded network as often.
    """
    rows = chosen.nonzero()[:, 0]
    return rows if len(rows) else rows.new_zeros(1)


def flow_map_terms(loss: Tensor, error: Tensor) -> ObjectiveTerms:
    """The loss and the error as `confinement`, [B] each; there are no draws to differ."""
    error, nothing = error.detach(), 0 * error.detach()
    return ObjectiveTerms(loss, error, nothing, nothing)
