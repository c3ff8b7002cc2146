"""Small files that would fill the memory or the stack: one sentence at once, nothing else."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Command
from faults import time_limit
from image_files import image_file
from messages import raises_naming

from autoencoder.images import open_source
from autoencoder.models import load_autoencoder
from autoencoder.store import LatentStore
from latentddm.engine.atomic_io import read_json
from latentddm.engine.config import load_config
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.run import RunFolder
from latentddm.inference.generator import RUN_KIND
from latentddm.training.config import TrainConfig

DEEP = 100_000
LEVELS = 12  # of nine aliases each: 10^11 nodes


def _levels(first: str, level: Callable[[int], str]) -> str:
    return "\n".join([first, *(level(number) for number in range(1, LEVELS))]) + "\n"


YAML = {
    "aliases": _levels(
        "a0: &a0 [x, x]", lambda n: f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]"
    ),
    "merges": _levels(
        "a0: &a0 {x: 1}", lambda n: f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}"
    ),
    "cycle": "a: &a [*a]\n",
    "lists": f"a: {'[' * DEEP}{']' * DEEP}\n",
    "mappings": f"a: {'{b: ' * DEEP}1{'}' * DEEP}\n",
    "lines": "".join(f"{' ' * depth}a:\n" for depth in range(1500)),
    "lists below the reader's limit": f"a: {'[' * 900}{']' * 900}\n",
}
JSON = '{"a": ' + "[" * DEEP + "]" * DEEP + "}"


@pytest.fixture(autouse=True)
def little_memory_and_time() -> Iterator[None]:
    """No more than 100 MB for any of these files, and a minute of a busy machine."""
    tracemalloc.start()
    try:
        with time_limit():
            yield
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", YAML)
def test_a_config_that_grows_without_bounds_is_refused(
    kind: str, tmp_path: Path, commands: dict[str, Command]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(YAML[kind])
    with raises_naming(UserError, "config.yaml", "correct it") as caught:
        load_config(TrainConfig, path, ["output=x"])
    assert len(str(caught.value)) < 1000
    run = shutil.copytree(commands["sample"].root / "run", tmp_path / "run")
    (run / "config.yaml").write_text(YAML[kind])
    with raises_naming(UserError, "config.yaml", "restore it"):
        RunFolder.open(run, RUN_KIND)


@pytest.mark.parametrize("value", ["[" * DEEP, f"{'[' * 900}{']' * 900}", "&a [*a]"])
def test_an_override_that_grows_without_bounds_is_refused(value: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(TrainConfig, None, [f"store={value}", "output=x"])
    assert len(str(caught.value)) < 1000


def test_deeply_nested_json_is_refused_or_damage_wherever_it_is_read(
    tmp_path: Path, tiny_autoencoder: Path, tiny_store: Path
) -> None:
    (tmp_path / "evaluation.json").write_text(JSON)
    with raises_naming(UserError, "evaluation.json", "not valid JSON"):
        read_json(tmp_path / "evaluation.json")
    store = shutil.copytree(tiny_store, tmp_path / "store")
    (store / "manifest.json").write_text(JSON)
    with raises_naming(JobError, "manifest.json"):
        LatentStore(store)
    autoencoder = shutil.copytree(tiny_autoencoder, tmp_path / "autoencoder")
    (autoencoder / "config.json").write_text(JSON)
    with raises_naming(UserError, "config.json"):
        load_autoencoder(autoencoder)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in (("0.png", image_file(0)), ("0.json", JSON.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with raises_naming(JobError, "a.tar", "0.png", "valid JSON"):
        open_source(tmp_path / "a.tar").label(0)
    with pytest.raises(RecursionError):  # else the cases above would show nothing
        json.loads(JSON)
