"""An error in a worker, a writer or their consumer ends the command; nothing hangs or is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults import fails, time_limit
from image_files import files, write_folder
from messages import raises_naming

from autoencoder import decode, models
from autoencoder.images import Preprocessing, iterate_pixels, open_source
from autoencoder.remote import RemoteFolder
from autoencoder.sources.folder import FolderSource
from autoencoder.store import LatentStore, locations
from autoencoder.store.shard import ShardBuilder
from autoencoder.worker_processes import WorkerTraceback, map_in_workers
from latentddm.cli import main
from latentddm.engine.errors import JobError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="faults are injected through a fork")
TESTS = os.getpid()
NAMES = tuple(f"{number}.png" for number in range(20))


class Unpicklable(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__("injected\nin two lines")
        self.one, self.two = one, two


def injected(kind: str) -> Any:
    """A function that fails in the way of `kind`."""

    def fail(*arguments: object, **options: object) -> None:
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "exit":
            os._exit(3)
        raise {
            "disk": OSError(errno.ENOSPC, "No space left on device"),
            "memory": MemoryError(),
            "bug": ValueError("injected"),
            "unpicklable": Unpicklable(lambda: 0, lambda: 1),
            "system exit": SystemExit(4),
        }[kind]

    return fail


@pytest.fixture
def encoding(
    tmp_path: Path, tiny_autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], list[str]]:
    """(output) -> the arguments of an encoding of 20 images in two worker processes."""
    monkeypatch.setattr(models, "check_reconstruction", lambda *arguments: None)
    images = write_folder(tmp_path / "images", files(NAMES))
    return lambda output: [
        *("encode", "--images", str(images), "--autoencoder", str(tiny_autoencoder)),
        *("--output", str(output), "--size", "32", "--workers", "2", "--batch-size", "4"),
    ]


def read_or(failure: Callable[..., Any]) -> Callable[[FolderSource, int], bytes]:
    """`FolderSource.read` with a failure at one image, in worker processes only."""
    read = FolderSource.read

    def faulty(source: FolderSource, index: int) -> bytes:
        if source.key(index) == "13.png" and os.getpid() != TESTS:
            failure()
        return read(source, index)

    return faulty


WORKER_FAULTS = {
    "killed": ("SIGKILL", "fewer workers"),
    "exit": ("exit code 3", "fewer workers"),
    "system exit": ("process", "ended", "fewer workers"),
    "memory": ("out of memory", "fewer workers"),
    "bug": ("13.png", "ValueError: injected", "--debug"),
    "unpicklable": ("13.png", "Unpicklable: injected in two lines", "--debug"),
    "disk": ("13.png", "No space left", "--debug"),
}


@pytest.mark.parametrize("kind", WORKER_FAULTS)
def test_a_fault_in_a_worker_is_one_sentence_and_ends_all_workers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderSource, "read", read_or(injected(kind)))
    source = open_source(write_folder(tmp_path / "images", files(NAMES)))
    before = psutil.Process().children()
    with time_limit(), raises_naming(JobError, *WORKER_FAULTS[kind]):
        list(iterate_pixels(source, range(20), Preprocessing(size=16), 2))
    assert psutil.Process().children() == before


def test_a_killed_worker_ends_the_encoding_and_the_same_command_goes_on(
    tmp_path: Path, encoding: Callable[[Path], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderSource, "read", read_or(injected("killed")))
        fails(capsys, encoding(store), 1, tmp_path, *WORKER_FAULTS["killed"])
    assert main(encoding(store)) == 0
    assert len(LatentStore(store)) == 20


@pytest.mark.parametrize(
    ("place", "kind", "named"),
    [
        ((ShardBuilder, "write"), "bug", ("ValueError: injected", "--debug")),
        ((ShardBuilder, "write"), "disk", ("disk is full",)),
        ((ShardBuilder, "add"), "memory", ("Out of memory", "--batch-size")),
        ((models.Autoencoder, "encode"), "bug", ("ValueError: injected", "--debug")),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_fault_in_the_writer_or_the_consumer_ends_the_encoding_and_its_workers(
    place: tuple[type, str],
    kind: str,
    named: tuple[str, ...],
    tmp_path: Path,
    encoding: Callable[[Path], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*place, injected(kind))
        fails(capsys, encoding(tmp_path / "store"), 1, tmp_path, *named)


@pytest.mark.parametrize(("kind", "named"), [("bug", "ValueError"), ("disk", "disk is full")])
def test_a_fault_in_a_writing_thread_ends_the_decoding(
    kind: str,
    named: str,
    tmp_path: Path,
    tiny_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(decode, "image_bytes", injected(kind))
    arguments = ["decode", str(tiny_store), "--output", str(tmp_path / "images")]
    fails(capsys, arguments, 1, tmp_path, named)


def test_a_fault_in_a_download_is_raised_by_the_reader(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LatentStore(tiny_store)
    remote = RemoteFolder(tmp_path.as_uri())
    monkeypatch.setattr(RemoteFolder, "download", injected("bug"))
    shards = locations.RemoteShards(remote, store.manifest, tmp_path / "cache")
    with time_limit(), pytest.raises(ValueError, match="injected"):
        shards.prepare(list(range(len(store.manifest.shards))))


def test_a_fault_in_a_worker_ends_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = str(write_folder(tmp_path / "images", files(NAMES)))
    monkeypatch.setattr(FolderSource, "read", read_or(injected("killed")))
    training = [
        *("train-autoencoder", "portraits_autoencoder.yaml", f"images={images}"),
        *(f"output={tmp_path / 'run'}", "size=32", "workers=2", "loop.batch_size=4"),
        *("loop.images=400", "adversarial.weight=0", "loss.perceptual=none", "start=null"),
        "network={widths: [8,8,8], blocks: 1, latent_channels: 3, norm_groups: 4}",
    ]
    fails(capsys, training, 1, tmp_path, "SIGKILL", "fewer workers")


def test_the_cause_of_an_error_in_a_worker_is_its_traceback() -> None:
    with time_limit(), pytest.raises(JobError) as caught:
        list(map_in_workers(injected("bug"), range(3), 2))
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert "in fail" in str(caught.value.__cause__)


def test_results_are_in_order_and_tasks_may_be_endless() -> None:
    tasks = iter(int, 1)  # endless
    numbers = (number + task for number, task in enumerate(tasks))

    def work(number: int) -> int:
        time.sleep(0.01 * (number % 3 == 0))
        return number

    results = map_in_workers(work, numbers, 3)
    with time_limit():
        assert [next(results) for _ in range(40)] == list(range(40))
        before = psutil.Process().children()
        results.close()
    assert len(before) - len(psutil.Process().children()) == 3


def test_a_worker_that_is_busy_or_stopped_does_not_delay_the_end(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path / "images", files(NAMES)))
    before = set(psutil.Process().children())
    items = iterate_pixels(source, range(20), Preprocessing(size=16), 2)
    next(items)
    workers = set(psutil.Process().children()) - before
    for worker in workers:
        worker.suspend()
    with time_limit(20):
        items.close()
    assert not any(worker.is_running() for worker in workers)


def test_the_interpreter_exits_while_a_traceback_keeps_the_workers() -> None:
    script = (
        "from autoencoder.worker_processes import map_in_workers\n"
        "results = map_in_workers(bytes, [1 << 20] * 100, 2)\n"
        "next(results)\n"
        "1 / 0\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE
    )
    with time_limit():
        stderr = run.communicate()[1]  # until the last process with this output has ended
    assert run.returncode == 1
    assert stderr.rstrip().endswith(b"ZeroDivisionError: division by zero")
