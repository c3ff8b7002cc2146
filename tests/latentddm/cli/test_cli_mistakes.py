"""No mistake of a user, and no fault of the machine, ends in a traceback (issue 7)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from latentddm.cli import main

NETWORK = "network={channels: 16, multipliers: [1], blocks: 1, attention_levels: []}"


@pytest.fixture
def config(tiny_store: Path, tmp_path: Path) -> list[str]:
    """A config file and the overrides with which it trains in a second."""
    path = tmp_path / "train.yaml"
    path.write_text("loop: {images: 16, batch_size: 8}\n")
    return [str(path), f"store={tiny_store}", f"output={tmp_path / 'run'}", NETWORK]


def sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> str:
    """The one sentence on stderr with which a command ends."""
    assert main(arguments) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("latentddm: ")
    assert "Traceback" not in said
    return said


MISSING: list[tuple[list[str], str]] = [
    (["encode", "--images", "no", "--autoencoder", "no", "--output", "out"], "no does not exist"),
    (["verify", "no"], "no"),
    (["train", "no.yaml"], "no.yaml does not exist"),
    (["train-autoencoder", "no.yaml"], "no.yaml does not exist"),
    (["distill", "no.yaml"], "no.yaml does not exist"),
    (["sample", "no", "--output", "out"], "no"),
    (["decode", "no.npy", "--output", "out"], "no.npy"),
    (["evaluate", "no", "--reference", "portraits:9"], "no does not exist"),
    (["evaluate-autoencoder", "no", "--images", "portraits:9"], "no"),
    (["export", "no", "out"], "no"),
    (["ema", "no", "--width", "0.1"], "no"),
    (["play", "no", "--port", "0"], "no"),
    (["demo", "--images", "no", "--output", "out"], "no does not exist"),
]


@pytest.mark.parametrize(("arguments", "said"), MISSING, ids=lambda value: str(value[0]))
def test_a_missing_file_is_named(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arguments[0] == "play" and find_spec("gradio") is None:
        pytest.skip("pip install 'latentddm[play]'")
    monkeypatch.chdir(tmp_path)
    assert said in sentence(capsys, arguments, code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loop.imagse=8", "'loop.imagse'; did you mean 'images'"),
        ("network.chanels=8", "'network.chanels'; did you mean 'channels'"),
        ("loop.images=many", "'loop.images' must be a whole number, not 'many'"),
        ("loop.batch_size=0", "batch_size must be at least 1"),
        (
            "network.patch_size=3",
            "latents in {store} are 8 x 8, but the network needs edges divisib",
        ),
        ("network.pointwise_levels=[0]", "patches of 1 would not hear each other; set network.pat"),
        ("precision=fp12", "'precision' must be one of"),
        ("loop.trackers=[wanbd]", "'wanbd', which is none of"),
        ("not an override", "write key=value"),
    ],
)
def test_a_wrong_key_or_type_is_named(
    config: list[str],
    override: str,
    said: str,
    tiny_store: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = said.format(store=tiny_store)
    assert said in sentence(capsys, ["train", *config, override], code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sample", "run", "--steps", "four", "--output", "out"], "--steps: invalid int value"),
        (["sample", "run"], "required: --output"),
        (["smaple"], "invalid choice"),
        ([], "required: VERB"),
        (["demo", "--speed", "fast"], "unrecognized arguments"),
    ],
)
def test_a_wrong_command_is_one_sentence_that_names_the_help(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert "--help" in line


def without(package: str) -> Callable[[pytest.MonkeyPatch], None]:
    def remove(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, package, None)

    return remove


@pytest.mark.parametrize(
    ("package", "arguments", "said"),
    [
        ("shtab", ["completion", "bash"], "pip install shtab"),
        ("gradio", ["play", "run"], "pip install 'latentddm[play]'"),
        ("datasets", ["evaluate", "hf:a/b", "--reference", "portraits:9"], "pip install datasets"),
        ("lmdb", ["evaluate", "lmdb", "--reference", "portraits:9"], "pip install lmdb"),
        ("aiohttp", ["verify", "http://127.0.0.1:1/store"], "pip install aiohttp"),
        ("s3fs", ["verify", "s3://bucket/store"], "pip install s3fs"),
    ],
)
def test_a_missing_extra_names_the_command_that_installs_it(
    package: str,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "data.mdb").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    without(package)(monkeypatch)
    if package in ("aiohttp", "s3fs"):
        import fsspec

        def missing(*arguments: object, **options: object) -> None:
            raise ImportError(package)

        monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    assert said in sentence(capsys, arguments, code=2)


def test_a_precision_that_needs_cuda_is_refused_without_one(
    config: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As accelerate says it where the device cannot compute in fp16."""

    def refuse(*arguments: object, **options: object) -> None:
        raise ValueError("fp16 mixed precision requires a GPU (not 'cpu').")

    monkeypatch.setattr("latentddm.engine.distributed.Accelerator", refuse)
    said = sentence(capsys, ["train", *config, "precision=fp16"], code=2)
    assert "precision is fp16: fp16 mixed precision requires a GPU" in said
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
def test_out_of_memory_says_what_to_lower(
    error: Exception,
    config: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("latentddm.training.generator.run_loop", fail)
    said = sentence(capsys, ["train", *config], code=1)
    assert "lower loop.batch_size or objective.draws" in said


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["encode", "--images", "portraits:9", "--autoencoder", "a/b", "--output", "out"], 2),
        (["evaluate", "hf:a/b", "--reference", "portraits:9"], 2),
        (["verify", "http://127.0.0.1:1/store"], 1),
        (["evaluate", "http://127.0.0.1:1/all.zip", "--reference", "portraits:9"], 1),
    ],
    ids=["autoencoder", "dataset", "store", "images"],
)
def test_no_network_is_said(
    arguments: list[str],
    code: int,
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
    assert "network" in sentence(capsys, arguments, code)


def test_json_tells_machines_the_outcome_or_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_store: Path
) -> None:
    assert main(["verify", str(tiny_store), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["samples"] == 40
    assert told["problems"] == []
    assert main(["verify", str(tmp_path / "no"), "--json"]) == 2
    out, said = capsys.readouterr()
    assert json.loads(out)["exit_code"] == 2
    assert json.loads(out)["error"] in said


def test_no_colour_where_no_one_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(tmp_path / "no")]
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
def test_ctrl_c_saves_a_checkpoint_and_says_one_sentence(config: list[str], tmp_path: Path) -> None:
    """A real process and a real signal, in the middle of the training."""
    command = [sys.executable, "-m", "latentddm", "train", *config, "loop.images=1000000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    samples = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not samples.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "run the same command again to go on" in said.splitlines()[-1]
    assert list((tmp_path / "run" / "checkpoints").glob("images-*/state.json"))


def test_a_port_that_is_no_port_is_said(
    config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from latentddm.engine.errors import UserError
    from latentddm.play.serving import require_free_port

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="is taken; give another one with --port"):
            require_free_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="65535"):
        require_free_port("127.0.0.1", 99_999)
