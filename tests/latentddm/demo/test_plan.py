"""The work for a number of minutes: no longer than that, more of it for more time, and possible."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest
from messages import assert_names, raises_naming

from latentddm.cli.arguments import find_config
from latentddm.demo import DemoConfig
from latentddm.demo.config import Plan, Sizes
from latentddm.demo.plan import WIDTHS, NetworkSpeed, Speeds, make_sizes
from latentddm.demo.reading import FEWEST_IMAGES
from latentddm.demo.sizing import check_planned, describe_sizes, sized
from latentddm.engine.config import load_config
from latentddm.engine.errors import UserError

BATCH, SETTINGS = 64, 4
MINUTES = (0.1, 0.5, 1, 2, 3, 4, 5, 7, 10, 15, 30, 60, 240, 1440)


def make_speeds(faster: float = 1.0, together: int = 2, **changes: float) -> Speeds:
    """Two slow cores and a tiny pretrained autoencoder, or a machine so many times faster."""
    networks = tuple(
        NetworkSpeed(
            channels=channels,
            plain=3e-3 * (channels / 128) ** 1.5 / faster,
            ddm=9e-3 * (channels / 128) ** 1.5 / faster,
        )
        for channels, _ in WIDTHS
    )
    speeds = Speeds(
        read=2e-3 / faster,
        encode=0.035 / faster,
        decode=0.035 / faster,
        autoencoder=0.0,
        together=together,
        startup=10.0,
        spent=20.0,
        networks=networks,
    )
    return replace(speeds, **changes)


def sizes_of(minutes: float, available: int = 20_000, speeds: Speeds | None = None) -> Sizes:
    return make_sizes(minutes, available, SETTINGS, BATCH, speeds or make_speeds())


@pytest.mark.parametrize("faster", [1.0, 100.0])
@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("autoencoder", [0.0, 0.02])
def test_more_minutes_are_more_of_everything(
    faster: float, together: int, autoencoder: float
) -> None:
    speeds = make_speeds(faster, together, autoencoder=autoencoder)
    plans = [sizes_of(minutes, speeds=speeds) for minutes in MINUTES]
    for key in ("pictures", "reference", "samples", "channels", "autoencoder_images", "seconds"):
        values = [getattr(sizes, key) for sizes in plans]
        assert values == sorted(values), key
    for channels in {sizes.channels for sizes in plans}:
        seen = [s.plain_images + s.ddm_images for s in plans if s.channels == channels]
        assert seen == sorted(seen)
    assert plans[-1].pictures > plans[0].pictures
    assert (plans[-1].autoencoder_images > 0) == (autoencoder > 0)


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("minutes", [5, 10, 60])
def test_the_work_takes_the_minutes(minutes: float, together: int) -> None:
    sizes = sizes_of(minutes, speeds=make_speeds(together=together))
    assert 0.95 * 60 * minutes <= sizes.seconds <= 60 * minutes


def test_too_few_minutes_give_the_least_work_and_its_true_time() -> None:
    sizes = sizes_of(0.1)
    assert sizes.seconds > 6
    assert sizes.pictures >= FEWEST_IMAGES
    assert min(sizes.plain_images, sizes.ddm_images) >= BATCH


def test_a_faster_machine_gets_a_wider_network_that_sees_its_images() -> None:
    slow, fast = sizes_of(5), sizes_of(5, speeds=make_speeds(100.0))
    assert fast.channels > slow.channels
    for sizes in (slow, fast):
        fewest = dict(WIDTHS)[sizes.channels]
        assert sizes.plain_images + sizes.ddm_images >= fewest - 2 * BATCH


def test_phases_are_whole_batches_three_quarters_of_them_plain() -> None:
    sizes = sizes_of(10)
    assert sizes.plain_images % BATCH == sizes.ddm_images % BATCH == 0
    total = sizes.plain_images + sizes.ddm_images
    assert sizes.plain_images / total == pytest.approx(0.75, abs=0.02)


def test_there_are_never_more_pictures_than_the_source_has() -> None:
    sizes = sizes_of(600, available=70)
    assert sizes.pictures == 70
    assert sizes.reference <= 35


def own(*overrides: str, autoencoder: str | None = "a/b") -> DemoConfig:
    config = load_config(DemoConfig, find_config("demo_own.yaml"), overrides)
    return replace(config, plan=Plan(autoencoder=autoencoder, sizes=sizes_of(5)))


def test_a_plan_is_in_every_size_of_the_config() -> None:
    config = own()
    assert config.plan is not None
    sizes, work = config.plan.sizes, sized(config)
    assert sizes is not None
    assert (work.image_limit, work.samples, work.reference) == (
        sizes.pictures,
        sizes.samples,
        sizes.reference,
    )
    assert work.generator.network.channels == sizes.channels  # type: ignore[attr-defined]
    assert [p.images for p in work.generator.phases] == [sizes.plain_images, sizes.ddm_images]
    for phase in work.generator.phases:
        assert phase.optimizer.warmup_images <= phase.images // 10
    assert work.plan == config.plan


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("generator.network={kind: dit}", ["minutes", "generator.network.kind", "dit"]),
        ("generator.phases=[{images: 8}]", ["minutes", "generator.phases", "plain and ddm"]),
        ("autoencoder.start=null", ["autoencoder.start", "--autoencoder REF"]),
    ],
)
def test_what_minutes_cannot_size_is_named_with_the_remedy(override: str, named: list[str]) -> None:
    path = find_config("demo_own.yaml")
    if "network" in override:  # a group of another kind: keys of the UNet would be unknown
        config = own()
        dit = load_config(DemoConfig, path).generator
        from latentddm.networks.dit import DiTConfig

        config = replace(config, generator=replace(dit, network=DiTConfig()))
    else:
        config = own(override, autoencoder=None)
    with raises_naming(UserError, *named, "minutes=null"):
        check_planned(config)


def test_the_plan_states_what_is_trained_on_what_until_when() -> None:
    now = datetime(2026, 11, 29, 23, 58)
    sizes = replace(sizes_of(5), seconds=300)
    lines = describe_sizes(sizes, "holiday", 2140, 64, (32, 8, 8), now).splitlines()
    assert len(lines) == 2
    assert_names(lines[0], "holiday", f"{sizes.pictures:,} of 2,140", "8 x 8 x 32", "64 px")
    assert_names(lines[1], f"{sizes.samples:,} samples", "5.0 minutes", "00:03")
