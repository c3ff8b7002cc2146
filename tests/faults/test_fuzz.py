"""Broken inputs of every kind: an error of ours or a result, never another one, never a hang.

    pytest tests/faults/test_fuzz.py                       80 cases, always the same
    LATENTDDM_FUZZ=2000 pytest tests/faults/test_fuzz.py   for CI
    LATENTDDM_FUZZ=50000 pytest tests/faults/test_fuzz.py --hypothesis-seed=1

The number is of all cases. A case that fails is printed with its seed, is kept in `.hypothesis`
and is tried first the next time; once mended it becomes an `@example`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from commands import Command

pytest.importorskip("hypothesis", reason="pip install 'latentddm[test]'")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import NAMES, archives, changed, damaged, image_files

from autoencoder.images import Preprocessing, open_source
from autoencoder.latent_files import open_latents, save_latents
from autoencoder.models import load_autoencoder
from autoencoder.sources.decoding import LARGEST_PIXELS, UnreadableImage, decode_image
from autoencoder.store import LatentStore
from autoencoder.store import manifest as manifests
from autoencoder.training.config import AutoencoderConfig
from latentddm.demo import DemoConfig
from latentddm.engine.config import load_config
from latentddm.engine.errors import JobError, UserError
from latentddm.inference.generator import Generator
from latentddm.training.config import TrainConfig
from latentddm.training.distillation import DistillConfig

OURS = (UserError, JobError, UnreadableImage)
SECONDS = 20  # of processor time, for one case
TESTS = 8
CASES = int(os.environ.get("LATENTDDM_FUZZ", 10 * TESTS))
LONG = "LATENTDDM_FUZZ" in os.environ
fuzz = settings(
    max_examples=max(1, CASES // TESTS),
    derandomize=not LONG,
    database=settings.default.database if LONG else None,
    print_blob=True,
    deadline=None,  # `limited` has the limit: of processor time, not of a busy machine
    suppress_health_check=list(HealthCheck),
)
CONFIGS = {
    "faces128.yaml": TrainConfig,
    "portraits_generator.yaml": TrainConfig,
    "portraits_autoencoder.yaml": AutoencoderConfig,
    "distill.yaml": DistillConfig,
    "demo.yaml": DemoConfig,
}
PRESETS = Path(__file__).parents[2] / "configs"


@contextmanager
def limited() -> Iterator[None]:
    """Errors of ours may pass; AssertionError after SECONDS of processor time."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still running after {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with suppress(*OURS):
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def fresh(folder: Path) -> Path:
    """An empty folder in `folder`."""
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


@fuzz
@given(damaged(image_files()))
def test_an_image_file_is_decoded_or_unreadable(data: bytes) -> None:
    with limited():
        image = decode_image(data, "key")
        assert image.mode == "RGB"
        assert min(image.size) >= 8
        assert image.size[0] * image.size[1] <= LARGEST_PIXELS
        assert Preprocessing(size=8).to_pixels(image).shape == (8, 8, 3)


@fuzz
@given(archives(), st.sampled_from(("webdataset", "whole")))
def test_an_archive_is_read_or_refused_and_writes_nothing(
    folder: Path, archive: tuple[str, bytes], keys: str
) -> None:
    suffix, data = archive
    place = fresh(folder)
    path = place / f"archive{suffix}"
    path.write_bytes(data)
    copies = place / "copies" if suffix == ".tar.gz" else None
    with limited():
        source = open_source(path, sample_keys=keys, decompress=copies)  # type: ignore[arg-type]
        names = {source.key(index) for index in range(len(source))}
        assert len(names) == len(source)
        for index in range(len(source)):
            with suppress(*OURS):
                source.label(index)
            with suppress(*OURS):
                source.load(index)
    written = {entry.relative_to(place).as_posix() for entry in place.rglob("*")}
    assert written <= {path.name, "copies", "copies/archive.tar", "copies/archive.tar.origin.json"}


