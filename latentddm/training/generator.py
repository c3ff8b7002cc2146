"""Trains a generator on a latent store: `train` and its dry run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from autoencoder.sources.naming import public_name
from autoencoder.store import LatentStore
from latentddm.engine.checkpoint import Checkpoint, newest_checkpoint
from latentddm.engine.config import build, differences, require_values, to_plain, to_yaml
from latentddm.engine.devices import default_device
from latentddm.engine.distributed import (
    on_main,
    process_batch_size,
    start_processes,
    start_run,
)
from latentddm.engine.dry_run import SECONDS, DryRun, dry_run
from latentddm.engine.errors import UserError
from latentddm.engine.loop import run_loop
from latentddm.engine.run import Effort, RunFolder
from latentddm.engine.seeding import derive_seed
from latentddm.engine.task import PhaseOfTask
from latentddm.inference.generator import RUN_KIND, Generator
from latentddm.inference.latent_space import LatentSpace
from latentddm.inference.sampler import fitting_sampler
from latentddm.networks.network import NetworkConfig, NetworkModel, default_config, make_network
from latentddm.scores.views.components import principal_axes
from latentddm.training.config import TrainConfig, check, keys_that_may_change
from latentddm.training.diagnostics import Diagnostics
from latentddm.training.performance import describe_performance
from latentddm.training.phases import describe_phase, phase_spans
from latentddm.training.preview import Preview
from latentddm.training.task import GeneratorTask

_log = logging.getLogger("latentddm")

GAUSSIAN_SAMPLES = 8192  # latents from which their Gaussian statistics are computed
# Settings of what reads xi: a start that has their defaults fits any value.
OF_XI_ALONE = {"global_noise", "noise", "gaussian_components"}


def train(config: TrainConfig) -> RunFolder:
    """Train or resume the run at `config.output`, all its phases; returns its folder."""
    config, store = _resolve(config)
    first_weights = _first_weights(config, store)
    run, accelerator = start_run(
        config.output, RUN_KIND, config, config.precision, keys_that_may_change(config)
    )
    _check_micro_batches(config, accelerator)
    on_main(accelerator, lambda: LatentSpace.of_store(store).keep(run.path))
    if first_weights is not None and first_weights.effort is not None:
        on_main(accelerator, partial(run.keep_effort_before, first_weights.effort))
    if accelerator.is_main_process:
        _log.info(describe_performance(config.performance, config.precision, accelerator.device))
    run_loop(_phases(config, store, first_weights, accelerator), run, config.loop, accelerator)
    accelerator.end_training()
    return run


def describe(config: TrainConfig) -> str:
    """The work of `train`: config, size, kernels, memory and speed of a few steps of each phase.

    Touches nothing.
    """
    config, store = _resolve(config)
    _first_weights(config, store)  # a start that does not fit is refused here as in the training
    network = _new_network(config, store)
    lines = [
        to_yaml(config).rstrip(),
        f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters; latents "
        f"{list(store.shape)}; {len(store):,} images in the store.",
        describe_performance(config.performance, config.precision, default_device()),
    ]
    spans = phase_spans(config.phases, config.loop.batch_size)
    for number, measured in enumerate(measure_phases(config)):
        minutes = spans[number].length / measured.images_per_second / 60
        phase = describe_phase(config.phases[number], number, len(spans))
        lines += [f"{phase}, about {minutes:.1f} min", measured.describe()]
    return "\n".join(lines)


def measure_phases(config: TrainConfig, seconds: float = SECONDS) -> Iterator[DryRun]:
    """Memory and speed of each phase of `train`, in a few steps of about `seconds`.

    Touches nothing; `config.output` need not exist.
    """
    config, store = _resolve(config)
    accelerator = start_processes(config.precision)
    _check_micro_batches(config, accelerator)
    for phase in _phases(config, store, None, accelerator):
        yield dry_run(phase.make(None), config.loop, accelerator, phase.span.start, seconds)
        accelerator.free_memory()


def _resolve(config: TrainConfig) -> tuple[TrainConfig, LatentStore]:
    """The config that a run keeps, nothing left open and no credentials in it, and the store."""
    require_values(config, "store", "output")
    store = LatentStore(config.store)
    config = replace(config, store=public_name(config.store))
    check(config, store)
    phases = (replace(each, objective=each.objective.resolved()) for each in config.phases)
    sampler = fitting_sampler(config.sampler, store.shape)
    return replace(config, phases=tuple(phases), sampler=sampler), store


def _check_micro_batches(config: TrainConfig, accelerator: Accelerator) -> None:
    """UserError if the micro-batches of this number of processes do not fit a phase's objective."""
    part = process_batch_size(config.loop.batch_size, accelerator) // config.loop.micro_batches
    for number, phase in enumerate(config.phases):
        try:
            phase.objective.check_micro_batch(part)
        except ValueError as error:
            raise UserError(
                f"phases.{number}.objective, for micro-batches of {part} images of a process: "
                f"{error}; change it, loop.batch_size or loop.micro_batches."
            ) from None


