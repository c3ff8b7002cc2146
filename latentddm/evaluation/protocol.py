"""A number and how it was measured: two numbers measured differently refuse to be compared."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any

from latentddm.engine.errors import UserError

SMALL_SAMPLE = 10_000


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All that a value depends on besides the images it judges.

    metric: its name. estimator: the equation and its constants. n, n_reference: images on each
    side. size: pixels of their edge (0 for latents). features, features_hash, resize: the feature
    space and how images enter it. reference_hash: of the reference's pixels; `reference` is its
    name, for people, and takes no part in comparisons. seed: of every random choice. interval:
    what low and high mean.
    """

    metric: str
    estimator: str
    n: int
    n_reference: int
    size: int
    features: str
    features_hash: str
    resize: str
    reference_hash: str
    seed: int
    interval: str
    reference: str = field(compare=False)


@dataclass(frozen=True)
class Result:
    """A value with its interval and its protocol.

    Results of one protocol can be ordered, subtracted and divided; others raise UserError that
    names the first difference.
    """

    value: float
    low: float
    high: float
    protocol: Protocol

    def __str__(self) -> str:
        about = self.protocol
        return (
            f"{about.metric} {self.value:.4g} [{self.low:.4g}, {self.high:.4g}] "
            f"({about.features}, n = {about.n} against {about.n_reference})"
        )

    def __sub__(self, other: Result) -> float:
        require_same_protocol(self.protocol, other.protocol)
        return self.value - other.value

    def __truediv__(self, other: Result) -> float:
        require_same_protocol(self.protocol, other.protocol)
        return self.value / other.value

    def __lt__(self, other: Result) -> bool:
        return self - other < 0

    def __le__(self, other: Result) -> bool:
        return self - other <= 0

    def __gt__(self, other: Result) -> bool:
        return self - other > 0

    def __ge__(self, other: Result) -> bool:
        return self - other >= 0

    def to_json(self) -> dict[str, Any]:
        """A JSON object; from_json reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Result:
        """The result that to_json wrote; UserError if a field is missing or unknown."""
        result = _build(cls, value, "A result")
        protocol = _build(Protocol, value["protocol"], "A result's protocol")
        return cls(result.value, result.low, result.high, protocol)


def require_same_protocol(first: Protocol, second: Protocol) -> None:
    """UserError naming the first field in which two protocols differ."""
    for item in fields(Protocol):
        ours, theirs = getattr(first, item.name), getattr(second, item.name)
        if item.compare and ours != theirs:
            raise UserError(
                f"Two {first.metric} results cannot be compared: {item.name} is {ours!r} in one "
                f"and {theirs!r} in the other; evaluate both in the same way."
            )


@cache
def warn_of_small_samples() -> None:
    """Say once per process that few images make a rough number."""
    logging.getLogger("latentddm").warning(
        "Fewer than %d images on one side: a Fréchet distance is biased upwards and every interval "
        "is wide; compare only results of the same n.",
        SMALL_SAMPLE,
    )


def _build(kind: Callable[..., Any], value: Any, what: str) -> Any:
    try:
        return kind(**value)
    except TypeError as error:
        raise UserError(f"{what} in the JSON does not have the fields it needs: {error}.") from None
