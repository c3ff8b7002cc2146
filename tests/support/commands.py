"""Every verb that writes, on inputs so small that it ends within a second; and its files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from image_files import image_file, write_folder
from tiny_runs import PLAIN, generator_config, phase

from autoencoder.store import LatentStore, encode_store
from latentddm.cli import main
from latentddm.engine.config import to_yaml
from latentddm.engine.ema import EMAConfig
from latentddm.engine.task import LoopConfig
from latentddm.training.generator import train

IMAGES, LATENTS = 10, 5
SMALL_LOOP = ("loop.images=16", "loop.batch_size=8", "loop.log_every=8", "loop.preview_every=16")
TINY_AUTOENCODER = "network={widths: [8,8,8], blocks: 1, latent_channels: 3, norm_groups: 4}"


@dataclass(frozen=True)
class Command:
    """arguments: of the command line; output: the folder that it writes, root/disk/out."""

    arguments: tuple[str, ...]
    root: Path
    output: Path

    def __call__(self) -> int:
        """Run it in this process; the store has several shards, as a large one has."""
        encode_store.__kwdefaults__["chunk_samples"] = 8  # type: ignore[index]
        encode_store.__kwdefaults__["check"] = False  # type: ignore[index]  # random weights
        return main(self.arguments)

    def clean(self) -> None:
        """Remove all that it may have written."""
        for place in (self.output, self.root / "cache"):
            if place.is_dir():
                shutil.rmtree(place)
            place.unlink(missing_ok=True)

    def written(self) -> dict[str, str]:
        """Name -> hash of the files that it wrote, without times and speeds."""
        if self.output.is_file():
            return {self.output.name: _digest(self.output)}
        return {
            path.relative_to(self.output).as_posix(): _digest(path)
            for path in sorted(self.output.rglob("*"))
            if path.is_file() and not path.name.startswith(("events.out", ".lock"))
        }


def make_commands(root: Path, autoencoder: Path, store: Path) -> dict[str, Command]:
    """The commands by name; their inputs are in `root`, and each writes to `root/disk/out`."""
    root = root.resolve()
    output = root / "disk" / "out"
    output.parent.mkdir()
    pictures = {f"{number}.png": image_file(number, (40, 36)) for number in range(IMAGES)}
    images = write_folder(root / "images", pictures)
    latents = root / "latents.npy"
    np.save(latents, LatentStore(store).raw(0, LATENTS).numpy())
    loop = LoopConfig(batch_size=8, log_every=8, preview_every=16, checkpoint_every=8)
    settings = {"loop": loop, "ema": EMAConfig(widths=(0.1,), snapshots=2)}
    run = train(generator_config(store, root / "run", phase(8, PLAIN), **settings)).path
    config = root / "train.yaml"
    config.write_text(
        to_yaml(generator_config(store, output, phase(8, PLAIN), phase(8), **settings))
    )
    decode = ("decode", str(latents), "--output", str(output), "--autoencoder", str(autoencoder))
    verbs = {
        "encode": (
            *("encode", "--images", str(images), "--autoencoder", str(autoencoder), "--size"),
            *("16", "--workers", "1", "--batch-size", "4", "--output", str(output)),
        ),
        "train": ("train", str(config)),
        "train-autoencoder": (
            *("train-autoencoder", "portraits_autoencoder.yaml", f"images={images}", "size=16"),
            *(f"output={output}", "workers=1", *SMALL_LOOP, "loop.checkpoint_every=8"),
            *("adversarial.weight=0", "loss.perceptual=none", "start=null", TINY_AUTOENCODER),
        ),
        "decode": decode,
        "decode-webdataset": (*decode, "--format", "webdataset"),
        "sample": (
            *("sample", str(run), "--steps", "1", "--num", "4", "--output", str(output)),
            "--decode",
        ),
        "evaluate": (
            *("evaluate", str(images), "--reference", str(images), "--size", "32"),
            *("--metrics", "energy", "--output", str(output / "evaluation.json")),
        ),
        "export": ("export", str(run), str(output), "--steps", "1"),
        "distill": (
            *("distill", "distill.yaml", f"teacher={run}", f"output={output}", "steps=2"),
            *(*SMALL_LOOP, "loop.checkpoint_every=8"),
        ),
    }
    return {name: Command(arguments, root, output) for name, arguments in verbs.items()}


def _digest(path: Path) -> str:
    normalise: dict[str, Callable[[bytes], bytes]] = {"metrics.jsonl": _without_speed}
    data = normalise.get(path.name, bytes)(path.read_bytes())
    return hashlib.sha256(data).hexdigest()


def _without_speed(data: bytes) -> bytes:
    lines = [json.loads(line) for line in data.splitlines() if line]
    for line in lines:
        for name in ("images_per_second", "images_per_core_second"):
            line.pop(name, None)
    return json.dumps(lines).encode()
