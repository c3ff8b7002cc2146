"""The promises of latentddm/docs/security.md: nothing that comes with data is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from commands import Command
from image_files import image_file, write_folder
from messages import raises_naming
from packaging.version import Version
from safetensors.torch import load_file

from autoencoder.images import open_source
from autoencoder.latent_files import open_latents
from autoencoder.models import load_autoencoder
from autoencoder.sources.decoding import UnreadableImage
from latentddm.cli import main
from latentddm.engine.config import load_config
from latentddm.engine.errors import UserError
from latentddm.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
FIXED = {  # package: the first version without a known hole
    "torch": "2.10",
    "torchvision": "0.25",
    "diffusers": "0.38",
    "safetensors": "0.8",
    "accelerate": "1.15",
    "datasets": "5.0.1",
    "pillow": "12.3",
    "pillow-heif": "1.7",
    "omegaconf": "2.4",
    "aiohttp": "3.14.3",
    "requests": "2.33",
    "filelock": "3.20.3",
    "tqdm": "4.66.3",
    "gradio": "6.16",
    "pytest": "9.0.3",
}


class Intruder:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A folder that only code of a stranger would make."""
    return tmp_path / "trace"


def test_code_in_an_array_of_latents_is_never_run(tmp_path: Path, trace: Path) -> None:
    np.save(tmp_path / "latents.npy", np.array([Intruder(trace)], dtype=object), allow_pickle=True)
    with raises_naming(UserError, "latents.npy", "plain array"):
        open_latents(tmp_path / "latents.npy")
    assert not trace.exists()


def test_pickled_members_of_a_shard_are_never_read(tmp_path: Path, trace: Path) -> None:
    members = {
        "0.png": image_file(0),
        "0.pyd": pickle.dumps(Intruder(trace)),
        "0.cls": b"3",
        "1.pkl": pickle.dumps(Intruder(trace)),
    }
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    source = open_source(tmp_path / "a.tar")
    assert [(source.key(index), source.label(index)) for index in range(len(source))] == [
        ("0.png", 3)
    ]
    source.load(0)
    assert not trace.exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [{}]", "!!python/object/new:os.mkdir [{}]"]
)
def test_code_in_a_config_is_never_run(tag: str, tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"store: {tag.format(trace)}\n")
    with raises_naming(UserError, "config.yaml"):
        load_config(TrainConfig, path, ["output=x"])
    with raises_naming(UserError, "command line", "correct it"):
        load_config(TrainConfig, None, [f"store={tag.format(trace)}", "output=x"])
    assert not trace.exists()


def test_code_in_a_folder_of_images_or_of_a_dataset_is_never_run(
    tmp_path: Path, trace: Path
) -> None:
    pytest.importorskip("datasets")
    folder = write_folder(tmp_path / "faces", {"a.png": image_file(0)})
    (folder / "faces.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    open_source(folder).load(0)
    with raises_naming(UserError, "faces"):
        open_source(f"hf:{folder}/faces.py")
    with suppress(UserError):
        open_source(f"hf:{folder}")
    assert not trace.exists()


def test_an_autoencoder_of_another_class_is_refused_and_its_code_not_run(
    tiny_autoencoder: Path, tmp_path: Path, trace: Path
) -> None:
    config = json.loads((tiny_autoencoder / "config.json").read_text())
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Evil: pass\n")
    (folder / "config.json").write_text(
        json.dumps({**config, "_class_name": "Evil", "auto_map": {"AutoModel": "evil.Evil"}})
    )
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(
        (tiny_autoencoder / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    with raises_naming(UserError, "config.json", "Evil", "AutoencoderKL"):
        load_autoencoder(folder)
    assert not trace.exists()


def test_an_index_of_weights_names_files_of_its_own_folder_only(
    tiny_autoencoder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_autoencoder / "config.json").read_bytes())
    weights = tiny_autoencoder / "diffusion_pytorch_model.safetensors"
    index = {"weight_map": dict.fromkeys(load_file(weights), f"../{weights}")}
    (folder / f"{weights.name}.index.json").write_text(json.dumps(index))
    with raises_naming(UserError, "index.json", "own folder"):
        load_autoencoder(folder)


@pytest.fixture
def exported(commands: dict[str, Command], tmp_path: Path) -> Path:
    """An exported run."""
    run = str(commands["export"].root / "run")
    assert main(["export", run, str(tmp_path / "exported"), "--steps", "1"]) == 0
    return tmp_path / "exported"


def test_an_exported_folder_runs_no_code_unless_it_is_named(exported: Path, trace: Path) -> None:
    from latentddm import LatentDDMPipeline

    code = f"import os\nos.mkdir({str(trace)!r})\n"
    loader = exported / "pipeline.py"
    loader.write_text(code + loader.read_text())
    LatentDDMPipeline.from_pretrained(exported)
    assert not trace.exists()
    index = exported / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "network": ["evil", "Evil"]}))
    for place in (exported / "evil.py", exported / "network" / "evil.py"):
        place.write_text(code + "class Evil: pass\n")
    with pytest.raises((ImportError, ValueError, AttributeError, OSError, TypeError)):
        LatentDDMPipeline.from_pretrained(exported)
    assert not trace.exists()


def test_names_in_archives_are_keys_and_never_paths(tmp_path: Path) -> None:
    """The files that hostile names point to are images too, and none of them is read."""
    outside = write_folder(tmp_path, {"out.png": image_file(9, (64, 64))})
    inside = image_file(0, (16, 16))
    names = ["../out.png", str(outside / "out.png"), "a/../../out.png"]
    folder = tmp_path / "archives"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, inside)
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as shard:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(f"{number}/{name}")
            member.size = len(inside)
            shard.addfile(member, io.BytesIO(inside))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"link{kind.decode()}.png")
            link.type, link.linkname = kind, str(outside / "out.png")
            shard.addfile(link)
    for name in ("a.zip", "a.tar"):
        source = open_source(folder / name)
        found = []
        for index in range(len(source)):
            if source.key(index).startswith("link"):
                with pytest.raises(UnreadableImage, match="a link"):
                    source.load(index)
            else:
                found.append(source.load(index).image.size)
        assert found == [(16, 16)] * len(names)
    assert sorted(path.name for path in folder.iterdir()) == ["a.tar", "a.zip"]


@pytest.mark.parametrize("name", FIXED)
def test_no_lower_bound_has_a_known_hole(name: str) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    bounds = re.findall(rf'"{re.escape(name)}>=([0-9.]+)', project)
    assert len(bounds) == 1
    assert Version(bounds[0]) >= Version(FIXED[name])
    assert FIXED[name] in (ROOT / "latentddm/docs/security.md").read_text()
