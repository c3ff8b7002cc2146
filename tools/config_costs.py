"""Memory and images/s of configs on a GPU, computed without one and without a store.

    python tools/config_costs.py celebahq256.yaml lsun_bedroom256.yaml --shape 4,32,32

For each phase, with P parameters, batch B and A bytes of activations that the backward pass keeps
for an image:

    memory   = 4 P bytes each of weights, gradients, two moments of Adam and every average,
               2 P of weights in 16 bits, A B / micro_batches; without buffers inside of kernels
    images/s = share x (the card's dense bfloat16 peak) / FLOP of an image

A and the FLOP are counted on tensors that have no numbers. The share by default is that of
faces128.yaml on an H100 (tools/results/speed-h100), 3,600 images/s of 31.1 GFLOP each; a small
network or batch has less, which `latentddm train CONFIG --dry-run` on the card measures. Memory was
held against one measurement there, of a UNet of 28 M, batch 64: 1.96 GiB computed, 2.08 measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from command_line import exit_code, list_of
from gpu_flops import PEAKS, count_flops, peak_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from latentddm.cli.arguments import find_config
from latentddm.diffusion.schedules import Schedule
from latentddm.engine.config import load_config
from latentddm.engine.errors import UserError
from latentddm.networks.network import NetworkModel, make_network
from latentddm.training.config import TrainConfig
from latentddm.training.objective import DistributionalObjective, Objective, PlainObjective
from latentddm.training.performance import NUMBER_FORMATS, apply_performance
from latentddm.training.phases import describe_phase

SHARE = 3600 * 31.1e9 / 989e12  # of the peak
FEW, MORE = 2, 4  # images, whose difference is what one of them adds


@dataclass(frozen=True, kw_only=True)
class PhaseCosts:
    """What a phase takes: the state of a training, and bytes and FLOP that an image adds."""

    parameters: int
    state_bytes: int  # weights, gradients, moments, averages
    fixed_bytes: float  # of a step, for any number of images: weights in 16 bits
    image_bytes: float
    image_flops: float

    def memory(self, images: int) -> float:
        """Bytes in a step of so many images at once."""
        return self.state_bytes + self.fixed_bytes + images * self.image_bytes


def phase_costs(config: TrainConfig, objective: Objective, shape: Sequence[int]) -> PhaseCosts:
    """Counted for latents [C, H, W]; UserError for other objectives and latents that do not fit."""
    if not isinstance(objective, PlainObjective | DistributionalObjective):
        raise UserError(f"The cost of the objective {objective.kind} is not counted; use ddm.")
    counted = {count: _count(config, objective, shape, count) for count in (FEW, MORE)}
    (few_bytes, few_flops, parameters), (more_bytes, more_flops, _) = counted.values()
    image_bytes = (more_bytes - few_bytes) / (MORE - FEW)
    return PhaseCosts(
        parameters=parameters,
        state_bytes=4 * parameters * (4 + len(config.ema.widths)),
        fixed_bytes=few_bytes - FEW * image_bytes,
        image_bytes=image_bytes,
        image_flops=(more_flops - few_flops) / (MORE - FEW),
    )


def _count(
    config: TrainConfig, objective: Objective, shape: Sequence[int], images: int
) -> tuple[int, float, int]:
    """The bytes that a step keeps for its backward pass, its FLOP, and the parameters."""
    with FakeTensorMode():
        network = make_network(config.network, shape, config.schedule)
        try:
            network.check_latents(shape)
        except ValueError as error:
            raise UserError(f"--shape is {list(shape)}: {error}.") from None
        performance = replace(config.performance, compile=False)
        apply_performance(network, performance, torch.device("cpu"))
        prepared = objective.prepared(_Latents(tuple(shape), network.schedule))
        step = _step(network, prepared, shape, images, NUMBER_FORMATS[config.precision])
        return _kept_bytes(step, network), count_flops(step), network.num_parameters()


@dataclass(frozen=True)
class _Latents:
    """What views of a score are made from, in the place of a store."""

    shape: tuple[int, ...]
    schedule: Schedule

    def latents(self, count: int) -> Tensor:
        return torch.randn(count, *self.shape)


def _step(
    network: NetworkModel,
    objective: Objective,
    shape: Sequence[int],
    images: int,
    number_format: torch.dtype,
) -> Callable[[], None]:
    """The loss of a batch and its gradient."""

    def normal(*sizes: int) -> Tensor:
        return torch.randn(images, *sizes)

    class Evaluator:
        def with_gradient(self, x_t: Tensor, t: Tensor, xi: Tensor | None = None) -> Tensor:
            with torch.autocast("cpu", number_format, number_format != torch.float32):
                return network(x_t, t, xi)

    x0, numbers = normal(*shape), {"t": torch.rand(images), "noise": normal(*shape)}
    xi = objective.xi(normal, shape)
    if xi is not None:
        numbers["xi"] = xi
    numbers["uniform"] = torch.rand(images, objective.targets)

    def step() -> None:
        terms = objective.evaluate(Evaluator(), x0, numbers, x0, network.schedule)  # type: ignore[arg-type]
        terms.loss.mean().backward()

    return step


def _kept_bytes(step: Callable[[], None], network: NetworkModel) -> int:
    """Bytes of all that a step keeps for its backward pass, but for the weights themselves."""
    weights = {weight.untyped_storage()._cdata for weight in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(storage.nbytes() for storage in kept.values())


def table(names: Sequence[str], shape: Sequence[int], peak: float, share: float) -> str:
    """The costs of the phases of some configs, markdown."""
    lines = [
        "| config | phase | parameters | GFLOP an image | memory | images/s |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        config = load_config(TrainConfig, find_config(name), ["store=any", "output=any"])
        at_once = config.loop.batch_size // config.loop.micro_batches
        for number, phase in enumerate(config.phases):
            costs = phase_costs(config, phase.objective, shape)
            lines.append(
                f"| {name} | {describe_phase(phase, number, len(config.phases))} "
                f"| {costs.parameters / 1e6:.1f} M | {costs.image_flops / 1e9:.3g} "
                f"| {costs.memory(at_once) / 2**30:.3g} GiB for {at_once} "
                f"| {_rounded(share * peak / costs.image_flops)} |"
            )
    return "\n".join(lines)


def _rounded(number: float) -> str:
    """To two digits, as these are no measurements: 1,300 of 1,274."""
    return f"{float(f'{number:.2g}'):,.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 2 the request was wrong."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("configs", nargs="+", metavar="CONFIG", help="of generators: paths, or names in configs/")
    add("--shape", type=list_of(int), required=True, help="of a latent, such as 4,32,32")
    add("--card", default="H100", help=f"one of {', '.join(PEAKS)} (default H100)")
    add("--share", type=float, default=SHARE, help=f"of the card's peak (default {SHARE:.3f})")
    given = options.parse_args(arguments)

    def work() -> None:
        peak = peak_of(given.card)
        if peak is None:
            raise UserError(f"--card {given.card} is not known; give one of {', '.join(PEAKS)}.")
        if len(given.shape) != 3 or min(given.shape) < 1:
            raise UserError("--shape must be channels, height and width, such as 4,32,32.")
        if not 0 < given.share <= 1:
            raise UserError(f"--share must lie in (0, 1], not {given.share}.")
        print(table(given.configs, given.shape, peak, given.share))

    return exit_code(work)


if __name__ == "__main__":
    raise SystemExit(main())
