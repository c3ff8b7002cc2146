"""The model card of an exported run: contents, loading, data, training, measurements, licence."""

from __future__ import annotations

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
from latentddm.inference.generator import is_student

GRID_NAME = "samples.png"
CARD_NAME = "README.md"
PATHS = ("store", "output", "start", "teacher", "run")  # keys of configs that name folders

_TEMPLATE = """# A few-step image generator

Draws images of {width} x {height} pixels in {steps} network evaluations. {method}
Made with latentddm {version}.

![Samples](samples.png)

*Samples in {steps} evaluations, seed {seed}, not chosen.*

## Loading

```python
import torch
from latentddm.hub.pipeline import LatentDDMPipeline  # pip install latentddm

pipe = LatentDDMPipeline.from_pretrained("PATH OR HUB ID")
image = pipe(num_inference_steps={steps}, generator=torch.Generator().manual_seed(0)).images[0]
```

`DiffusionPipeline.from_pretrained(ID, custom_pipeline=ID, trust_remote_code=True)` does the same
where latentddm is installed and not imported. {vae}the network in `network/` is a
class of latentddm, in safetensors.

## Data

{data}

The licence of these images is not part of this card; ask whoever published them.

## Training

| | |
|---|---|
| images seen | {images_seen:,} |
{phases}| network | {network}, {parameters:,} parameters |
| schedule | {schedule} |
| latents | {shape}, {autoencoder} (`{fingerprint}`) |
| moving average | {ema} |

## Measurements

{metrics}

## Licence

{license}

## Config

```yaml
{config}```
"""

_VAE = "`vae/` loads with diffusers alone; "
_NO_VAE = "There is no autoencoder, as the network draws pixels; "


@dataclass(frozen=True, kw_only=True)
class Card:
    """The content of a model card; `config` is the run's, `evaluation` the output of `evaluate`."""

    config: dict[str, Any]
    images_seen: int
    parameters: int
    shape: tuple[int, ...]
    autoencoder: str | None  # its class; None: the latents are pixels
    fingerprint: str
    picture: tuple[int, ...]  # height and width
    steps: int
    seed: int
    ema: str | None
    reads_xi: bool  # False: a mean denoiser
    flow_map: str | None = None  # the steps that a flow map has learnt
    license: str
    evaluation: dict[str, Any] | None


def write_card(folder: Path, card: Card) -> None:
    """Write README.md into `folder`, with the metadata for the hub."""
    data = ModelCardData(
        license=card.license,
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["latentddm", "few-step", "distributional-diffusion"],
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{_body(card)}"
    ModelCard(text).save(folder / CARD_NAME)


def _body(card: Card) -> str:
    network = card.config["network"]
    return _TEMPLATE.format(
        height=card.picture[0],
        width=card.picture[1],
        steps=card.steps,
        method=_method(card),
        version=__version__,
        seed=card.seed,
        data=_data(card.config),
        images_seen=card.images_seen,
        phases=_phases(_without_local_paths(card.config)),
        network=network["kind"],
        schedule=card.config["schedule"],
        parameters=card.parameters,
        shape=" x ".join(map(str, card.shape)),
        autoencoder=f"of an {card.autoencoder}" if card.autoencoder else "the pixels themselves",
        vae=_VAE if card.autoencoder else _NO_VAE,
        fingerprint=card.fingerprint,
        ema=Path(card.ema).name if card.ema else f"width {card.config['ema']['widths'][0]}",
        metrics=_metrics(card.evaluation),
        license=_license(card.license),
        config=to_yaml(_without_local_paths(card.config)),
    )


def _method(card: Card) -> str:
    """How the network was trained, in a sentence."""
    if is_student(card.config):
        return "The network was distilled from plain diffusion by moment matching."
    if card.flow_map:
        kind = card.config["phases"][-1]["objective"]["kind"]
        return f"The network was trained as a flow map, by the objective `{kind}`."
    if not card.reads_xi:
        return "The network was trained as plain diffusion: it predicts the mean E[x0 | x_t]."
    return (
        "The network was trained without a teacher, to draw from the posterior p(x0 | x_t) by a\n"
        "scoring rule ([Distributional Diffusion Models with Scoring Rules]"
        "(https://arxiv.org/abs/2502.02483))."
    )


def _phases(config: dict[str, Any]) -> str:
    """A table row for each phase of the training, or for the teacher of a distilled student."""
    if is_student(config):
        teacher = _shown(str(config["teacher"]))
        return f"| distilled from | `{teacher}`, for {config['steps']} steps |\n"
    return "".join(
        f"| phase {number} | {phase['images']:,} images; {', '.join(_flat(phase['objective']))} |\n"
        for number, phase in enumerate(config.get("phases", ()), start=1)
    )


def _flat(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The settings of nested groups, each as "group.key value", in order; None is left out."""
    settings = []
    for key, value in values.items():
        if isinstance(value, dict):
            settings += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            settings.append(f"{prefix}{key} {value}")
    return settings


def _data(config: dict[str, Any]) -> str:
    """The images of the store, if it is still there; local paths lose their folders."""
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
    """A reference without the folders of this machine, which are private."""
    public = "://" in reference or reference.startswith("hf:")
    return public_name(reference) if public else Path(reference).name


def _without_local_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The config, each run and store in it, those of views as well, without its folders."""

    def shown(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _without_local_paths(value)
        if isinstance(value, list):
            return [shown(key, each) for each in value]
        return _shown(value) if key in PATHS and isinstance(value, str) else value

    return {key: shown(key, value) for key, value in config.items()}


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
    if protocol.reference is not None:
        about["reference"] = _shown(protocol.reference)
    return ", ".join(f"{key} {value}" for key, value in about.items() if value is not None)


def _license(name: str) -> str:
    if name == "other":
        return "None was given; that of the images and of the autoencoder bind the weights as well."
    return f"{name}; that of the images and of the autoencoder bind the weights as well."
