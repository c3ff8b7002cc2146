"""The model card of an exported run: what it is, how to load it, what it was trained on."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from autoencoder.sources.naming import public_name
from autoencoder.store import LatentStore
from latentddm import __version__
from latentddm.engine.config import to_yaml
from latentddm.engine.errors import JobError, UserError
from latentddm.evaluation.protocol import Protocol, Result

GRID_NAME = "samples.png"
CARD_NAME = "README.md"

_TEMPLATE = """# A few-step image generator

Draws images of {width} x {height} pixels in {steps} network evaluations, trained without a teacher:
it learnt the whole posterior p(x0 | x_t) with a scoring rule
([Distributional Diffusion Models with Scoring Rules](https://arxiv.org/abs/2502.02483)).
Made with latentddm {version}.

![Samples](samples.png)

*Samples in {steps} evaluations, seed {seed}, not chosen.*

## How to load it

```python
import torch
from latentddm.hub.pipeline import LatentDDMPipeline  # pip install latentddm

pipe = LatentDDMPipeline.from_pretrained("PATH OR HUB ID")
image = pipe(num_inference_steps={steps}, generator=torch.Generator().manual_seed(0)).images[0]
```

`DiffusionPipeline.from_pretrained(ID, custom_pipeline=ID, trust_remote_code=True)` does the same
where latentddm is installed and not imported. `vae/` loads with diffusers alone; the network in
`unet/` is latentddm's own class, in safetensors.

## What it was trained on

{data}

Nothing here says that these images may be used for your purpose; ask whoever published them.

## How it was trained

| | |
|---|---|
| images seen | {images_seen:,} |
| parameters of the network | {parameters:,} |
| latents | {shape}, of an {autoencoder} (`{fingerprint}`) |
| moving average | {ema} |
| loss | {loss} |

## Measured

{metrics}

## Licence

{license}

## Config

```yaml
{config}```
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card is written from; `config` is the run's, `evaluation` that of `evaluate`."""

    config: dict[str, Any]
    images_seen: int
    parameters: int
    shape: tuple[int, ...]
    autoencoder: str
    fingerprint: str
    picture: tuple[int, ...]  # height and width
    steps: int
    seed: int
    ema: str | None
    license: str
    evaluation: dict[str, Any] | None


def write_card(folder: Path, card: Card) -> None:
    """Write README.md into `folder`, with the metadata that the hub reads."""
    data = ModelCardData(
        license=card.license,
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["latentddm", "few-step", "distributional-diffusion"],
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{_body(card)}"
    ModelCard(text).save(folder / CARD_NAME)


def _body(card: Card) -> str:
    objective = card.config.get("objective", {})
    return _TEMPLATE.format(
        height=card.picture[0],
        width=card.picture[1],
        steps=card.steps,
        version=__version__,
        seed=card.seed,
        data=_data(card.config),
        images_seen=card.images_seen,
        parameters=card.parameters,
        shape=" x ".join(map(str, card.shape)),
        autoencoder=card.autoencoder,
        fingerprint=card.fingerprint,
        ema=card.ema or f"width {card.config['ema']['widths'][0]}",
        loss=", ".join(f"{key} {value}" for key, value in objective.items()),
        metrics=_metrics(card.evaluation),
        license=_license(card.license),
        config=to_yaml(_without_local_paths(card.config)),
    )


def _data(config: dict[str, Any]) -> str:
    """What the store says of its images, if it is still there; local paths lose their folders."""
    reference = str(config.get("store", "unknown"))
    try:
        manifest = LatentStore(reference).manifest
    except (UserError, JobError):
        return f"The latent store `{_shown(reference)}`."
    return (
        f"{manifest.samples:,} latents in the store `{_shown(reference)}`, encoded from the "
        f"images `{_shown(str(manifest.plan.source['name']))}`."
    )


def _shown(reference: str) -> str:
    """A reference without the folders of this machine, which are nobody's business."""
    public = "://" in reference or reference.startswith("hf:")
    return public_name(reference) if public else Path(reference).name


def _without_local_paths(config: dict[str, Any]) -> dict[str, Any]:
    shown = copy.deepcopy(config)
    for key in ("store", "output", "teacher"):
        if key in shown:
            shown[key] = _shown(str(shown[key]))
    return shown


def _metrics(evaluation: dict[str, Any] | None) -> str:
    """A table of the numbers with the protocol of each below it."""
    if evaluation is None:
        return (
            "Not measured: `latentddm evaluate` writes the file that `export --evaluation` reads."
        )
    results = [Result.from_json(value) for value in evaluation.get("results", {}).values()]
    rows = [
        f"| {result.protocol.metric} | {result.value:.4g} | {result.low:.4g} to {result.high:.4g} "
        f"| {_protocol(result.protocol)} |"
        for result in results
    ]
    return "\n".join(["| metric | value | interval | protocol |", "|---|---|---|---|", *rows])


def _protocol(protocol: Protocol) -> str:
    about = {key: value for key, value in asdict(protocol).items() if key != "metric"}
    return ", ".join(f"{key} {value}" for key, value in about.items() if value is not None)


def _license(name: str) -> str:
    if name == "other":
        return "None was given; that of the images and of the autoencoder bind the weights as well."
    return f"{name}; that of the images and of the autoencoder bind the weights as well."
