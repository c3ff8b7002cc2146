"""An exported folder is complete: a process that knows nothing of the run draws from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from hub_server import HubServer
from PIL import Image
from tiny_runs import generator_config

from autoencoder.latent_files import LatentFile
from autoencoder.models import load_autoencoder
from latentddm.cli import main
from latentddm.engine.run import RunFolder
from latentddm.evaluation.folders import EvaluationOptions, evaluate_folders
from latentddm.hub.model_card import Card, write_card
from latentddm.hub.pipeline import LatentDDMPipeline
from latentddm.inference.generator import RUN_KIND
from latentddm.networks.dit import DiTConfig
from latentddm.networks.network import NetworkConfig
from latentddm.networks.unet import UNetConfig
from latentddm.training.generator import train

NETWORKS: dict[str, NetworkConfig] = {
    "unet": UNetConfig(channels=16, multipliers=(1,), blocks=1, attention_levels=()),
    "dit": DiTConfig(width=16, blocks=2, head_channels=8, draw_blocks=1),
}


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=NETWORKS.keys())
def run(
    request: pytest.FixtureRequest, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    config = generator_config(
        tiny_store, tmp_path_factory.mktemp("runs") / "run", network=request.param
    )
    return train(config).path


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "folder"
    assert main(["export", str(run), str(folder), "--license", "cc0-1.0"]) == 0
    return folder


def in_a_new_process(lines: Sequence[str], *arguments: str) -> str:
    """What a program prints that runs far from the checkout's folder."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(arguments[0]).parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_folder_draws_what_the_sample_command_draws(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    command = ["sample", str(run), "--num", "8", "--batch-size", "8", "--output", str(tmp_path)]
    assert main(command) == 0
    expected = LatentFile(tmp_path / "latents.safetensors").read(0, 8)
    pipeline = LatentDDMPipeline.from_pretrained(exported)
    drawn = pipeline(8, pipeline.generators(0, 8), output_type="latent").images
    assert torch.equal(drawn, expected)


def test_diffusion_pipeline_of_a_process_that_never_imported_us_loads_it(exported: Path) -> None:
    """Four steps to a PNG, knowing diffusers alone (issue 7)."""
    picture = exported.parent / "drawn.png"
    program = [
        "import sys, torch",
        "from diffusers import DiffusionPipeline",
        "folder, picture = sys.argv[1:]",
        "pipe = DiffusionPipeline.from_pretrained(",
        "    folder, custom_pipeline=folder, trust_remote_code=True)",
        "generator = torch.Generator().manual_seed(0)",
        "pipe(num_inference_steps=4, generator=generator).images[0].save(picture)",
        "print(type(pipe).__name__)",
    ]
    assert "LatentDDMPipeline" in in_a_new_process(program, str(exported), str(picture))
    pipeline = LatentDDMPipeline.from_pretrained(exported)
    (expected,) = pipeline(generator=torch.Generator().manual_seed(0)).images
    assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(expected))


def test_diffusion_pipeline_loads_it_once_our_pipeline_is_imported(exported: Path) -> None:
    assert isinstance(DiffusionPipeline.from_pretrained(exported), LatentDDMPipeline)


def test_the_autoencoder_loads_with_diffusers_alone_and_as_a_reference_of_ours(
    exported: Path, tiny_autoencoder: Path
) -> None:
    network = AutoencoderKL.from_pretrained(exported, subfolder="vae")
    assert network.config.latent_channels == 3
    ours = load_autoencoder(exported)
    assert ours.fingerprint == load_autoencoder(tiny_autoencoder).fingerprint