def _phases(
    config: TrainConfig,
    store: LatentStore,
    first_weights: _FirstWeights | None,
    accelerator: Accelerator,
) -> list[PhaseOfTask]:
    """The phases as the loop sees them; first_weights: of a new run's first phase."""
    preview = Preview(store, config.seed, accelerator)
    spans = phase_spans(config.phases, config.loop.batch_size)

    def make(number: int, before: Checkpoint | None) -> GeneratorTask:
        network = _new_network(config, store)
        if before is not None:  # the averaged weights of the phase before
            before.load_module("ema", network)
        elif number == 0 and first_weights is not None:
            first_weights.load_into(network)
        # Snapshots are of the averages of one phase, the last: those that are sampled.
        last = number == len(spans) - 1
        ema = config.ema if last else replace(config.ema, snapshots=0)
        phase, span = config.phases[number], spans[number]
        return GeneratorTask(
            replace(config, ema=ema), phase, span, network, store, preview, accelerator
        )

    return [
        PhaseOfTask(span, partial(make, number), Diagnostics(phase.objective, span.length))
        for number, (phase, span) in enumerate(zip(config.phases, spans, strict=True))
    ]


def _new_network(config: TrainConfig, store: LatentStore) -> NetworkModel:
    """The network with the first weights of the config's seed; every later draw is derived."""
    torch.manual_seed(config.seed)
    return make_network(config.network, store.shape, config.schedule)


@dataclass(frozen=True)
class _FirstWeights:
    """The weights that a new run begins with beside the random ones of its seed.

    weights: those of `start`; effort: what its training took. Without a start only the statistics
    of Gaussian latents are fitted.
    """

    store: LatentStore
    seed: int
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    effort: Effort | None = None

    def load_into(self, network: NetworkModel) -> None:
        fitted = any(name.startswith("gaussian_latents.") for name in self.weights)
        if network.gaussian_latents is not None and not fitted:
            latents = self.store.sample(GAUSSIAN_SAMPLES, derive_seed(self.seed, "gaussian"))
            network.gaussian_latents.fit(latents.mean(0), *principal_axes(latents))
        network.load_state_dict({**network.state_dict(), **self.weights})


def _first_weights(config: TrainConfig, store: LatentStore) -> _FirstWeights | None:
    """None for a run that has a checkpoint, and if random weights are all that is needed."""
    of_latents = config.network.noise == "posterior" or config.network.gaussian_mean
    if not of_latents and config.start is None:
        return None
    if newest_checkpoint(RunFolder(Path(config.output)).checkpoints):
        return None
    if config.start is None:
        return _FirstWeights(store, config.seed)
    return _FirstWeights(store, config.seed, *_start_weights(config, config.start, store))


def _start_weights(
    config: TrainConfig, path: str, store: LatentStore
) -> tuple[Mapping[str, Tensor], Effort]:
    """The averaged weights of the run at `path`, config.start, and what its training took.

    UserError if that run belongs to other latents, has another network or another schedule.
    """
    start = Generator.load(path)
    start.space.require_store(store, f"start is {path}, which", f"give a run of {config.store}")
    run = RunFolder.open(path, RUN_KIND)
    theirs = run.read_config()
    ours = to_plain(config.network)
    network = to_plain(build(NetworkConfig, theirs["network"], path, "network."))
    fitted = network["gaussian_mean"] or network["noise"] == "posterior"
    free = OF_XI_ALONE - ({"gaussian_components"} if fitted else set())
    for key in free & set(ours):  # a run of plain diffusion has no need of them
        if network[key] == getattr(default_config(), key):
            network[key] = ours[key]
    changed = [
        key
        for key in differences(
            {"network": network, "schedule": theirs["schedule"]},
            {"network": ours, "schedule": config.schedule},
        )
        if key != "network.dropout"
    ]
    if changed:
        raise UserError(
            f"start is {path}, whose network is another one (differs in: "
            f"{', '.join(changed)}); use its values."
        )
    weights = start.network.state_dict()
    if start.network.config["noise"] == "white" and config.network.noise == "posterior":
        # Layers that were to read white noise: those of the posterior's begin at zero.
        unused = {id(parameter) for parameter in start.network.draw_parameters()}
        for name, parameter in start.network.named_parameters():
            if id(parameter) in unused:
                del weights[name]
    return weights, run.effort(start.images)
