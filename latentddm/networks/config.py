"""The settings that all networks have, and the registry by which a config names its network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args

from latentddm.diffusion.process import Prediction

NoiseKind = Literal["white", "posterior"]

NETWORKS: dict[str, Any] = {}
"""The class of every network by its kind; `network` fills it."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The settings that all networks have; each kind adds its own.

    prediction, sigma_data: see `diffusion.process.to_x0`. times: 2 for a network that also reads
    the time s at which a step from t ends, as flow maps do (`diffusion.flow_maps`). time_frequency:
    the highest of the sines of t that are read, None for 1000; see `TimeEmbedding`. noise: xi as it
    is, or the posterior noise of Gaussian latents, see `PosteriorNoise`; gaussian_mean: the layers
    read the posterior mean of these beside x_t; gaussian_components: leading principal components
    of both, see `GaussianLatents`.
    """

    kind: str
    prediction: Prediction = "v"
    sigma_data: float = 1.0  # of the prediction "edm": standard deviation of the finest detail
    classes: int = 0  # labels 0 ... classes - 1; 0: no labels
    times: int = 1
    time_frequency: float | None = None
    dropout: float = 0.0
    noise: NoiseKind = "white"
    gaussian_mean: bool = False
    gaussian_components: int = 512

    @staticmethod
    def kinds() -> Mapping[str, type[NetworkConfig]]:
        """The config of every registered network, by the key `kind`."""
        return {kind: network.Config for kind, network in NETWORKS.items()}

    def __post_init__(self) -> None:
        """ValueError names a setting that makes no network."""
        own = self.__dataclass_fields__["kind"].default
        if self.kind != own:
            raise ValueError(f"kind must be {own!r}, not {self.kind!r}")
        if self.prediction not in get_args(Prediction):
            known = ", ".join(get_args(Prediction))
            raise ValueError(f"prediction must be one of {known}, not {self.prediction!r}")
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data must be above 0, not {self.sigma_data}")
        if self.classes < 0:
            raise ValueError(f"classes must be at least 0, not {self.classes}")
        if self.times not in (1, 2):
            raise ValueError(f"times must be 1 or 2, not {self.times}")
        if self.times == 2 and self.prediction == "eps":
            raise ValueError(
                "prediction eps has no x_0 at t = 1, where the steps of a network of two times "
                "begin; choose v"
            )
        if self.time_frequency is not None and not self.time_frequency > 1:
            raise ValueError(f"time_frequency must be above 1, not {self.time_frequency}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")
        if self.noise not in get_args(NoiseKind):
            known = ", ".join(get_args(NoiseKind))
            raise ValueError(f"noise must be one of {known}, not {self.noise!r}")
        if self.gaussian_components < 1:
            raise ValueError(
                f"gaussian_components must be at least 1, not {self.gaussian_components}"
            )


def signature(config: type[NetworkConfig]) -> inspect.Signature:
    """The arguments of a network: self, and by keyword those of `NetworkModel` and the fields.

    diffusers reads from it which keys of a saved config are arguments.
    """
    keyword, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    parameters = [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        inspect.Parameter("latent_channels", keyword, annotation=int),
        inspect.Parameter("latent_size", keyword, default=None, annotation=Sequence[int]),
        inspect.Parameter("schedule", keyword, default="flow", annotation=str),
    ]
    for each in fields(config):
        default = empty if each.default is MISSING else each.default
        parameters.append(
            inspect.Parameter(each.name, keyword, default=default, annotation=each.type)
        )
    return inspect.Signature(parameters)
