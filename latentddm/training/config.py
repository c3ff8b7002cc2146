"""Everything that defines a generator's training; configs/*.yaml hold what differs."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

import torch

import latentddm.training.views  # noqa: F401  (registers those that need a network)
from autoencoder.store import LatentStore
from latentddm.diffusion.schedules import SCHEDULES
from latentddm.engine.config import MISSING, require_values
from latentddm.engine.ema import EMAConfig, require_average
from latentddm.engine.errors import UserError
from latentddm.engine.task import ENGINE_KEYS_THAT_MAY_CHANGE, LoopConfig
from latentddm.inference.sampler import SamplerConfig
from latentddm.networks.network import NetworkConfig, make_network
from latentddm.networks.unet import UNetConfig
from latentddm.training.objective import Objective
from latentddm.training.performance import PERFORMANCE_KEYS_THAT_MAY_CHANGE, PerformanceConfig
from latentddm.training.phases import Phase


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that defines a generator's training; configs/*.yaml hold what differs."""

    store: str = MISSING
    output: str = MISSING
    seed: int = 0
    start: str | None = None  # a run whose averaged weights the first phase begins with
    schedule: str = "flow"  # one of diffusion.schedules.SCHEDULES
    network: NetworkConfig = field(default_factory=UNetConfig)
    phases: tuple[Phase, ...] = ()
    loop: LoopConfig = field(default_factory=LoopConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    precision: Literal["no", "bf16", "fp16"] = "no"
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    label_dropout: float = 0.1  # share of labels hidden, so that guidance can be used
    sampler: SamplerConfig | None = None  # of previews and samples; None: by the latents' numbers

    def __post_init__(self) -> None:
        """ValueError for an unknown schedule or a share that is none."""
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule}")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must lie in [0, 1], not {self.label_dropout}")


def keys_that_may_change(config: TrainConfig) -> tuple[str, ...]:
    """Dotted keys that may differ on a resumed run; the last phase may be made longer."""
    last = f"phases.{len(config.phases) - 1}.images"
    sampler = ("sampler", *(f"sampler.{each.name}" for each in fields(SamplerConfig)))
    return (*ENGINE_KEYS_THAT_MAY_CHANGE, *PERFORMANCE_KEYS_THAT_MAY_CHANGE, last, *sampler)


def check(config: TrainConfig, store: LatentStore) -> None:
    """UserError for values that do not go with each other or with the store."""
    require_values(config, "store", "output")
    if not config.phases:
        raise UserError(
            "phases is empty; give one at least, such as phases=[{images: 100000, objective: ddm}]."
        )
    require_average(config.ema)
    _check_network(config, store)
    classes = config.network.classes
    if classes and not store.manifest.labelled:
        raise UserError(
            f"network.classes is {classes}, but the store {config.store} holds no labels; encode "
            "images that have some, or leave network.classes out."
        )
    if classes and config.label_dropout in (0, 1):
        raise UserError(
            f"label_dropout is {config.label_dropout:g}, with which the network never learns to "
            f"draw {'without' if config.label_dropout == 0 else 'with'} a label; choose a share "
            "between, such as 0.1."
        )
    for number, phase in enumerate(config.phases):
        _check_objective(config, store, phase.objective, f"phases.{number}.objective")


def _check_objective(
    config: TrainConfig, store: LatentStore, objective: Objective, key: str
) -> None:
    """UserError for an objective that does not go with the latents, the network or the loop."""
    try:
        objective.check_latents(store.shape)
    except ValueError as error:
        raise UserError(f"{key}, for {config.store}: {error}.") from None
    try:
        objective.check_network(config.network, config.schedule)
    except ValueError as error:
        raise UserError(f"{key}: {error}.") from None
    if config.network.classes and objective.targets > 1:
        raise UserError(
            f"{key}.targets takes targets from the whole batch, whatever their label; set it to 1 "
            "with network.classes."
        )
    if config.loop.sharded and objective.derivatives:
        raise UserError(
            f"{key} takes derivatives of the network, which loop.sharded hides; set it to false."
        )


def _check_network(config: TrainConfig, store: LatentStore) -> None:
    """UserError for arguments that make no network, or none for the store's latents."""
    try:
        with torch.device("meta"):
            network = make_network(config.network, store.shape, config.schedule)
    except ValueError as error:
        raise UserError(f"network: {error}.") from None
    try:
        network.check_latents(store.shape)
    except ValueError as error:
        raise UserError(f"network, for the store {config.store}: {error}.") from None
