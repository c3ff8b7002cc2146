"""Time and peak memory of training steps: many variants, measured side by side in one run.

All variants are built first and measured in turn, several rounds; a variant's time is its best
round. On a CPU it is processor time, which other programs on the machine change little; on CUDA it
is wall-clock time between synchronisations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentddm.diffusion.process import corrupt
from latentddm.diffusion.schedules import FlowSchedule
from latentddm.engine.optimizer import OptimizerConfig, make_optimizer
from latentddm.scores import EnergyConfig

Call = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x_t, t, xi [B, m, ...]) -> [B, m, ...]


@dataclass(frozen=True)
class Setting:
    """The device and the data of the measured steps."""

    device: torch.device
    shape: tuple[int, int, int]  # of a latent
    batch: int
    bf16: bool
    rounds: int = 3


@dataclass(frozen=True)
class StepCost:
    """Time, memory and size of a training step."""

    seconds: float
    peak_bytes: int  # weights, optimizer state, gradients, activations
    parameters: int


class Step:
    """A training step of one network with m draws: forward, score, backward, AdamW.

    m = 1: the squared error of one draw; m = 0: that of the mean, without xi (plain diffusion).
    """

    def __init__(self, network: nn.Module, m: int, setting: Setting, call: Call | None = None):
        self.network = network.to(setting.device).train()
        self.setting, self.call = setting, call or self.network
        self.optimizer = make_optimizer(self.network, OptimizerConfig())
        squared_error = EnergyConfig(beta=2.0, lam=0.0, views={"whole": 1.0})
        self.score = (EnergyConfig() if m > 1 else squared_error).make()
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(setting.device)

        self.x0 = normal(setting.batch, *setting.shape)
        self.noise, self.t = normal(setting.batch, *setting.shape), normal(setting.batch).sigmoid()
        self.xi = normal(setting.batch, m, *setting.shape) if m else None

    def __call__(self) -> None:
        x_t = corrupt(self.x0, self.t, self.noise, FlowSchedule())
        with torch.autocast(self.setting.device.type, torch.bfloat16, self.setting.bf16):
            draws = self.call(x_t, self.t, self.xi)
        draws = draws[:, None] if draws.ndim == x_t.ndim else draws
        terms = self.score(draws, self.x0, self.t)
        terms.score(self.score.lam_at(self.t)).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())

    def resident_bytes(self) -> int:
        """Weights and optimizer state."""
        states = [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return sum(tensor.nbytes for tensor in [*self.network.parameters(), *states])


def measure(steps: Mapping[str, Callable[[], Step]], setting: Setting) -> dict[str, StepCost]:
    """The cost of each variant; CUDA's memory needs them one by one, times are taken in turn."""
    peaks: dict[str, int] = {}
    built: dict[str, Step] = {}
    for name, build in steps.items():
        step = build()
        step()  # the optimizer's state and the kernels' choices are made
        peaks[name] = peak_bytes(step)
        built[name] = step
    best = dict.fromkeys(built, float("inf"))
    for _ in range(setting.rounds):
        for name, step in built.items():
            best[name] = min(best[name], seconds(step, setting.device))
    return {
        name: StepCost(best[name], peaks[name], step.parameters) for name, step in built.items()
    }


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 0) -> float:
    """Seconds of one call, the mean of `repeats` calls (default: 10 on CUDA, 1 on a CPU)."""
    on_cuda = device.type == "cuda"
    repeats = repeats or (10 if on_cuda else 1)
    clock = time.perf_counter if on_cuda else time.process_time
    if on_cuda:
        torch.cuda.synchronize(device)
    start = clock()
    for _ in range(repeats):
        work()
    if on_cuda:
        torch.cuda.synchronize(device)
    return (clock() - start) / repeats


def peak_bytes(step: Step) -> int:
    """Peak memory of a step: its largest allocation, and its weights and optimizer state."""
    if step.setting.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before + step.resident_bytes()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    results = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    events = sorted(
        (event for event in results if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    held, peak = 0, 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak + step.resident_bytes()