def test_no_weights_are_pickled_and_no_path_of_this_machine_is_in_it(
    exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = [path for path in exported.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md", ".png", ".py"}
    base = str(tmp_path_factory.getbasetemp())
    for path in files:
        assert base.encode() not in path.read_bytes(), path


def test_the_card_has_the_numbers_with_their_protocol(run: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    options = EvaluationOptions(metrics=["energy"])
    evaluation = evaluate_folders("portraits:20", "portraits:20:1", options)
    numbers.write_text(json.dumps(evaluation.to_json()))
    private = numbers.read_text().replace('"portraits:20:1"', '"/home/someone/faces"')
    numbers.write_text(private)
    folder = tmp_path / "folder"
    command = ["export", str(run), str(folder), "--evaluation", str(numbers)]
    assert main([*command, "--license", "cc0-1.0"]) == 0
    card = (folder / "README.md").read_text()
    result = evaluation.results["energy"]
    assert f"| energy | {result.value:.4g} | {result.low:.4g} to {result.high:.4g} |" in card
    assert "n_reference 20" in card
    assert "reference faces" in card
    assert "someone" not in card
    kind = RunFolder.open(run, RUN_KIND).read_config()["network"]["kind"]
    assert f"| network | {kind}, " in card
    assert "| schedule | flow |" in card
    assert "`network/`" in card
    assert "license: cc0-1.0" in card
    assert "portraits:40" in card
    assert "| images seen | 16 |" in card
    assert "LatentDDMPipeline.from_pretrained" in card
    assert Image.open(folder / "samples.png").width > 4 * 32


def card(config: dict[str, Any], reads_xi: bool = True) -> Card:
    network = {"kind": "dit", "width": 64}
    return Card(
        config={
            "store": "/home/someone/store",
            "schedule": "flow",
            "network": network,
            "ema": {"widths": [0.1]},
        }
        | config,
        images_seen=4000,
        parameters=12_345,
        shape=(4, 8, 8),
        autoencoder="AutoencoderKL",
        fingerprint="f00d",
        picture=(64, 64),
        steps=4,
        seed=0,
        ema=None,
        reads_xi=reads_xi,
        license="other",
        evaluation=None,
    )


def test_the_card_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    """A view may read another run, whose path stands in the config and in the row of its phase."""
    trunk = {"kind": "trunk", "run": "/home/someone/runs/plain", "weight": 0.5}
    score = {"kind": "energy", "views": {"whole": 0.5, "trunk": trunk}}
    phase = {"images": 8, "objective": {"kind": "ddm", "draws": 2, "score": score}}
    write_card(tmp_path, card({"start": "/home/someone/first", "phases": [phase]}))
    text = (tmp_path / "README.md").read_text()
    assert "someone" not in text
    assert "score.views.trunk.run plain" in text


def test_the_card_has_a_row_for_each_phase_with_its_objective(tmp_path: Path) -> None:
    score = {"kind": "energy", "beta": 0.1, "lam_data": None, "views": {"whole": 0.5}}
    phases = [
        {"images": 3000, "objective": {"kind": "plain"}},
        {"images": 1000, "objective": {"kind": "ddm", "draws": 4, "score": score}},
    ]
    write_card(tmp_path, card({"phases": phases, "schedule": "cosine"}))
    text = (tmp_path / "README.md").read_text()
    assert "| phase 1 | 3,000 images; kind plain |\n| phase 2 | 1,000 images; kind ddm" in text
    assert "draws 4, score.kind energy, score.beta 0.1, score.views.whole 0.5 |\n" in text
    assert "| schedule | cosine |" in text
    assert "| network | dit, 12,345 parameters |" in text
    assert "scoring rule" in text
    assert "/home" not in text


def test_the_card_of_a_mean_and_of_a_student_mentions_no_posterior(tmp_path: Path) -> None:
    write_card(tmp_path, card({"phases": []}, reads_xi=False))
    text = (tmp_path / "README.md").read_text()
    assert "plain diffusion" in text
    assert "scoring rule" not in text
    write_card(tmp_path, card({"teacher": "/home/someone/runs/plain", "steps": 2}))
    text = (tmp_path / "README.md").read_text()
    assert "| distilled from | `plain`, for 2 steps |" in text
    assert "without a teacher" not in text
    assert "/home" not in text


def test_another_average_can_be_chosen_and_is_another(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "other"), "--ema", "0.05"]) == 0
    assert main(["export", str(run), str(tmp_path / "first")]) == 0
    first, other = (
        LatentDDMPipeline.from_pretrained(tmp_path / name).network.state_dict()
        for name in ("first", "other")
    )
    assert first.keys() == other.keys()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_push_sends_every_file_and_makes_the_repository(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    with HubServer() as hub:
        use_hub(monkeypatch, hub)
        command = ["export", str(run), str(folder), "--push-to-hub", "someone/model", "--private"]
        assert main(command) == 0
    assert f"{hub.address}/someone/model" in capsys.readouterr().out
    assert hub.created[0].get("private", hub.created[0].get("visibility")) in (True, "private")
    expected = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert hub.files == expected


def test_a_hub_that_refuses_or_is_out_of_reach_costs_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with HubServer(refuse=True) as hub:
        use_hub(monkeypatch, hub)
        command = ["export", str(run), str(tmp_path / "a"), "--push-to-hub", "someone/model"]
        assert main(command) == 1
    said = capsys.readouterr().err
    assert "someone/model" in said
    assert "Hugging Face hub" in said
    assert (tmp_path / "a" / "model_index.json").is_file()
    command[2] = str(tmp_path / "b")  # nothing serves at that address any more
    assert main(command) == 1
    assert "Traceback" not in capsys.readouterr().err


def use_hub(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    import huggingface_hub

    init = huggingface_hub.HfApi.__init__

    def with_endpoint(api: huggingface_hub.HfApi, **options: object) -> None:
        init(api, endpoint=hub.address, token="hf_stand_in")

    monkeypatch.setattr(huggingface_hub.HfApi, "__init__", with_endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_a_folder_that_holds_something_else_is_left_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["export", str(run), str(tmp_path)]) == 2
    assert "already holds something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_same_export_again_is_the_same_folder_and_another_one_is_refused(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill between the last rename and the end."""
    folder = tmp_path / "folder"
    shutil.copytree(exported, folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["export", str(run), str(folder), "--license", "cc0-1.0"]) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    assert main(["export", str(run), str(folder), "--license", "mit"]) == 2
    assert "another export" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
