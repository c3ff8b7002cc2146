"""Export of a run as a folder for diffusers: the stage behind `latentddm export`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel

from autoencoder.image_io import image_grid, save_image
from autoencoder.models import Autoencoder, PixelAutoencoder
from autoencoder.models.tiny import PooledBlock
from latentddm.diffusion.solvers import ONE_EVALUATION_A_STEP
from latentddm.engine.atomic_io import (
    atomic_path,
    make_folder,
    read_json,
    remove_folder,
    remove_leftovers,
    sha256_of,
)
from latentddm.engine.errors import JobError, UserError
from latentddm.engine.run import RunFolder, require_new_folder
from latentddm.hub.model_card import GRID_NAME, Card, write_card
from latentddm.hub.pipeline import LatentDDMPipeline
from latentddm.hub.scheduler import DistributionalScheduler
from latentddm.inference.generator import RUN_KIND, Generator
from latentddm.inference.settings import SamplingConfig

_log = logging.getLogger("latentddm")

# Executed by DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR).
LOADER = '''"""The pipeline class for DiffusionPipeline; latentddm must be installed."""

from latentddm.hub.pipeline import LatentDDMPipeline  # noqa: F401
'''
LOADER_NAME = "pipeline.py"
GRID_IMAGES, GRID_COLUMNS = 16, 4


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The contents of an exported folder beside the weights.

    ema: width or file of the moving average; None: the first that was tracked. autoencoder: a
    reference, for a run whose own is no longer there. evaluation: a file written by `latentddm
    evaluate --output`. steps, seed: of the grid of samples (None: the run's usual steps). license:
    of the weights, which is not that of this program.
    """

    ema: str | None = None
    autoencoder: str | None = None
    evaluation: Path | None = None
    steps: int | None = None
    seed: int = 0
    license: str = "other"


def export_run(run: Path, output: Path, options: ExportOptions | None = None) -> Path:
    """Write the folder `output`, whole or not at all, for `from_pretrained` of the pipeline.

    A folder with the same export may be there, as after a kill in the last moment. UserError if
    the run has no checkpoint, the folder holds something else, or diffusers alone could not load
    the autoencoder.
    """
    options = options or ExportOptions()
    if not (output / LatentDDMPipeline.config_name).is_file():
        require_new_folder(output, "an export")
    remove_leftovers(output.parent, [f"{output.name}."])
    evaluation = read_json(options.evaluation) if options.evaluation is not None else None
    generator = Generator.load(run, ema=options.ema)
    settings = generator.settings(options.steps)
    steps = settings.steps
    pipeline = build_pipeline(generator, options.autoencoder, settings)
    pipeline.set_progress_bar_config(disable=True)
    pixels = draw_pixels(pipeline, GRID_IMAGES, steps, options.seed)
    folder = RunFolder.open(run, RUN_KIND)
    card = Card(
        config=folder.read_config(),
        images_seen=folder.effort(generator.images).images,
        parameters=generator.network.num_parameters(),
        shape=generator.space.shape,
        autoencoder=type(pipeline.vae).__name__ if pipeline.vae is not None else None,
        fingerprint=generator.space.fingerprint,
        picture=tuple(pixels.shape[1:3]),
        steps=steps,
        seed=options.seed,
        ema=options.ema,
        reads_xi=generator.reads_xi,
        flow_map=generator.flow_map,
        license=options.license,
        evaluation=evaluation,
    )
    make_folder(output.parent)
    with atomic_path(output) as temporary:
        pipeline.save_pretrained(temporary)
        (temporary / LOADER_NAME).write_text(LOADER, encoding="utf-8")
        save_image(temporary / GRID_NAME, image_grid(pixels.numpy(), GRID_COLUMNS))
        write_card(temporary, card)
        _make_way(output, temporary)
    return output


def _make_way(output: Path, export: Path) -> None:
    """Remove a folder that is empty or holds the same files as `export`; UserError for others."""
    if not output.is_dir():
        return
    if _contents(output) not in ({}, _contents(export)):
        raise UserError(f"{output} already holds another export; choose another output folder.")
    remove_folder(output)


def _contents(folder: Path) -> dict[str, str]:
    """Name -> hash of the files of a folder."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def build_pipeline(
    generator: Generator, autoencoder: str | None = None, settings: SamplingConfig | None = None
) -> LatentDDMPipeline:
    """The pipeline of a run in memory; UserError if its autoencoder is unknown to diffusers.

    settings: of its scheduler and of xi, the exact sampler's if None, and for a solver of two
    evaluations a step.
    """
    settings = settings or SamplingConfig()
    if settings.solver not in ONE_EVALUATION_A_STEP:
        _log.warning(
            "The best settings for %d evaluations are of %s, which takes two a step; the pipeline "
            "begins with ddim on a uniform grid.",
            *(settings.steps, settings.solver),
        )
        settings = SamplingConfig()
    space = generator.space
    wrapped = space.load_autoencoder(reference=autoencoder)
    return LatentDDMPipeline(
        network=generator.network,
        vae=_vae(wrapped),
        scheduler=DistributionalScheduler(
            solver=settings.solver,
            churn=settings.churn,
            grid=settings.grid,
            power=settings.power,
            safety=max(settings.safety, generator.least_safety),
            noise_scale=settings.noise_scale,
            schedule=generator.network.config["schedule"],
        ),
        latent_shape=space.shape,
        latent_mean=space.mean,
        latent_std=space.std,
        reads_xi=generator.reads_xi,
        flow_map=generator.flow_map,
        xi_scale=settings.xi_scale,
    )


def _vae(autoencoder: Autoencoder) -> torch.nn.Module | None:
    """The network of an autoencoder; None for pixels. UserError if it is unknown to diffusers."""
    if isinstance(autoencoder, PixelAutoencoder):
        return None
    network = autoencoder.network
    known = (AutoencoderKL, VQModel, AutoencoderTiny, AutoencoderDC)
    if type(network) not in known or any(isinstance(m, PooledBlock) for m in network.modules()):
        raise UserError(
            f"diffusers cannot load the autoencoder {autoencoder.reference}: it has layers "
            "(TAEF2's pool branch) that diffusers lacks; draw with `latentddm sample RUN --decode` "
            "instead."
        )
    return network


def draw_pixels(pipeline: LatentDDMPipeline, count: int, steps: int, seed: int) -> torch.Tensor:
    """The first `count` images under `seed`, uint8 [count, H, W, 3]."""
    generators = pipeline.generators(seed, count)
    try:
        (unit,) = pipeline(
            count, generators, num_inference_steps=steps, output_type="np", return_dict=False
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    return torch.as_tensor(unit * 255).round().to(torch.uint8)


def push_to_hub(folder: Path, repository: str, private: bool = False) -> str:
    """Upload an exported folder to the hub as `owner/name`; returns the commit's address.

    JobError if the hub is out of reach or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload a latentddm pipeline"
        )
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise JobError(
            f"{folder} is written, but {repository} could not be made on the Hugging Face hub "
            f"({reason}); check the id, the network and your login (`hf auth login`)."
        ) from error
    return str(commit)
