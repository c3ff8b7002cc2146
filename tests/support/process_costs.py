"""The costs of a generator's training, by process: bytes sent, numbers drawn, bytes written.

    python tests/support/process_costs.py STORE     results.json of tools/results/distributed

The formulas are those of latentddm/docs/distributed.md.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cost_counters import Counters
from processes import Processes
from tiny_runs import BATCH, phase

from autoencoder.store import LatentStore
from latentddm.engine.distributed import start_processes
from latentddm.engine.ema import EMAConfig
from latentddm.engine.run import RunFolder
from latentddm.engine.task import LoopConfig
from latentddm.networks.dit import DiTConfig
from latentddm.networks.network import make_network
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train
from latentddm.training.objective import DistributionalObjective

NETWORK = DiTConfig(width=32, blocks=3, head_channels=16)
DRAWS, STEPS = 4, 6
FIRST_STEPS = 2  # not counted: connections are opened, buckets built
NEVER = 10**9  # images
COUNTS = (1, 2, 4)  # processes


@dataclass(frozen=True)
class Costs:
    """Those of one process; bytes, but for `step_normals`."""

    step_sent: float
    step_normals: float
    saving_sent: int
    saving_written: int
    snapshot_sent: int
    snapshot_written: int
    reduce_scatter: int  # sent for one of 4 P bytes, by torch over gloo

    @classmethod
    def of(cls, counters: Counters) -> Costs:
        """Means over the steps but the first; bytes sent apart from those written to files."""
        counted = len(counters.steps) - 1 - FIRST_STEPS
        first, last = counters.steps[FIRST_STEPS], counters.steps[-1]
        sent, normals = ((b - a) / counted for a, b in zip(first, last, strict=True))
        count = counters.bytes
        # The first process alone calls these two.
        saved, snapshot = (count.get(name, 0) for name in ("save_checkpoint", "write_snapshot"))
        return cls(
            step_sent=sent,
            step_normals=normals,
            saving_sent=count["save"] - saved,
            saving_written=saved,
            snapshot_sent=count["snapshot"] - snapshot,
            snapshot_written=snapshot,
            reduce_scatter=count.get("reduce_scatter_tensor", 0),
        )


@dataclass(frozen=True)
class Formulas:
    """The formulas of the page: N processes, P weights, E averages, latents of D numbers."""

    N: int
    P: int
    P_blocks: int  # weights of the blocks that `loop.sharded` gathers one by one
    D: int
    E: int = len(EMAConfig().widths)

    @classmethod
    def of(cls, store: Path, count: int) -> Formulas:
        shape = LatentStore(store).shape
        network = make_network(NETWORK, shape, "flow")
        blocks = [m for m in network.modules() if type(m).__name__ in network._no_split_modules]
        weights, in_blocks = (
            sum(weight.numel() for module in modules for weight in module.parameters())
            for modules in ([network], blocks)
        )
        return cls(count, weights, in_blocks, math.prod(shape))

    @property
    def share(self) -> float:
        """(N - 1) / N x 4 P bytes: all weights gathered from the other processes, or reduced."""
        return (self.N - 1) / self.N * 4 * self.P

    def replicated_sent(self, targets: int = 1) -> float:
        """2 (N - 1) / N x 4 P + 16 (N - 1), and with several targets 4 B D (N - 1) / N, bytes."""
        batch = 4 * BATCH * self.D * (self.N - 1) / self.N if targets > 1 else 0
        return 2 * self.share + 16 * (self.N - 1) + batch

    def sharded_sent(self) -> float:
        """(N - 1) / N x 4 (2 P + P_blocks) + 16 (N - 1), bytes: two gathers and one reduction."""
        return self.share * (2 + self.P_blocks / self.P) + 16 * (self.N - 1)

    def step_normals(self) -> float:
        """B / N x (4 + D + m D): they come in blocks of four, and t needs one."""
        return BATCH / self.N * (4 + (1 + DRAWS) * self.D)

    def saving_written(self) -> int:
        """(12 + 4 E) P bytes: weights, two moments, averages."""
        return (12 + 4 * self.E) * self.P

    def saving_sent(self) -> float:
        """(N - 1) / N x (12 + 4 E) P bytes, if sharded: every process gathers all tensors."""
        return self.share * (3 + self.E)

    def snapshot_written(self) -> int:
        """2 E P bytes: the averages in float16."""
        return 2 * self.E * self.P

    def snapshot_sent(self) -> float:
        """(N - 1) / N x 4 E P bytes, if sharded."""
        return self.share * self.E


def measure(
    store: Path, folder: Path, count: int, targets: int = 1, **loop: Any
) -> tuple[list[Costs], RunFolder]:
    """Train a tiny DiT in `count` processes; the costs of each, and the run."""
    folder.mkdir()
    never = LoopConfig(
        batch_size=BATCH, log_every=NEVER, preview_every=NEVER, checkpoint_every=NEVER, trackers=()
    )
    config = TrainConfig(
        store=str(store),
        output=str(folder / "run"),
        network=NETWORK,
        phases=(phase(STEPS * BATCH, DistributionalObjective(draws=DRAWS, targets=targets)),),
        loop=replace(never, **loop),
        ema=EMAConfig(snapshots=1),
    )
    weights = Formulas.of(store, count).P
    Processes(count, partial(_train_counted, config, weights, folder), folder).finish()
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
    return [Costs(**costs) for costs in found], RunFolder(folder / "run")


def _train_counted(config: TrainConfig, weights: int, folder: Path) -> None:
    """Train, and leave this process's costs in a file."""
    accelerator, counters = start_processes(), Counters()
    rank, count = accelerator.process_index, accelerator.num_processes
    if count > 1:
        part = torch.zeros(-(-weights // count))
        scatter = counters.of_bytes(torch.distributed.reduce_scatter_tensor)
        scatter(part, torch.zeros(count * len(part)))
    with counters.in_training():
        train(config)
    (folder / f"{rank}.json").write_text(json.dumps(asdict(Costs.of(counters))))


def results(store: Path) -> dict[str, Any]:
    """results.json: measured costs and formulas with 1, 2 and 4 processes."""
    with tempfile.TemporaryDirectory() as folder:
        columns = [_figures(store, Path(folder), count) for count in COUNTS]
    rows = [
        {
            "name": name,
            "measured": [round(each[name][0]) if name in each else None for each in columns],
            "formula": [round(each[name][1]) if name in each else None for each in columns],
        }
        for name in columns[-1]
    ]
    return {
        "topic": "distributed",
        "tables": [
            {
                "name": "costs",
                "title": "Costs of one process, in bytes and in numbers",
                "metrics": {"measured": "measured", "formula": "by formula"},
                "x": "processes",
                "columns": [str(count) for count in COUNTS],
                "rows": rows,
            }
        ],
    }


def _figures(store: Path, folder: Path, count: int) -> dict[str, tuple[float, float]]:
    """Measured costs and formulas by name; of the last process, but where the first is named."""
    formulas = Formulas.of(store, count)
    costs, _ = measure(store, folder / f"{count}", count)
    first, cost = costs[0], costs[-1]
    found = {
        "sent in a step": (cost.step_sent, formulas.replicated_sent()),
        "normal numbers drawn in a step": (cost.step_normals, formulas.step_normals()),
        "written at a checkpoint, first process": (first.saving_written, formulas.saving_written()),
        "written at a snapshot, first process": (
            first.snapshot_written,
            formulas.snapshot_written(),
        ),
    }
    if count == 1:
        return found
    everything = cost.saving_sent + cost.saving_written + cost.snapshot_sent + cost.snapshot_written
    costs, _ = measure(store, folder / f"{count} sharded", count, sharded=True)
    cost = costs[-1]
    surplus = cost.reduce_scatter - formulas.share
    return found | {
        "sent and written at a checkpoint and a snapshot, each other process": (everything, 0),
        "sent in a step, sharded": (cost.step_sent, formulas.sharded_sent() + surplus),
        "the same, less the surplus of a reduce-scatter": (
            cost.step_sent - surplus,
            formulas.sharded_sent(),
        ),
        "sent by a reduce-scatter of 4 P bytes": (cost.reduce_scatter, formulas.share),
        "sent at a checkpoint, sharded": (cost.saving_sent, formulas.saving_sent()),
        "sent at a snapshot, sharded": (cost.snapshot_sent, formulas.snapshot_sent()),
    }


if __name__ == "__main__":
    print(json.dumps(results(Path(sys.argv[1])), indent=1))
