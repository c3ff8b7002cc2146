"""Sampling a run: image i depends on the seed and on i, and the files record the settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import generator_config

from latentddm.cli import main
from latentddm.engine.errors import UserError
from latentddm.engine.seeding import torch_generator
from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.training.generator import train


@pytest.fixture(scope="module")
def run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(generator_config(tiny_store, folder)).path


@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in(run: Path, churn: float) -> None:
    generator = Generator.load(run)
    config = SamplingConfig(steps=3, churn=churn, seed=5, batch_size=2)
    whole = generator.draw(5, config)
    torch.testing.assert_close(generator.draw(2, config, first=3), whole[3:], rtol=1e-5, atol=1e-5)
    larger = generator.draw(5, replace(config, batch_size=5))
    torch.testing.assert_close(larger, whole, rtol=1e-5, atol=1e-5)
    assert not torch.equal(generator.draw(5, replace(config, seed=6)), whole)


def test_sample_with_decode_writes_latents_settings_and_images(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "samples"
    arguments = ["sample", str(run), "--steps", "2", "--num", "3", "--output", str(output)]
    assert main([*arguments, "--decode"]) == 0
    assert (output / "latents.safetensors").is_file()
    settings = json.loads((output / "samples.json").read_text())
    assert (settings["steps"], settings["count"], settings["run"]) == (2, 3, str(run))
    pictures = sorted((output / "images").glob("*.png"))
    assert len(pictures) == 3
    assert Image.open(pictures[0]).size == (32, 32)
    # The latents alone lead to the same pictures: the file beside them names the autoencoder.
    again = tmp_path / "again"
    assert main(["decode", str(output / "latents.safetensors"), "--output", str(again)]) == 0
    assert [Image.open(path).tobytes() for path in sorted(again.glob("*.png"))] == [
        Image.open(path).tobytes() for path in pictures
    ]


def test_the_scale_of_xi_is_one_number_or_one_for_each_evaluation(
    run: Path, tmp_path: Path
) -> None:
    """A scale of 1 changes no bit, 0 makes draws that differ by their start alone."""
    generator = Generator.load(run)
    plain = generator.draw(2, SamplingConfig(steps=2))
    assert torch.equal(generator.draw(2, SamplingConfig(steps=2, xi_scale=(1.0, 1.0))), plain)
    arguments = ["sample", str(run), "--steps", "2", "--num", "2"]
    for scale, text in (((0.8, 0.9), "0.8,0.9"), (0.5, "0.5")):
        output = tmp_path / text
        assert main([*arguments, "--xi-scale", text, "--output", str(output)]) == 0
        latents = load_file(output / "latents.safetensors")["latents"]
        expected = generator.draw(2, SamplingConfig(steps=2, xi_scale=scale))
        assert torch.equal(latents, expected)
        assert not torch.equal(latents, plain)
        recorded = json.loads((output / "samples.json").read_text())["xi_scale"]
        assert recorded == (list(scale) if isinstance(scale, tuple) else scale)


def test_the_last_scale_goes_on(run: Path) -> None:
    generator = Generator.load(run)
    short, whole = (
        generator.draw(2, SamplingConfig(steps=3, xi_scale=scale))
        for scale in ((0.8, 0.9), (0.8, 0.9, 0.9))
    )
    assert torch.equal(short, whole)


@pytest.mark.parametrize(
    ("solver", "scales"),
    [("unipc", (1.0, 0.75, 0.5, 0.25)), ("heun", (1.0, 0.625, 0.25))],  # heun evaluates three times
)
def test_a_range_of_scales_is_even_over_the_evaluations_that_a_solver_makes(
    solver: str, scales: tuple[float, ...], run: Path, tmp_path: Path
) -> None:
    arguments = ["sample", str(run), "--num", "2", "--solver", solver, "--xi-scale", "1..0.25"]
    assert main([*arguments, "--steps", "4", "--output", str(tmp_path / "four")]) == 0
    recorded = json.loads((tmp_path / "four" / "samples.json").read_text())["xi_scale"]
    assert tuple(recorded) == scales
    latents = load_file(tmp_path / "four" / "latents.safetensors")["latents"]
    config = SamplingConfig(steps=4, solver=solver, xi_scale=scales)
    assert torch.equal(latents, Generator.load(run).draw(2, config))
    assert main([*arguments, "--steps", "1", "--output", str(tmp_path / "one")]) == 0
    assert json.loads((tmp_path / "one" / "samples.json").read_text())["xi_scale"] == [1.0]


def test_the_first_noise_is_scaled(run: Path) -> None:
    """One evaluation at xi = 0 is a function of that noise alone."""
    generator = Generator.load(run)
    config = SamplingConfig(steps=1, xi_scale=0.0, noise_scale=0.5, seed=3)
    noise = torch.randn(generator.space.shape, generator=torch_generator(3, "sample", 0))
    xi = torch.zeros_like(noise)[None]
    with torch.no_grad():
        x0 = generator.network(0.5 * noise[None], torch.ones(1), xi)
    assert torch.equal(generator.draw(1, config), generator.space.restore(x0))


@pytest.mark.parametrize(
    ("scale", "steps", "solver", "named"),
    [
        ("0.8,0.9,1", 2, "ddim", ["3", "2"]),
        ("0.8,0.9,1,1", 4, "heun", ["4", "3"]),  # which evaluates three times
        ("-1", 4, "ddim", ["-1"]),
        ("0.8,x", 4, "ddim", ["0.8,x"]),
        ("1..", 4, "ddim", ["1..", "FIRST..LAST"]),
        ("1..-1", 4, "ddim", ["-1"]),
    ],
)
def test_a_scale_of_xi_that_does_not_fit_is_one_sentence_with_both_numbers(
    scale: str,
    steps: int,
    solver: str,
    named: list[str],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["sample", str(run), "--steps", str(steps), "--solver", solver]
    arguments += [f"--xi-scale={scale}", "--num", "1", "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "xi" in said
    assert all(number in said for number in named)
    assert not (tmp_path / "out" / "latents.safetensors").exists()


def test_the_command_draws_with_the_solver_and_the_grid_that_it_names(
    run: Path, tmp_path: Path
) -> None:
    arguments = ["sample", str(run), "--steps", "3", "--num", "2", "--solver", "dpmsolver++"]
    drawn = []
    for number, (grid, power) in enumerate([("uniform", 0.5), ("power", 0.5), ("power", 0.4)]):
        output = tmp_path / str(number)
        spread = ["--grid", grid, "--power", str(power)]
        assert main([*arguments, *spread, "--output", str(output)]) == 0
        asked = SamplingConfig(steps=3, solver="dpmsolver++", grid=grid, power=power)
        latents = load_file(output / "latents.safetensors")["latents"]
        assert torch.equal(latents, Generator.load(run).draw(2, asked))
        drawn.append(latents)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"churn": 2.0}, "churn"),
        ({"churn": 0.5, "solver": "unipc"}, "churn .*unipc"),
        ({"xi_scale": (0.5,) * 5}, r"xi_scale .*5 .*4"),
        ({"xi_scale": ()}, r"xi_scale .*0 .*4"),
        ({"noise_scale": 0.0}, r"noise_scale .*0"),
        ({"steps": 0}, "steps"),
        ({"safety": 0.7}, "safety"),
        ({"power": 0.0}, "power"),
    ],
)
def test_impossible_settings_are_refused(run: Path, change: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Generator.load(run).draw(1, SamplingConfig(**change))


@pytest.mark.parametrize("wrong", [["--churn", "2"], ["--num", "0"], ["--label", "1"]])
def test_a_refused_request_leaves_the_folder_to_the_next(
    run: Path, tmp_path: Path, wrong: list[str]
) -> None:
    request = ["sample", str(run), "--num", "2", "--steps", "2", "--output", str(tmp_path / "new")]
    assert main([*request, *wrong]) == 2
    assert main(request) == 0


def test_another_autoencoder_is_refused_naming_both(
    run: Path, tiny_autoencoder: Path, tmp_path: Path
) -> None:
    from diffusers import AutoencoderKL

    network = AutoencoderKL.from_pretrained(tiny_autoencoder)
    network.decoder.conv_out.bias.data.add_(1)
    network.save_pretrained(tmp_path / "other")
    space = Generator.load(run).space
    with pytest.raises(UserError, match=r"sha256:.*sha256:"):
        space.load_autoencoder(reference=str(tmp_path / "other"))


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
