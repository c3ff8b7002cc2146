"""The rates of this machine for tools/paper.py, from a few steps and a few samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from compare_reference import LATENTS, Judgement, References
from experiment_rates import distance_seconds, evaluation_seconds, start_of_a_command
from paper_methods import method_config, second_share, student_config
from paper_plan import Rates

from autoencoder.decode import decode_latents
from autoencoder.store import LatentStore
from latentddm.demo.speed import quiet, timed
from latentddm.engine.devices import default_device
from latentddm.engine.distributed import start_processes
from latentddm.engine.dry_run import dry_run
from latentddm.inference.latent_space import LatentSpace
from latentddm.networks.network import make_network
from latentddm.training.config import TrainConfig
from latentddm.training.distillation import StudentTask
from latentddm.training.generator import measure_phases
from latentddm.training.objective import Objective

MEASURED = 10_000  # images of the training whose speed is measured: any number
SECONDS = 3.0  # of measured steps of a phase
SAMPLES = 32  # that are decoded and described


@quiet()
def measure_rates(
    config: TrainConfig, objectives: Mapping[str, Objective], students: int, judgement: Judgement
) -> Rates:
    """All rates; UserError for a store, reference or feature space that cannot be opened."""
    device, store = default_device(), LatentStore(config.store)
    space = LatentSpace.of_store(store)
    references = References(replace(judgement, reference_images=SAMPLES), device)
    describe = apart = 0.0
    for name in judgement.features:
        extractor = references.extractor(name, space)
        references.features(name, space)  # which refuses a reference that is none
        describe += _describing_seconds(references, name, space)
        apart += distance_seconds(extractor, judgement.metrics_in(name))
    training = {
        name: seconds_per_image(method_config(config, objective, MEASURED, Path("unused")))
        for name, objective in objectives.items()
    }
    return Rates(
        training=training,
        student=_student_seconds(config, store) if students else 0.0,
        evaluation=evaluation_seconds(config, store.shape),
        describe=describe,
        distance=apart,
        reference=judgement.reference_images * describe,
        start=start_of_a_command(),
    )


def seconds_per_image(config: TrainConfig) -> float:
    """Seconds of training for an image, the mean over the phases by their images."""
    total = sum(phase.images for phase in config.phases)
    return sum(
        phase.images / total / measured.images_per_second
        for phase, measured in zip(config.phases, measure_phases(config, SECONDS), strict=True)
    )


def _student_seconds(config: TrainConfig, store: LatentStore) -> float:
    """Seconds of a student's training for an image, of an untrained teacher."""
    teacher = Path("unused")
    images = second_share(config, MEASURED)
    student = student_config(config, 1, images, (teacher, MEASURED), teacher)
    network = replace(config.network, dropout=0.0)
    student = replace(
        student,
        network=network,
        schedule=config.schedule,
        store=config.store,
        label_dropout=config.label_dropout,
    )
    accelerator = start_processes(config.precision)
    made = make_network(network, store.shape, config.schedule)
    task = StudentTask(student, made, store, accelerator)
    measured = dry_run(task, config.loop, accelerator, 0, SECONDS)
    accelerator.free_memory()
    return 1 / measured.images_per_second


def _describing_seconds(references: References, name: str, space: LatentSpace) -> float:
    """Seconds of decoding and describing an image of noise."""
    latents = torch.randn(SAMPLES, *space.shape)
    extractor = references.extractor(name, space)

    def describe(latents: torch.Tensor) -> None:
        of_latents = name == LATENTS
        extractor(latents if of_latents else decode_latents(latents, references.autoencoder(space)))

    describe(latents[:1])  # the first call prepares kernels
    return timed(lambda: describe(latents))[1] / SAMPLES
