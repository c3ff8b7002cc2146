"""A command alone and beside a busy program, with threads that spin and with threads that sleep.

    python tools/bench_busy.py [--encode COUNT | --demo KEY=VALUE ... | --command ...] [--turns 3]

By default `latentddm encode` of drawn portraits with the embedded autoencoder. `--command` and all
that follows it is any other command; {output} in it is a new folder for each run. The busy program
multiplies matrices with two threads. Two policies take turns in one run, so that a load of the
machine meets both: "spin", OpenMP's default of about 3 ms at a barrier, and "sleep", after 0.1 ms,
which every command sets for itself (latentddm/engine/cpu_threads.py). Printed: the median seconds
of each and their ratios, with the machine and its load before the run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from command_line import exit_code

from latentddm.engine.atomic_io import make_folder, write_json
from latentddm.engine.cpu_threads import WAITING, available_cores
from latentddm.engine.errors import JobError, UserError

PORTRAITS = Path(__file__).resolve().parents[1] / "autoencoder" / "pretrained" / "portraits"
# libgomp's own default where no policy is set; a spin count outranks the policy.
POLICIES: dict[str, dict[str, str]] = {"spin": {"GOMP_SPINCOUNT": "300000"}, "sleep": {}}
BUSY_THREADS = 2
BUSY = """
import torch
torch.set_num_threads({threads})
a = torch.rand(512, 512)
print("ready", flush=True)
while True:
    a @ a
"""


@dataclass(frozen=True)
class Timing:
    """Median seconds of one policy, alone and beside the busy program."""

    alone: float
    beside: float

    @property
    def ratio(self) -> float:
        return self.beside / self.alone


def environment(policy: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with a policy, and without one of the user's."""
    return {k: v for k, v in os.environ.items() if k not in WAITING} | dict(policy)


def seconds_of(command: Sequence[str], policy: Mapping[str, str]) -> float:
    """Wall time of one run of the command; JobError with its last line if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        words = [word.replace("{output}", str(Path(folder) / "output")) for word in command]
        began = time.monotonic()
        done = subprocess.run(
            words, env=environment(policy), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        taken = time.monotonic() - began
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise JobError(f"The command ended with exit code {done.returncode} ({lines[-1]}).")
    return taken


@contextmanager
def busy_program(threads: int = BUSY_THREADS) -> Iterator[None]:
    """A process that multiplies matrices all the time, with OpenMP's own default policy."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(threads=threads)],
        env=environment({}),
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise JobError("The busy program did not start.")
        yield
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def measure(command: Sequence[str], turns: int) -> dict[str, Timing]:
    """The medians of `turns` turns; in each turn every policy runs alone and beside."""
    alone: dict[str, list[float]] = {name: [] for name in POLICIES}
    beside: dict[str, list[float]] = {name: [] for name in POLICIES}
    for _ in range(turns):
        for name, policy in POLICIES.items():
            alone[name].append(seconds_of(command, policy))
        with busy_program():
            for name, policy in POLICIES.items():
                beside[name].append(seconds_of(command, policy))
    return {name: Timing(median(alone[name]), median(beside[name])) for name in POLICIES}


def table(timings: Mapping[str, Timing]) -> str:
    """The medians and the ratios, as Markdown."""
    lines = ["| threads that wait | alone, s | beside, s | beside / alone |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {timing.alone:.1f} | {timing.beside:.1f} | {timing.ratio:.2f} |"
        for name, timing in timings.items()
    ]
    spin, sleep = timings["spin"], timings["sleep"]
    return "\n".join(
        [
            *lines,
            "",
            f"sleep / spin: {sleep.alone / spin.alone:.3f} alone, "
            f"{sleep.beside / spin.beside:.3f} beside",
        ]
    )


def chosen_command(options: argparse.Namespace) -> list[str]:
    """The words of the command to time."""
    if options.command:
        return list(options.command)
    program = [sys.executable, "-m", "latentddm"]
    if options.demo is not None:
        return [*program, "demo", "--output", "{output}", *options.demo]
    if options.encode < 1:
        raise UserError(f"--encode is {options.encode}; give 1 or more pictures.")
    source = ["--images", f"portraits:{options.encode}", "--size", "64"]
    return [*program, "encode", *source, "--autoencoder", str(PORTRAITS), "--output", "{output}"]


def run(options: argparse.Namespace) -> None:
    if options.turns < 1:
        raise UserError(f"--turns is {options.turns}; give 1 or more.")
    command, load = chosen_command(options), os.getloadavg()[0]
    machine = f"{available_cores()} cores, load {load:.2f} before, torch {torch.__version__}"
    print(f"{machine}\n{' '.join(command)}\n", flush=True)
    timings = measure(command, options.turns)
    print(table(timings))
    if options.output is not None:
        seconds = {name: vars(timing) for name, timing in timings.items()}
        values = {"machine": machine, "command": command, "turns": options.turns}
        make_folder(options.output.parent)
        write_json(options.output, values | {"seconds": seconds})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--encode", type=int, default=2000, help="portraits to encode")
    what.add_argument("--demo", nargs="*", metavar="KEY=VALUE", help="the demo with these keys")
    what.add_argument("--command", nargs=argparse.REMAINDER, help="any other command")
    parsed = parser.parse_args(arguments)
    return exit_code(lambda: run(parsed))


if __name__ == "__main__":
    raise SystemExit(main())
