"""Threads of torch beside other programs and beside image workers."""

from __future__ import annotations

import os

WAITING = {
    "OMP_WAIT_POLICY": "PASSIVE",  # of every OpenMP: sleep at once
    "GOMP_SPINCOUNT": "10000",  # of GNU's, torch's on Linux, where it outranks the policy: 0.1 ms
}
COUNTS = "OMP_NUM_THREADS", "MKL_NUM_THREADS"  # by which a user asks for a number of threads


def let_waiting_threads_sleep() -> None:
    """Let OpenMP's threads sleep at a barrier, unless the user has set how they wait.

    By default they spin for milliseconds: on cores that another program needs as well, the thread
    that all others wait for is then not running. They still spin for as long as most waits last on
    a core of one's own: sleeping at once costs a small network a third of its speed
    (tools/results/speed-cpu). Before torch, whose OpenMP reads the environment when it is loaded;
    processes that this one starts inherit it.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ.update(WAITING)


def available_cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def leave_room_for(workers: int, device_type: str) -> None:
    """Take torch's threads from the cores that `workers` image processes need.

    device_type: of the network. On a CPU torch keeps all cores: the network needs them more than
    the decoding of its images, and threads that sleep do not hold up a worker. Unchanged where the
    user has set a number.
    """
    if device_type == "cpu" or any(name in os.environ for name in COUNTS):
        return
    import torch  # here, as this module is imported before torch

    torch.set_num_threads(max(1, min(torch.get_num_threads(), available_cores() - workers)))
