"""Threads that wait sleep, in every command; torch leaves cores to the image workers of a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from latentddm.engine import cpu_threads
from latentddm.engine.cpu_threads import COUNTS, WAITING, leave_room_for

# The policy at the moment at which torch is imported by a command, printed by a stand-in for torch.
PROGRAM = """
import os, sys
from importlib.abc import MetaPathFinder
class Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch:", *map(os.environ.get, ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Finder())
from latentddm.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "PASSIVE 10000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "0"}, "None 0"),
    ],
    ids=["by default", "a policy", "a spin count"],
)
@pytest.mark.parametrize(
    "command",
    [
        ["train", "missing.yaml"],
        ["encode", "--images", "portraits:2", "--autoencoder", "missing", "--output", "store"],
        ["sample", "missing", "--output", "samples"],
    ],
    ids=["train", "encode", "sample"],
)
def test_every_command_sets_how_threads_wait_before_torch_unless_the_user_has(
    command: list[str], given: dict[str, str], expected: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command],
        env=environment | given,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == f"torch: {expected}", done.stderr


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that are set, from 8 on 8 cores, where the user asks for none."""
    found: list[int] = []
    for name in COUNTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpu_threads, "available_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    return found


@pytest.mark.parametrize(("workers", "left"), [(0, 8), (3, 5), (8, 1), (20, 1)])
def test_threads_and_workers_beside_a_gpu_are_no_more_than_the_cores(
    threads: list[int], workers: int, left: int
) -> None:
    leave_room_for(workers, "cuda")
    assert threads == [left]


def test_a_network_on_the_cpu_keeps_its_cores_and_a_number_of_the_user_stands(
    threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_room_for(3, "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    leave_room_for(3, "cuda")
    assert threads == []