@fuzz
@given(st.lists(st.tuples(NAMES, damaged(image_files())), max_size=4))
def test_a_folder_of_any_names_is_read_or_refused(
    folder: Path, files: list[tuple[str, bytes]]
) -> None:
    place = fresh(folder)
    for name, data in files:
        with suppress(OSError, UnicodeError):  # a name that the file system lacks
            target = place / name.replace("/", "_").replace("..", "_")
            target.write_bytes(data)
    with limited():
        source = open_source(place)
        for index in range(len(source)):
            assert source.key(index).encode()
            with suppress(*OURS):
                source.load(index)


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """(preset, its text with damage, overrides)."""
    name = draw(st.sampled_from(sorted(CONFIGS)))
    text = draw(damaged(st.just((PRESETS / name).read_bytes()))).decode("utf-8", "surrogateescape")
    values = st.sampled_from(
        ("", "1", "-1", "1e999", "nan", "[", "{a: 1}", "[1, 2]", "null", "${x}", "!!python/none x")
    )
    keys = st.sampled_from(
        (
            *("loop.images", "loop", "phases", "phases.0.images", "phases.7.images", "network"),
            *("network.kind", "phases.0.objective", "seed", "output", "a..b", "", ".", "0", "ema"),
            "phases.0.objective.score.views",
        )
    )
    overrides = st.builds(lambda key, value: f"{key}={value}", keys, values)
    return name, text, draw(st.lists(st.one_of(overrides, st.text(max_size=6)), max_size=3))


@fuzz
@given(configs())
def test_a_config_is_read_or_refused(folder: Path, case: tuple[str, str, list[str]]) -> None:
    name, text, overrides = case
    path = fresh(folder) / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with limited():
        load_config(CONFIGS[name], path, overrides)


@fuzz
@given(st.data())
def test_a_manifest_is_read_or_refused(folder: Path, tiny_store: Path, data: st.DataObject) -> None:
    store = folder / "store"
    if not store.is_dir():
        shutil.copytree(tiny_store, store)
    original = (tiny_store / "manifest.json").read_bytes()
    if data.draw(st.booleans()):
        content = data.draw(changed(json.loads(original)))
        if isinstance(content, dict):  # hostile, hence with a right checksum
            content.pop("checksum", None)
            content["checksum"] = manifests._checksum(content)
        text = json.dumps(content).encode()
    else:
        text = data.draw(damaged(st.just(original)))
    (store / "manifest.json").write_bytes(text)
    with limited():
        opened = LatentStore(store, memory=1 << 24)
        opened.raw(0, min(4, len(opened)))
        next(opened.stream(2))


@fuzz
@given(st.data())
def test_a_file_of_latents_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(("npy", "safetensors")))
    shape = data.draw(st.sampled_from(((3, 4, 2, 2), (1, 1, 1, 1), (0, 4, 2, 2), (3, 4), ())))
    dtype = data.draw(st.sampled_from(("float32", "float16", "int64", "bool", "object")))
    path = fresh(folder) / f"latents.{kind}"
    if kind == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(shape, dtype), allow_pickle=True)
        path.write_bytes(buffer.getvalue())
    else:
        dtype = "float32" if dtype == "object" else dtype
        save_latents(path, torch.zeros(shape, dtype=getattr(torch, dtype)), "sha256:0")
    path.write_bytes(data.draw(damaged(st.just(path.read_bytes()))))
    with limited():
        latents = open_latents(path)
        assert latents.read(0, min(2, len(latents))).dtype == torch.float32
        assert latents.identity


def _damage_one(data: st.DataObject, source: Path, target: Path) -> None:
    """A copy of a folder with damage in one file, that of JSON often well-formed."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=os.link)
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    chosen = target / data.draw(st.sampled_from(files))
    original = chosen.read_bytes()
    chosen.unlink()
    if chosen.suffix == ".json" and data.draw(st.booleans()):
        chosen.write_text(json.dumps(data.draw(changed(json.loads(original)))))
    elif data.draw(st.integers(0, 9)):
        chosen.write_bytes(data.draw(damaged(st.just(original))))


@fuzz
@given(st.data())
def test_a_run_with_a_damaged_file_is_loaded_or_refused(
    folder: Path, commands: dict[str, Command], data: st.DataObject
) -> None:
    target = folder / "damaged"
    _damage_one(data, commands["sample"].root / "run", target)
    with limited():
        Generator.load(target)


@fuzz
@given(st.data())
def test_a_damaged_autoencoder_is_loaded_or_refused(
    folder: Path, tiny_autoencoder: Path, data: st.DataObject
) -> None:
    target = folder / "autoencoder"
    _damage_one(data, tiny_autoencoder, target)
    with limited():
        load_autoencoder(target)
