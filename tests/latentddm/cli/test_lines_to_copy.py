"""The lines to copy in docs/distributed.md are commands that a shell and the parsers take."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from latentddm.cli.parser import build_parser

PAGE = Path(__file__).parents[3] / "latentddm" / "docs" / "distributed.md"
RECORD = """printf '%s\\0' "${0##*/}" "$@" >> "$RECORD"; printf '\1' >> "$RECORD"\n"""
PROGRAMS = {
    **dict.fromkeys(("latentddm", "accelerate", "aws"), RECORD),
    "sleep": "",
    "scontrol": "echo first-node\n",
    "srun": 'exec "$@"\n',
    "sbatch": RECORD + 'exec bash -c "${@: -1}"\n',
}
SLURM = {
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "nodes",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_COUNT": "16",
}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def commands(folder: Path) -> list[list[str]]:
    """The arguments of every command, in the order of the page."""
    for name, body in PROGRAMS.items():
        program = folder / name
        program.write_text(f"#!/usr/bin/env bash\n{body}")
        program.chmod(0o755)
    record = folder / "record"
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | SLURM | {"PATH": path, "RECORD": str(record)}
    text = PAGE.read_text("utf-8").split("## What a process does")[0]
    for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE):
        done = subprocess.run(
            ["bash", "-eu"],
            input=block,
            env=environment,
            text=True,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), block
    return [line.split("\0")[:-1] for line in record.read_text().split("\1")[:-1]]


def test_the_lines_are_commands_that_the_parsers_take(tmp_path: Path) -> None:
    found = commands(tmp_path)
    assert {program for program, *_ in found} == {"latentddm", "accelerate", "aws", "sbatch"}
    launched = 0
    for program, *arguments in found:
        if program == "accelerate":
            assert arguments.pop(0) == "launch"
            parsed = launch_command_parser().parse_args(arguments)
            assert parsed.module
            assert parsed.training_script == "latentddm"
            program, arguments = "latentddm", parsed.training_script_args
            launched += 1
        if program == "latentddm":
            verb = build_parser().parse_args(arguments)
            assert all("=" in change for change in getattr(verb, "overrides", ())), arguments
    assert launched >= 4
