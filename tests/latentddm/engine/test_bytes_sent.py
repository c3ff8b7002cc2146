"""The bytes that a process sends in a step: its gradient by the formula, and little else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import Processes
from torch import nn

from latentddm.engine.distributed import start_processes
from latentddm.engine.optimizer import OptimizerConfig
from latentddm.engine.task import LoopConfig, Span
from latentddm.engine.trainable_module import TrainableModule

BATCH, WIDTH, STEPS = 8, 256, 4
COUNTER = Path("/proc/self/io")

pytestmark = pytest.mark.skipif(
    not COUNTER.is_file(), reason="needs Linux's count of written bytes"
)


def written() -> int:
    """Bytes that this process has given to the kernel, those for its sockets among them."""
    fields = dict(line.split(": ") for line in COUNTER.read_text().splitlines())
    return int(fields["wchar"])


def bytes_of_a_step(folder: Path) -> None:
    """Train a little, and leave this process's bytes a step in a file."""
    accelerator = start_processes()
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    loop, span = LoopConfig(batch_size=BATCH), Span(0, 100 * BATCH)
    trainable = TrainableModule(network, OptimizerConfig(), loop, span, accelerator)
    share = BATCH // accelerator.num_processes

    def step(images: int) -> None:
        for part in trainable.micro_batches(share):
            trainable.backward(trainable.wrapped(torch.ones(share, WIDTH)[part]).square().mean())
        trainable.step(images)

    step(0)  # connections and buckets
    step(BATCH)
    before = written()
    for number in range(2, 2 + STEPS):
        step(number * BATCH)
    sent = (written() - before) / STEPS
    accelerator.wait_for_everyone()
    (folder / f"sent{accelerator.process_index}").write_text(str(sent))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_process_sends_its_gradient_by_the_formula_of_a_ring(tmp_path: Path, count: int) -> None:
    Processes(count, lambda: bytes_of_a_step(tmp_path), tmp_path).finish()
    weights = 2 * WIDTH * (WIDTH + 1)
    expected = 2 * (count - 1) / count * 4 * weights
    for rank in range(count):
        sent = float((tmp_path / f"sent{rank}").read_text())
        assert sent == pytest.approx(expected, rel=0.02, abs=1000)
