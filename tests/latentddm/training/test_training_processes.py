"""The generator on many processes and machines, as users start it: real commands, real kills."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from latentddm.engine.checkpoint import newest_checkpoint
from latentddm.engine.run import RunFolder

pytestmark = pytest.mark.slow

STEPS, BATCH = 40, 8
CONFIG = f"""
network: {{channels: 16, multipliers: [1, 2], blocks: 1, attention_levels: [1], head_channels: 16}}
objective: {{draws: 2, targets: 3}}
optimizer: {{learning_rate: 1.0e-3, warmup_images: 16, decay: cosine}}
loop: {{images: {STEPS * BATCH}, batch_size: {BATCH}, log_every: {BATCH}, checkpoint_every: 64}}
ema: {{snapshots: 4}}
"""


def command(tmp_path: Path, store: Path, name: str, *launcher: str) -> list[str]:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    module = ["-m", "latentddm", "train", str(path), f"store={store}", f"output={tmp_path / name}"]
    if not launcher:
        return [sys.executable, *module]
    return [sys.executable, "-m", "accelerate.commands.launch", *launcher, *module]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with open(log, "wb") as file:
        return subprocess.Popen(
            arguments, stdout=file, stderr=file, env=environment, start_new_session=True
        )


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.wait(600) == 0, log.read_text()


def kill_at(process: subprocess.Popen[bytes], run: RunFolder, steps: int, log: Path) -> None:
    while not any(line["images"] == steps * BATCH for line in run.read_metrics()):
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command with all that it has started, the workers of a launcher too."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    process.wait()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def launch(count: int, machines: int = 1, rank: int = 0, port: int = 0) -> list[str]:
    # Its launcher for the CPU needs MPI; with ACCELERATE_USE_CPU the one for GPUs starts gloo.
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


def logged(run: RunFolder) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in run.read_metrics()
    ]


def assert_same(first: RunFolder, second: RunFolder) -> None:
    assert logged(first) == logged(second)
    a, b = newest_checkpoint(first.checkpoints), newest_checkpoint(second.checkpoints)
    assert a is not None
    assert b is not None
    assert a.images == b.images == STEPS * BATCH
    for path in a.path.glob("*.safetensors"):
        saved, other = load_file(path), load_file(b.path / path.name)
        assert set(saved) == set(other)
        assert all(torch.equal(saved[name], other[name]) for name in saved), path.name


def test_40_steps_are_17_and_kill_9_and_23_more(tiny_store: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    finish(start(command(tmp_path, tiny_store, "straight"), log), log)
    killed = command(tmp_path, tiny_store, "killed")
    kill_at(start(killed, log), RunFolder(tmp_path / "killed"), 17, log)
    finish(start(killed, log), log)
    assert_same(RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "killed"))


def test_two_machines_are_one_run_and_resume_exactly(tiny_store: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    finish(start(command(tmp_path, tiny_store, "one"), log), log)
    one = RunFolder(tmp_path / "one")

    def on_two_machines(name: str) -> list[subprocess.Popen[bytes]]:
        port = free_port()
        return [
            start(
                command(tmp_path, tiny_store, name, *launch(2, 2, rank, port)),
                tmp_path / f"{name}{rank}",
            )
            for rank in range(2)
        ]

    for rank, process in enumerate(on_two_machines("two")):
        finish(process, tmp_path / f"two{rank}")
    two = RunFolder(tmp_path / "two")
    for a, b in zip(logged(one), logged(two), strict=True):
        assert a["images"] == b["images"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5, abs=1e-5)

    killed = RunFolder(tmp_path / "killed")
    processes = on_two_machines("killed")
    kill_at(processes[0], killed, 17, tmp_path / "killed0")
    kill(processes[1])
    for rank, process in enumerate(on_two_machines("killed")):
        finish(process, tmp_path / f"killed{rank}")
    assert_same(two, killed)
    assert sorted(path.name for path in two.averages.iterdir()) == sorted(
        path.name for path in killed.averages.iterdir()
    )


@pytest.mark.parametrize("launcher", [[], ["two"]])
def test_sigterm_saves_and_ends_in_one_sentence(
    tiny_store: Path, tmp_path: Path, launcher: list[str]
) -> None:
    log = tmp_path / "log"
    arguments = command(tmp_path, tiny_store, "run", *(launch(2) if launcher else []))
    process = start([*arguments, "loop.images=80000"], log)
    run = RunFolder(tmp_path / "run")
    while len(run.read_metrics()) < 5:
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code = process.wait(300)
    said = log.read_text()
    assert "SIGTERM: saved after" in said
    assert newest_checkpoint(run.checkpoints) is not None
    if not launcher:
        assert code == 128 + signal.SIGTERM
        assert "Traceback" not in said
