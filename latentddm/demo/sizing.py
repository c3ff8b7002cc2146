"""The sizes of a plan in the demo's config, and the network that fits the latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from autoencoder.training import AutoencoderConfig
from latentddm.demo.config import DemoConfig, Sizes
from latentddm.engine.errors import UserError
from latentddm.inference.xi_scale import has_many_numbers
from latentddm.networks.network import NetworkConfig
from latentddm.networks.unet import UNetConfig
from latentddm.training.config import TrainConfig
from latentddm.training.objective import DistributionalObjective
from latentddm.training.phases import Phase

VISIBLE = "visible"
WHOLE_EDGE = 4  # latents of so many positions a side are one patch; larger ones keep positions
PLANNED_KEYS = (
    *("image_limit", "reference", "samples", "autoencoder.loop.images"),
    *("generator.network.channels", "generator.phases.0.images", "generator.phases.1.images"),
)
"""Keys of the config that `minutes` decides."""


def sized(config: DemoConfig) -> DemoConfig:
    """The config with the sizes of its plan, if it has any."""
    sizes = config.plan.sizes if config.plan else None
    if sizes is None:
        return config
    return replace(
        config,
        image_limit=sizes.pictures,
        reference=sizes.reference,
        samples=sizes.samples,
        generator=_sized_generator(config.generator, sizes),
        autoencoder=_sized_autoencoder(config.autoencoder, sizes.autoencoder_images),
    )


def check_planned(config: DemoConfig) -> None:
    """UserError for a config that `minutes` cannot size."""
    network = config.generator.network
    if not isinstance(network, UNetConfig):
        raise UserError(
            f"minutes chooses the channels of a unet, but generator.network.kind is "
            f"{network.kind}; add minutes=null."
        )
    if [phase.objective.kind for phase in config.generator.phases] != ["plain", "ddm"]:
        raise UserError(
            "minutes sizes two generator.phases, of kind plain and ddm; add minutes=null for "
            "others."
        )
    if config.autoencoder.start is None and config.plan and config.plan.autoencoder is None:
        raise UserError(
            "autoencoder.start is null, and minutes does not size the training of a new "
            "autoencoder; add minutes=null, or give --autoencoder REF."
        )


def _sized_generator(config: TrainConfig, sizes: Sizes) -> TrainConfig:
    counts, total = (sizes.plain_images, sizes.ddm_images), sizes.plain_images + sizes.ddm_images
    loop = replace(
        config.loop,
        log_every=max(total // 16, 1),
        preview_every=total,
        checkpoint_every=max(total // 4, 1),
    )
    phases = tuple(
        shortened(phase, count) for phase, count in zip(config.phases, counts, strict=True)
    )
    return replace(
        config, network=widened(config.network, sizes.channels), phases=phases, loop=loop
    )


def widened(network: NetworkConfig, channels: int) -> NetworkConfig:
    """A UNet in another width."""
    assert isinstance(network, UNetConfig)  # of check_planned
    return replace(network, channels=channels)


def shortened(phase: Phase, images: int) -> Phase:
    """The phase with that many images; its warm-up is at most a tenth of them."""
    warmup = min(phase.optimizer.warmup_images, images // 10)
    return replace(phase, images=images, optimizer=replace(phase.optimizer, warmup_images=warmup))


def _sized_autoencoder(config: AutoencoderConfig, images: int) -> AutoencoderConfig:
    if images == 0:
        return config
    loop = replace(
        config.loop,
        images=images,
        log_every=max(images // 8, 1),
        preview_every=images,
        checkpoint_every=max(images // 2, 1),
    )
    return replace(config, loop=loop)


def fitting_generator(config: DemoConfig, shape: Sequence[int]) -> TrainConfig:
    """The generator for latents [C, H, W]; see `fitting_network` and `fitting_views`."""
    generator = replace(config.generator, network=fitting_network(config, shape[1]))
    return generator if config.plan is None else fitting_views(generator, shape)


def fitting_views(generator: TrainConfig, shape: Sequence[int]) -> TrainConfig:
    """The generator without the view `visible` if the latents have few numbers.

    There it was not measured; with many it gains (tools/results/many-numbers).
    """
    if has_many_numbers(shape):
        return generator
    return replace(generator, phases=tuple(_without_visible(each) for each in generator.phases))


def _without_visible(phase: Phase) -> Phase:
    objective = phase.objective
    if not isinstance(objective, DistributionalObjective):
        return phase
    views = {name: view for name, view in objective.score.views.items() if name != VISIBLE}
    if not views or views == objective.score.views:
        return phase
    score = replace(objective.score, views=views)
    return replace(phase, objective=replace(objective, score=score))


def fitting_network(config: DemoConfig, edge: int) -> NetworkConfig:
    """The generator's network for latents of `edge` positions a side.

    With `whole_patch`, or for small latents of a planned demo, all latents are one patch, so that
    every layer sees all of them. UserError for `whole_patch` with another patch size.
    """
    network = config.generator.network
    if config.whole_patch:
        if not isinstance(network, UNetConfig) or network.patch_size not in (1, edge):
            raise UserError(
                "whole_patch is true, so generator.network must be a unet without a patch_size of "
                "its own; add whole_patch=false."
            )
        return replace(network, patch_size=edge)
    if config.plan is None or not isinstance(network, UNetConfig):
        return network
    return whole_if_small(network, edge)


def whole_if_small(network: UNetConfig, edge: int) -> UNetConfig:
    """The network with all latents as one patch, if they have few positions (WHOLE_EDGE)."""
    if edge > WHOLE_EDGE:
        return network
    return replace(network, patch_size=edge, attention_levels=(), pointwise_levels=(0,))


def describe_sizes(
    sizes: Sizes, source: str, available: int, size: int, shape: Sequence[int], began: datetime
) -> str:
    """Two lines for people: the work, and the time of its end. began: its start."""
    end = began + timedelta(seconds=sizes.seconds)
    channels, height, width = shape
    return (
        f"Training on {sizes.pictures:,} of {available:,} pictures of {source} at {size} px, "
        f"latents of {height} x {width} x {channels}: a DDM and plain diffusion, networks of "
        f"{sizes.channels} channels, {sizes.plain_images + sizes.ddm_images:,} images seen by "
        f"each.\nThen {sizes.samples:,} samples for each setting and the report; about "
        f"{sizes.seconds / 60:.1f} minutes in all, until {end:%H:%M}."
    )
