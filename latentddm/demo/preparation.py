"""The decisions before the work: the autoencoder, and the sizes for a number of minutes.

They are taken once, before anything is written, and stand in the folder's config: the same command
then does the same work again, whatever the machine's speed and the network are by then.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from autoencoder.images import ImageSource, Preprocessing
from autoencoder.models import Autoencoder
from autoencoder.sources.portraits import PortraitSource
from latentddm.demo.autoencoder_choice import announce, choose_autoencoder, load_chosen
from latentddm.demo.clock import StageClock
from latentddm.demo.config import DemoConfig, Plan, Sizes
from latentddm.demo.plan import Speeds, make_sizes
from latentddm.demo.reading import Sample, read_sample
from latentddm.demo.sizing import check_planned, describe_sizes
from latentddm.demo.speed import measure_networks, measure_speeds
from latentddm.engine.config import build
from latentddm.engine.run import RunFolder, require_new_folder

_log = logging.getLogger("latentddm")


def prepared(
    config: DemoConfig, source: ImageSource, clock: StageClock, startup: float
) -> DemoConfig:
    """The config with its plan: that of the folder, or a new one.

    The portraits at the sizes of their config need none. startup: see `run_demo`. UserError, before
    anything is written, for images, an autoencoder or a config that do not go together.
    """
    folder = RunFolder(Path(config.output))
    if folder.config_path.is_file():
        return replace(config, plan=_saved_plan(folder))
    require_new_folder(folder.path, "a demo")
    portraits = isinstance(source, PortraitSource)
    if portraits and config.minutes is None and config.pretrained is None:
        return replace(config, plan=None)
    with clock.stage("Choose the autoencoder and the sizes") as stage:
        plan = _decide(config, source, portraits, startup)
        minutes = "" if config.minutes is None else f", sizes for {config.minutes:g} minutes"
        stage.detail = f"{plan.autoencoder or 'the embedded autoencoder'}{minutes}"
    return replace(config, plan=plan)


def _decide(config: DemoConfig, source: ImageSource, portraits: bool, startup: float) -> Plan:
    """The plan, after a look at the source, at the autoencoder and at the machine's speed."""
    began = time.monotonic() - startup
    reference = choose_autoencoder(config.pretrained, embedded_fits=portraits)
    plan = Plan(autoencoder=reference, sizes=None)
    config = replace(config, plan=plan)
    if config.minutes is not None:
        check_planned(config)
    if reference is None and config.autoencoder.start is None:
        return plan  # a new autoencoder: there is nothing to measure yet
    autoencoder = load_chosen(reference, config)
    sample = read_sample(source, Preprocessing(size=config.size), config.workers)
    if reference is not None or not portraits:
        announce(reference, autoencoder, sample.pixels)
    if config.minutes is None:
        return plan
    _log.info("Measuring the speed of this machine ...")
    speeds = replace(measure_speeds(config, autoencoder, sample), startup=startup)
    return replace(plan, sizes=_plan_sizes(config, source, autoencoder, sample, speeds, began))


def _saved_plan(folder: RunFolder) -> Plan | None:
    values = folder.read_config().get("plan")
    return build(Plan, values, str(folder.config_path), "plan.") if values else None


def _plan_sizes(
    config: DemoConfig,
    source: ImageSource,
    autoencoder: Autoencoder,
    sample: Sample,
    speeds: Speeds,
    began: float,
) -> Sizes:
    """Measure this machine, choose the sizes, and say what will be done until when."""
    assert config.minutes is not None
    settings, available = len(config.steps), len(source)
    speeds = measure_networks(config, autoencoder, sample, available, speeds)
    speeds = replace(speeds, spent=time.monotonic() - began)
    sizes = make_sizes(
        config.minutes, available, settings, config.generator.loop.batch_size, speeds
    )
    edge = config.size // autoencoder.factor
    shape = (autoencoder.latent_channels, edge, edge)
    start = datetime.now() - timedelta(seconds=speeds.spent)
    _log.info("%s", describe_sizes(sizes, source.name, available, config.size, shape, start))
    return sizes
