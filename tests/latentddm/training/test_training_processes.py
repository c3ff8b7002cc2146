"""The generator on several processes and machines, as users start it: real commands, real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pausing
import psutil
import pytest
import torch
from messages import assert_names
from processes import Processes, free_port
from safetensors.torch import load_file
from tiny_runs import final_weights
from tiny_training import logged

from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.config import load_config
from latentddm.engine.distributed import start_processes
from latentddm.engine.run import RunFolder
from latentddm.training.config import TrainConfig
from latentddm.training.generator import train

BATCH = 8
LIMIT = 300  # seconds for each wait


UNET = "{channels: 16, multipliers: [1, 2], blocks: 1, attention_levels: [1], head_channels: 16}"


def settings(checkpoint_every: int, phases: str, network: str = UNET) -> str:
    return f"""
network: {network}
loop: {{batch_size: {BATCH}, log_every: {BATCH}, checkpoint_every: {checkpoint_every}}}
ema: {{snapshots: 4}}
phases: {phases}
"""


SHORT = settings(
    BATCH, "[{images: 24, objective: plain}, {images: 24, objective: {kind: ddm, draws: 2}}]"
)
LONG = settings(
    8 * BATCH,
    """
  - images: 160
    objective: plain
    optimizer: {learning_rate: 1.0e-3, warmup_images: 16, decay: cosine}
  - images: 160
    objective: {kind: ddm, draws: 2, targets: 3}
    optimizer: {learning_rate: 1.0e-3, warmup_images: 16, decay: cosine}
""",
)
DIT = settings(
    8 * BATCH,
    """
  - images: 32
    objective: plain
    optimizer: {learning_rate: 1.0e-3, warmup_images: 16}
  - images: 32
    objective: {kind: ddm, draws: 2}
    optimizer: {learning_rate: 1.0e-3, warmup_images: 16}
""",
    """
  {kind: dit, width: 32, blocks: 2, head_channels: 16, positions: learnt, position_grid: 3,
   dropout: 0.1, noise: posterior, gaussian_mean: true, gaussian_components: 5}""",
)


class Training:
    """One command of a run, started with a launcher, or with none; `pause`: images of its pause."""

    def __init__(
        self,
        config: str,
        store: Path,
        output: Path,
        launcher: list[str] | None = None,
        *changes: str,
        pause: int | None = None,
    ) -> None:
        self.run = RunFolder(output)
        path = output.with_suffix(".yaml")
        path.write_text(config)
        program = ["-m", "latentddm"]
        if pause is not None:
            program = [pausing.__file__, str(pause)]
        launch = [] if launcher is None else ["-m", "accelerate.commands.launch", *launcher]
        command = ["train", str(path), f"store={store}", f"output={output}", *changes]
        self.log = output.with_name(f"{output.name}-{time.monotonic_ns()}.log")
        with open(self.log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *launch, *program, *command],
                stdout=file,
                stderr=file,
                env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
                start_new_session=True,
            )

    def finish(self) -> RunFolder:
        """Wait for its end without an error."""
        try:
            assert self.process.wait(LIMIT) == 0, self.log.read_text()
        finally:
            self.kill()
        return self.run

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; a command that ends before it, or never meets it, is an error."""
        deadline = time.monotonic() + LIMIT
        try:
            while not condition():
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.01)
        except BaseException:
            self.kill()
            raise

    def kill_at(self, images: int) -> None:
        """Kill -9 at its pause."""
        self.wait_until(lambda: any(line["images"] == images for line in self.run.read_metrics()))
        self.kill()

    def kill(self) -> None:
        """Kill -9 the command and its descendants, such as the workers of a launcher."""
        if self.process.poll() is None:
            parent = psutil.Process(self.process.pid)
            for process in [parent, *parent.children(recursive=True)]:
                process.kill()
            self.process.wait()


def launcher(count: int, machines: int = 1, rank: int = 0, port: int = 0) -> list[str]:
    # accelerate's launcher for CPUs requires MPI; with ACCELERATE_USE_CPU that for GPUs uses gloo.
    return [
        "--multi_gpu",
        f"--num_processes={count}",
        f"--num_machines={machines}",
        f"--machine_rank={rank}",
        "--main_process_ip=127.0.0.1",
        f"--main_process_port={port or free_port()}",
        "--mixed_precision=no",
        "--dynamo_backend=no",
    ]


def assert_same(first: RunFolder, second: RunFolder, images: int) -> None:
    """Equal metrics, and checkpoints that are equal to the bit."""
    assert logged(first) == logged(second)
    a, b = newest_checkpoint(first.checkpoints), newest_checkpoint(second.checkpoints)
    assert a is not None
    assert b is not None
    assert (a.images, a.phase) == (b.images, b.phase) == (images, 1)
    files = sorted(path.name for path in a.path.glob("*.safetensors"))
    assert files == [
        "ema.safetensors",
        "ema_0.05.safetensors",
        "network.safetensors",
        "optimizer.safetensors",
    ]
    for name in files:
        saved, other = load_file(a.path / name), load_file(b.path / name)
        assert set(saved) == set(other)
        assert all(torch.equal(saved[key], other[key]) for key in saved), name
    snapshots = [sorted(path.name for path in run.averages.iterdir()) for run in (first, second)]
    assert snapshots[0] == snapshots[1]


def fork(
    config: str,
    store: Path,
    output: Path,
    *changes: str,
    count: int = 2,
    before: Callable[[], None] | None = None,
) -> Processes:
    """The run in processes that need not import torch again; `before`: first in each of them."""
    path = output.with_suffix(".yaml")
    path.write_text(config)

    def work() -> None:
        if before is not None:
            before()
        train(load_config(TrainConfig, path, [f"store={store}", f"output={output}", *changes]))

    return Processes(count, work, output.parent)


