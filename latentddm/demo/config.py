"""Everything that the demo does, and the decisions that it takes at its first start."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from autoencoder.images import SampleKeys
from autoencoder.training import AutoencoderConfig
from latentddm.demo.reference import REFERENCE_IMAGES
from latentddm.training.config import TrainConfig
from latentddm.training.objective import PlainObjective

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a demo's work, chosen for a number of minutes; seconds: of the whole work."""

    pictures: int  # encoded and trained on
    reference: int  # of them, at most; the others are the floor's
    samples: int  # for each method and number of evaluations
    channels: int  # width of both networks
    autoencoder_images: int  # seen in the training of the embedded autoencoder; 0: pretrained
    plain_images: int  # seen in each phase of the DDM
    ddm_images: int
    seconds: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The decisions of a demo's first start; in the folder's config, for the same work later on."""

    autoencoder: str | None  # reference of a pretrained one; None: the embedded one is trained
    sizes: Sizes | None  # None: those of the config


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Everything that the demo does.

    configs/demo.yaml is sized for two cores and the embedded portraits; configs/demo_own.yaml, for
    other pictures, is sized by `minutes`.
    """

    images: str = "portraits"
    keys: SampleKeys = "webdataset"  # of tar shards; whole: the names of samples have dots
    output: str = "demo"
    size: int = 64
    minutes: float | None = None  # of the whole work, which chooses its sizes; None: those below
    pretrained: str | None = None  # an autoencoder's reference; None: `autoencoder` is trained;
    # auto: the hub's tiny one if it can be had at once, else `autoencoder`
    image_limit: int = 4000  # of a larger source so many are drawn at random
    workers: int = 2
    autoencoder: AutoencoderConfig
    generator: TrainConfig  # of the DDM; its network may have latents of one patch, `whole_patch`,
    # and its sampler is that of both
    plain: PlainObjective = field(default_factory=PlainObjective)  # of the run beside it
    whole_patch: bool = False  # the network's patch_size is the edge of the latents: one patch
    reference: int = REFERENCE_IMAGES  # training images that samples are compared with, at most
    samples: int = 1000  # for each method and number of evaluations
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 50)
    plan: Plan | None = None  # written by the demo itself

    def __post_init__(self) -> None:
        """ValueError for a time out of range."""
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(
                f"minutes must be above 0, not {self.minutes:g}; give 5, for example, or leave it "
                "out"
            )
