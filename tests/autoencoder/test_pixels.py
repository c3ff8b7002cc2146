"""Pixels as latents: nothing is lost between an image, a store, model space and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Processes
from tiny_runs import ONE_LEVEL, TWO_DRAWS, final_weights, generator_config, phase, train_until

from autoencoder.decode import decode_files
from autoencoder.images import Preprocessing, open_source
from autoencoder.models import load_autoencoder
from autoencoder.sources.arrays import ArraySource
from autoencoder.store import LatentStore, encode_store
from autoencoder.tiling import decode_tiled
from latentddm.cli import main
from latentddm.engine.errors import UserError
from latentddm.engine.task import LoopConfig
from latentddm.hub.pipeline import LatentDDMPipeline
from latentddm.inference.generator import Generator, SamplingConfig
from latentddm.inference.latent_space import LatentSpace
from latentddm.networks.network import NetworkConfig
from latentddm.training.generator import train
from latentddm.training.objective import Objective
from latentddm.training.rivals import InductiveObjective

SIZE = 16


def every_level(count: int = 6) -> np.ndarray:
    """Images of SIZE x SIZE pixels with every level in every channel, uint8 [count, H, W, 3]."""
    rng = np.random.default_rng(0)
    levels = [rng.permutation(256) for _ in range(3 * count)]
    return np.stack(levels).astype(np.uint8).reshape(count, 3, SIZE, SIZE).transpose(0, 2, 3, 1)


def encode(
    images: np.ndarray,
    folder: Path,
    dtype: str = "float16",
    flips: bool = False,
    ranks: Sequence[int] = (0,),
) -> Path:
    source = ArraySource(np.ascontiguousarray(images), "levels")
    size = Preprocessing(size=SIZE)
    autoencoder = load_autoencoder("pixels", dtype=torch.bfloat16)  # as `encode` on a GPU asks
    for rank in ranks:
        encode_store(
            source,
            autoencoder,
            folder,
            preprocessing=size,
            workers=0,
            dtype=dtype,
            flips=flips,
            show_progress=False,
            rank=rank,
            world_size=len(ranks),
        )
    return folder


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_pixel_survives_store_model_space_and_decoding(dtype: str, tmp_path: Path) -> None:
    images = every_level()
    store = LatentStore(encode(images, tmp_path / "store", dtype))
    assert store.shape == (3, SIZE, SIZE)
    batch = next(store.stream(len(images), seed=3))
    sources = [store.manifest.plan.source_order()[index] for index in batch.indices.tolist()]
    raw = store.restore(batch.latents)  # through the standardisation and back
    decoded = load_autoencoder("pixels").decode(raw)
    assert decoded.dtype == torch.uint8
    np.testing.assert_array_equal(decoded.numpy(), images[sources])


def test_decoded_files_of_a_store_are_its_images(tmp_path: Path) -> None:
    images = every_level(3)
    folder = encode(images, tmp_path / "store", flips=True)
    autoencoder = load_autoencoder("pixels")
    assert decode_files(folder, tmp_path / "out", autoencoder) == 3
    source = open_source(str(tmp_path / "out"), size=SIZE)
    found = np.stack([np.asarray(source.load(index).image) for index in range(3)])
    order = LatentStore(folder).manifest.plan.source_order()
    np.testing.assert_array_equal(found, images[order])


def test_a_store_that_processes_share_is_that_of_one(tmp_path: Path) -> None:
    images = every_level()
    one = LatentStore(encode(images, tmp_path / "one"))
    two = LatentStore(encode(images, tmp_path / "two", ranks=(1, 0)))
    assert (two.fingerprint, len(two)) == (one.fingerprint, len(one))
    torch.testing.assert_close(torch.as_tensor(two.mean), torch.as_tensor(one.mean))
    first, second = (next(store.stream(6, seed=3)) for store in (one, two))
    torch.testing.assert_close(first.latents, second.latents)


# A DDM, and a rival, which compares the samples of a group and reads a second time.
each_objective = pytest.mark.parametrize(
    "objective", [TWO_DRAWS, InductiveObjective()], ids=["ddm", "rival"]
)


def network_of(objective: Objective, classes: int = 0) -> NetworkConfig:
    return replace(ONE_LEVEL, times=2 if objective.learns_flow_map else 1, classes=classes)


@each_objective
def test_a_run_on_pixels_that_was_stopped_ends_bit_equal(
    objective: Objective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = encode(every_level(8), tmp_path / "store")
    loop = LoopConfig(batch_size=8, log_every=8, checkpoint_every=8)
    phases, settings = phase(24, objective), {"loop": loop, "network": network_of(objective)}
    whole = train(generator_config(store, tmp_path / "whole", phases, **settings))
    stopped = generator_config(store, tmp_path / "stopped", phases, **settings)
    train_until(16, stopped, monkeypatch)
    first, second = final_weights(whole), final_weights(train(stopped))
    assert {"network", "ema", "optimizer"} <= {name.partition("/")[0] for name in first}
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@each_objective
def test_two_processes_that_share_the_weights_train_on_pixels_what_one_trains(
    objective: Objective, tmp_path: Path
) -> None:
    store = encode(every_level(8), tmp_path / "store")
    network = network_of(objective)
    whole = generator_config(store, tmp_path / "one", phase(16, objective), network=network)
    loop = replace(whole.loop, sharded=True)
    sharded = replace(whole, output=str(tmp_path / "two"), loop=loop)
    Processes(2, lambda: train(sharded), tmp_path).finish()
    train(whole)
    settings = SamplingConfig(steps=2)
    one, two = (Generator.load(run.output).draw(2, settings) for run in (whole, sharded))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-3)


def test_tiles_are_the_image_itself() -> None:
    pixels = torch.randint(0, 256, (2, 48, 80, 3), dtype=torch.uint8)
    autoencoder = load_autoencoder("pixels")
    latents = autoencoder.encode(pixels)
    kept = latents.clone()
    assert torch.equal(decode_tiled(latents, autoencoder, 32), pixels)
    assert torch.equal(autoencoder.decode(latents), pixels)
    assert torch.equal(latents, kept)  # decoding leaves its input alone


def test_the_fingerprint_tells_pixels_from_latents(tmp_path: Path, tiny_store: Path) -> None:
    pixels = LatentStore(encode(every_level(2), tmp_path / "store"))
    assert pixels.fingerprint == load_autoencoder("pixels").fingerprint
    space = LatentSpace.of_store(pixels)
    assert space.load_autoencoder().reference == "pixels"
    with pytest.raises(UserError, match="pixels"):
        LatentSpace.of_store(LatentStore(tiny_store)).load_autoencoder(reference="pixels")


def test_moments_of_pixels_are_refused() -> None:
    with pytest.raises(UserError, match=r"pixels.*has no posterior"):
        load_autoencoder("pixels").encode_moments(torch.zeros(1, 4, 4, 3, dtype=torch.uint8))


@each_objective
def test_a_labelled_run_on_pixels_is_sampled_with_guidance_and_exported(
    objective: Objective, tmp_path: Path
) -> None:
    """The whole way by commands: a folder of classes, a store, a run, pictures, a pipeline."""
    from PIL import Image

    for label, image in enumerate(every_level(8)):
        path = tmp_path / "images" / "ab"[label % 2] / f"{label}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    store, run, folder = (str(tmp_path / name) for name in ("store", "run", "folder"))
    arguments = ["--images", str(tmp_path / "images"), "--size", str(SIZE), "--workers", "0"]
    assert main(["encode", *arguments, "--autoencoder", "pixels", "--output", store]) == 0
    labelled = network_of(objective, classes=2)
    train(generator_config(store, run, phase(8, objective), network=labelled))
    guided = ["--label", "1", "--guidance", "2", "--num", "2", "--steps", "2", "--decode"]
    assert main(["sample", run, *guided, "--output", str(tmp_path / "samples")]) == 0
    assert len(list((tmp_path / "samples" / "images").glob("*.png"))) == 2

    assert main(["export", run, folder]) == 0
    card = (Path(folder) / "README.md").read_text()
    assert "3 x 16 x 16, the pixels themselves" in card
    assert "`vae/`" not in card
    pipeline = LatentDDMPipeline.from_pretrained(folder)
    assert pipeline.vae is None
    assert not (Path(folder) / "vae").exists()
    drawn = pipeline(2, pipeline.generators(0, 2), num_inference_steps=2, output_type="np").images
    generator = Generator.load(run)
    raw = generator.draw(2, SamplingConfig(steps=2))
    expected = generator.space.load_autoencoder().decode(raw).numpy()
    assert np.abs(drawn * 255 - expected).max() <= 1  # another batch size rounds differently
