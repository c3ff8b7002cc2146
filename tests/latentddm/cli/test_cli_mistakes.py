"""A mistake of a user or a fault of the machine ends in one sentence, never in a traceback.

Each test compares the message with what it must name: the file or the key, and the remedy.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest
import torch
from messages import assert_names, raises_naming

from latentddm.cli import main
from latentddm.engine.errors import UserError

NETWORK = "network={kind: unet, channels: 16, multipliers: [1], blocks: 1, attention_levels: []}"


@pytest.fixture
def config(tiny_store: Path, tmp_path: Path) -> list[str]:
    """A config file and the overrides with which it trains in a second."""
    path = tmp_path / "train.yaml"
    text = "phases: [{images: 16, objective: {kind: ddm, draws: 2}}]\nloop: {batch_size: 8}\n"
    path.write_text(text)
    return [str(path), f"store={tiny_store}", f"output={tmp_path / 'run'}", NETWORK]


def error_of(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> str:
    """The error message with which a command ends, the last line on stderr."""
    assert main(arguments) == code
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    program, _, message = stderr.strip().splitlines()[-1].partition(": ")
    assert program == "latentddm"
    return message


SOURCE, PATH = "give a folder of images", "check the path"
MISSING: list[tuple[list[str], list[str]]] = [
    (["encode", "--images", "gone", "--autoencoder", "x", "--output", "out"], ["gone ", SOURCE]),
    (
        ["encode", "--images", "portraits:9", "--autoencoder", "gone", "--output", "out"],
        ["autoencoder gone ", PATH],
    ),
    (
        ["import-latents", "gone", "--autoencoder", "lost", "--output", "out"],
        ["autoencoder lost ", PATH],
    ),
    (["verify", "gone"], ["gone ", "latent store", PATH]),
    (["train", "gone.yaml"], ["gone.yaml", "configs/"]),
    (["train-autoencoder", "gone.yaml"], ["gone.yaml", "configs/"]),
    (["distill", "gone.yaml"], ["gone.yaml", "configs/"]),
    (["sample", "gone", "--output", "out"], ["gone ", "config.yaml", PATH]),
    (["decode", "gone.npy", "--output", "out"], ["gone.npy", PATH]),
    (["evaluate", "gone", "--reference", "portraits:9"], ["gone ", SOURCE]),
    (["evaluate-autoencoder", "gone", "--images", "portraits:9"], ["autoencoder gone ", PATH]),
    (["export", "gone", "out"], ["gone ", "config.yaml", PATH]),
    (["ema", "gone", "--width", "0.1"], ["gone ", "config.yaml", PATH]),
    (["play", "gone", "--port", "0"], ["gone ", "config.yaml", PATH]),
    (["demo", "--images", "gone", "--output", "out"], ["gone ", SOURCE]),
]


@pytest.mark.parametrize(("arguments", "named"), MISSING, ids=lambda value: value[0])
def test_a_missing_file_is_named_with_the_remedy(
    arguments: list[str],
    named: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arguments[0] == "play" and find_spec("gradio") is None:
        pytest.skip("pip install 'latentddm[play]'")
    monkeypatch.chdir(tmp_path)
    assert_names(error_of(capsys, arguments, code=2), *named)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("loop.batchsize=8", ["'loop.batchsize'", "'batch_size'"]),
        ("network.chanels=8", ["'network.chanels'", "'channels'"]),
        ("network=uent", ["'network.kind'", "unet", "'uent'"]),
        ("phases.0.imagse=8", ["'phases.0.imagse'", "'images'"]),
        ("phases.0.images=many", ["'phases.0.images'", "whole number", "'many'"]),
        ("phases.0.objective.kind=dmd", ["'phases.0.objective.kind'", "ddm, plain", "'dmd'"]),
        ("phases=[]", ["phases", "phases=[{"]),
        ("loop.batch_size=0", ["loop", "batch_size must be at least 1"]),
        ("network.patch_size=3", ["STORE", "8 x 8", "patch_size"]),
        ("network.pointwise_levels=[0]", ["network", "patch_size"]),
        ("schedule=cosin", ["schedule", "flow, cosine", "cosin"]),
        ("precision=fp12", ["'precision'", "no, bf16, fp16", "'fp12'"]),
        ("loop.trackers=[wanbd]", ["loop.trackers", "'wanbd'", "tensorboard, wandb"]),
        ("not an override", ["'not an override'", "key=value"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_remedy(
    config: list[str],
    override: str,
    named: list[str],
    tiny_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = error_of(capsys, ["train", *config, override], code=2)
    assert_names(message, *(part.replace("STORE", str(tiny_store)) for part in named))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sample", "run", "--steps", "four", "--output", "out"], ["--steps", "int", "'four'"]),
        (["sample", "run"], ["required", "--output"]),
        (["smaple"], ["'smaple'", "sample"]),
        ([], ["required", "VERB"]),
        (["demo", "--speed", "fast"], ["unrecognized", "--speed"]),
    ],
)
def test_a_wrong_command_is_one_sentence_that_names_the_help(
    arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert_names(line, *named, "--help")


@pytest.mark.parametrize(
    ("package", "arguments", "command"),
    [
        ("shtab", ["completion", "bash"], "pip install shtab"),
        ("gradio", ["play", "run"], "pip install 'latentddm[play]'"),
        ("datasets", ["evaluate", "hf:a/b", "--reference", "portraits:9"], "pip install datasets"),
        ("lmdb", ["evaluate", "lmdb", "--reference", "portraits:9"], "pip install lmdb"),
        ("aiohttp", ["verify", "http://127.0.0.1:1/store"], "pip install aiohttp"),
        ("s3fs", ["verify", "s3://bucket/store"], "pip install s3fs"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    package: str,
    arguments: list[str],
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "data.mdb").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)  # its import fails
    if package in ("aiohttp", "s3fs"):  # imported within fsspec

        def fail(*arguments: object, **options: object) -> None:
            raise ImportError(package)

        monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    assert_names(error_of(capsys, arguments, code=2), command)


def test_a_precision_that_the_device_lacks_is_refused(
    config: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*arguments: object, **options: object) -> None:  # as accelerate without a GPU
        raise ValueError("fp16 mixed precision requires a GPU (not 'cpu').")

    monkeypatch.setattr("latentddm.engine.distributed.Accelerator", refuse)
    message = error_of(capsys, ["train", *config, "precision=fp16"], code=2)
    assert_names(message, "precision=fp16", "requires a GPU", "use precision=no")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_names_the_keys_to_lower(
    error: Exception,
    config: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("latentddm.training.generator.run_loop", fail)
    message = error_of(capsys, ["train", *config], code=1)
    assert_names(message, "Out of memory", "lower", "loop.batch_size", "objective.draws")


@pytest.mark.parametrize(
    ("arguments", "code", "reference"),
    [
        (
            ["encode", "--images", "portraits:9", "--autoencoder", "a/b", "--output", "out"],
            2,
            "a/b",
        ),
        (["evaluate", "hf:a/b", "--reference", "portraits:9"], 2, "a/b"),
        (["verify", "http://127.0.0.1:1/store"], 1, "http://127.0.0.1:1/store"),
        (
            ["evaluate", "http://127.0.0.1:1/all.zip", "--reference", "portraits:9"],
            1,
            "http://127.0.0.1:1/all.zip",
        ),
    ],
    ids=["autoencoder", "dataset", "store", "images"],
)
def test_an_unreachable_network_is_named_with_the_reference(
    arguments: list[str],
    code: int,
    reference: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("datasets", reason="pip install datasets")
    pytest.importorskip("aiohttp", reason="pip install aiohttp")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTDDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("autoencoder.remote.ATTEMPTS", 2)
    monkeypatch.setattr("autoencoder.remote.FIRST_DELAY", 0.01)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert_names(error_of(capsys, arguments, code), reference, "check the", "network")


def test_json_has_the_outcome_or_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_store: Path
) -> None:
    assert main(["verify", str(tiny_store), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["samples"] == 40
    assert outcome["problems"] == []
    assert main(["verify", str(tmp_path / "gone"), "--json"]) == 2
    out, err = capsys.readouterr()
    failure = json.loads(out)
    assert failure["exit_code"] == 2
    assert err == f"latentddm: {failure['error']}\n"
    assert_names(failure["error"], str(tmp_path / "gone"))


def test_colour_is_for_terminals_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(tmp_path / "gone")]
    assert main(command) == 2
    assert "\033" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(command) == 2
    assert "\033[31mlatentddm\033[0m: " in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(command) == 2
    assert "\033" not in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_ends_in_one_sentence(
    config: list[str], tmp_path: Path
) -> None:
    """A real process and a real signal, in the middle of the training."""
    command = [sys.executable, "-m", "latentddm", "train", *config]
    command += ["phases.0.images=1000000", "loop.log_every=8"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert metrics.exists()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert_names(stderr.splitlines()[-1], "SIGINT", "saved after", "run the same command again")
    assert "Traceback" not in stderr
    assert list((tmp_path / "run" / "checkpoints").glob("images-*/state.json"))


def test_a_port_out_of_range_or_in_use_is_refused() -> None:
    from latentddm.play.serving import require_free_port

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with raises_naming(UserError, str(port), "--port"):
            require_free_port("127.0.0.1", port)
    with raises_naming(UserError, "99999", "65535"):
        require_free_port("127.0.0.1", 99_999)