def test_a_sharded_dit_has_the_weights_of_one_process(tiny_store: Path, tmp_path: Path) -> None:
    """Two phases, learnt positions, dropout, posterior noise, the Gaussian mean as an input."""
    fork(DIT, tiny_store, tmp_path / "one", count=1).finish()
    fork(DIT, tiny_store, tmp_path / "sharded", "loop.sharded=true").finish()
    one, sharded = (final_weights(RunFolder(tmp_path / name)) for name in ("one", "sharded"))
    assert set(one) == set(sharded)
    for name in ("draw_parts.0.modulate.weight", "posterior_noise.factors.weight"):
        assert one[f"network/{name}"].abs().max() > 1e-3, name  # it began at zero
    apart = {
        name: float((weights - sharded[name]).abs().max())
        for name, weights in one.items()
        if not name.startswith("optimizer")
    }
    assert max(apart.values()) < 1e-6, apart


@pytest.mark.slow  # every day: the same of the loop, in engine/test_resume.py
def test_two_processes_resume_bit_equal_after_a_kill_in_the_first_phase(
    tiny_store: Path, tmp_path: Path
) -> None:
    """The resumed run is started with `accelerate launch`, the other two are forked."""
    fork(SHORT, tiny_store, tmp_path / "undisturbed").finish()
    run = RunFolder(tmp_path / "killed")
    killed = fork(SHORT, tiny_store, run.path, before=lambda: pausing.pause_at(16))
    killed.wait_for(run.metrics_path, '"images": 16,')
    killed.kill()
    left = newest_checkpoint(run.checkpoints)
    assert left is not None
    assert (left.images, left.phase) == (8, 0)
    Training(SHORT, tiny_store, run.path, launcher(2)).finish()
    assert_same(RunFolder(tmp_path / "undisturbed"), run, images=48)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_of_two_processes_one_vanishes_both_end_and_resume_bit_equal(
    tiny_store: Path, tmp_path: Path, victim: int
) -> None:
    fork(SHORT, tiny_store, tmp_path / "undisturbed").finish()
    run = RunFolder(tmp_path / "killed")

    def pause() -> None:
        if start_processes().process_index == victim:
            pausing.pause_before(32)

    killed = fork(SHORT, tiny_store, run.path, before=pause)
    killed.wait_for(killed.logs[victim], pausing.PAUSED)
    killed.started[victim].kill()
    codes = killed.wait()
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1  # it does not wait for ever
    sentence = killed.outputs()[1 - victim].splitlines()[-1]
    assert_names(sentence, "connection", "same command again")
    left = newest_checkpoint(run.checkpoints)
    assert left is not None
    assert (left.images, left.phase) == (32, 1)
    fork(SHORT, tiny_store, run.path).finish()
    assert_same(RunFolder(tmp_path / "undisturbed"), run, images=48)


@pytest.mark.slow
@pytest.mark.parametrize("images", [17 * BATCH, 29 * BATCH])
def test_one_process_resumes_bit_equal_after_a_kill_in_either_phase(
    tiny_store: Path, tmp_path: Path, images: int
) -> None:
    undisturbed = Training(LONG, tiny_store, tmp_path / "undisturbed").finish()
    Training(LONG, tiny_store, tmp_path / "killed", pause=images).kill_at(images)
    resumed = Training(LONG, tiny_store, tmp_path / "killed").finish()
    assert_same(undisturbed, resumed, images=320)


@pytest.mark.slow
def test_two_machines_are_one_run_and_resume_bit_equal_in_the_second_phase(
    tiny_store: Path, tmp_path: Path
) -> None:
    one = Training(LONG, tiny_store, tmp_path / "one").finish()

    def on_two_machines(name: str, pause: int | None = None) -> list[Training]:
        port = free_port()
        return [
            Training(LONG, tiny_store, tmp_path / name, launcher(2, 2, rank, port), pause=pause)
            for rank in range(2)
        ]

    two, _ = [training.finish() for training in on_two_machines("two")]
    for a, b in zip(logged(one), logged(two), strict=True):
        assert a["images"] == b["images"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5, abs=1e-5)

    first, second = on_two_machines("killed", pause=29 * BATCH)
    first.kill_at(29 * BATCH)
    try:
        assert second.process.wait(LIMIT) != 0  # by itself
    finally:
        second.kill()
    lines = second.log.read_text().splitlines()
    sentence = next(line for line in lines if line.startswith("latentddm: "))
    assert_names(sentence, "connection", "same command again")
    resumed, _ = [training.finish() for training in on_two_machines("killed")]
    assert_same(two, resumed, images=320)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_saves_and_ends_in_one_sentence(
    tiny_store: Path, tmp_path: Path, count: int
) -> None:
    launch = launcher(count) if count > 1 else None
    endless = "phases.0.images=80000"
    training = Training(LONG, tiny_store, tmp_path / "run", launch, endless)
    training.wait_until(lambda: len(training.run.read_metrics()) >= 5)
    training.process.send_signal(signal.SIGTERM)
    try:
        code = training.process.wait(LIMIT)
    finally:
        training.kill()
    lines = training.log.read_text().splitlines()
    messages = [line for line in lines if "saved after" in line]  # of each process
    assert len(messages) == count
    assert_names(messages[0], "SIGTERM", "run the same command again")
    assert newest_checkpoint(training.run.checkpoints) is not None
    if count == 1:
        assert code == 128 + signal.SIGTERM
        assert messages == lines[-1:]
        assert "Traceback" not in "\n".join(lines)
