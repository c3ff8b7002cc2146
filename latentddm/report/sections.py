"""The sections of the page, top to bottom: each is HTML from the report, empty if left out."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from latentddm.engine.config import to_yaml
from latentddm.report.figures import Album, curve
from latentddm.report.formatting import counted, duration, interval, number, section, text
from latentddm.report.opening import header, side_by_side
from latentddm.report.tables import DISTANCES, attributes, numbers, results_by_steps, stages

Section = Callable[[dict[str, Any], Album], str]
GRID_METRICS = {
    "frechet": "Fréchet",
    "energy": "Energy",
    "original_frechet": "Fréchet from the originals",
}


def _grids(report: dict[str, Any], album: Album) -> str:
    """The samples of every method side by side, for each number of evaluations."""
    rows = []
    for steps, results in results_by_steps(report["methods"]).items():
        figures = "".join(
            _grid(place, method["label"], results[method["key"]], album)
            for place, method in enumerate(report["methods"])
        )
        rows.append(
            f'<h3>{counted(steps, "network evaluation")}</h3><div class="pair">{figures}</div>'
        )
    return section("Samples by number of network evaluations", "".join(rows))


def _grid(place: int, label: str, result: dict[str, Any], album: Album) -> str:
    figures = [
        f"{name} <b>{number(result[metric]['value'])}</b> "
        f"<small>({interval(result[metric])})</small>"
        for metric, name in GRID_METRICS.items()
    ]
    if result["attributes"] is not None:
        figures.append(f"Attributes <b>{number(result['attributes'])}</b>")
    description = f"Samples of {label}, {counted(result['steps'], 'network evaluation')} each"
    items = "".join(f"<li>{figure}</li>" for figure in figures)
    return (
        f"<figure>{album.show(result['picture'], description)}<figcaption>"
        f'<strong class="method-{place}">{text(label)}</strong><ul>{items}</ul>'
        f"</figcaption></figure>"
    )


def _curves(report: dict[str, Any], album: Album) -> str:
    methods, floor = report["methods"], report["floor"]
    figures = "".join(
        curve(metric, name, methods, floor[metric]) for metric, name in DISTANCES.items()
    )
    return section(
        "Distance from the training images",
        f'<div class="pair">{figures}</div>'
        f"<p>Lower is better; bands are intervals. The reference is the training images after the "
        f"autoencoder, as latents and as reconstructions, so that the distances are due to the "
        f"generators alone; distances from the originals hold the loss of the autoencoder too. The "
        f"floor is the distance of {text(floor['what'])} after the autoencoder, the best value "
        f"that any generator can have.</p>",
    )


def _numbers(report: dict[str, Any], album: Album) -> str:
    return section("All numbers", numbers(report["methods"], report["floor"]))


def _autoencoder(report: dict[str, Any], album: Album) -> str:
    model = report["autoencoder"]
    shown = {"originals": "Originals", "reconstructions": "Reconstructions"}
    figures = "".join(
        f"<figure>{album.show(report['pictures'][name], title)}"
        f"<figcaption><strong>{title}</strong></figcaption></figure>"
        for name, title in shown.items()
    )
    edge = report["source"]["size"] // model["factor"]
    facts = [
        f"PSNR {number(model['psnr'])} dB",
        f"latents of {edge} × {edge} × {model['latent_channels']}, "
        f"{model['factor']} times smaller a side",
        counted(model["parameters"], "parameter"),
    ]
    facts.append(
        f"trained here on {counted(model['images_seen'], 'image')}"
        if model["images_seen"]
        else f"pretrained ({model['reference']}), not trained here"
    )
    facts.append(
        f"Fréchet distance of the reconstructions from the originals {number(model['frechet'])}, "
        f"energy distance {number(model['energy'])}"
    )
    return section(
        "Reconstruction by the autoencoder",
        f'<div class="pair">{figures}</div><p>{text("; ".join(facts))}.</p>',
    )


def _attributes(report: dict[str, Any], album: Album) -> str:
    found = report["attributes"]
    if found is None:
        return ""
    return section(
        f"Attributes of the portraits with {counted(found['steps'], 'network evaluation')}",
        attributes(found["rows"], report["methods"]),
    )


def _time(report: dict[str, Any], album: Album) -> str:
    runs = "; ".join(
        f"{method['label']} in {duration(method['training_seconds'])} on "
        f"{counted(method['images_seen'], 'image')} with {counted(method['draws'], 'draw')} "
        f"per image and {counted(method['parameters'], 'parameter')}"
        for method in report["methods"]
    )
    share = _plain_share(report["settings"])
    start = f" The first {share:.0%} of the DDM's images were plain diffusion." if share else ""
    return section(
        "Time of each stage",
        f"{stages(report['stages'], report['seconds'])}<p>{text(runs)}.{start}</p>",
    )


def _plain_share(settings: dict[str, Any]) -> float:
    """The share of the DDM's images that its phases of plain diffusion see."""
    phases = _phases(settings)
    plain = [phase["images"] for phase in phases if phase["objective"]["kind"] == "plain"]
    return sum(plain) / sum(phase["images"] for phase in phases) if plain else 0.0


def _next(report: dict[str, Any], album: Album) -> str:
    run, size = album.folder, report["source"]["size"]
    trained, autoencoder = shlex.quote(str(run / "ddm")), report["autoencoder"]["reference"]
    config = shlex.quote(str(run / "ddm" / "config.yaml"))
    commands = {
        "The same on your own images": "latentddm demo --images FOLDER --output my-demo",
        "The same with more time": f"latentddm demo --images FOLDER --autoencoder "
        f"{shlex.quote(autoencoder)} --minutes 30 --output longer",
        "More samples of this demo's generator": f"latentddm sample {trained} --steps 4 "
        f"--num 64 --output samples --decode",
        "Ten times the training, one stage after the other": f"latentddm encode --images FOLDER "
        f"--autoencoder {shlex.quote(autoencoder)} --size {size} --output my-store\n"
        f"latentddm train {config} store=my-store output=my-run" + _longer(report["settings"]),
    }
    items = "".join(
        f"<p>{purpose}</p><pre>{text(command)}</pre>" for purpose, command in commands.items()
    )
    return section("Next commands", items)


def _longer(settings: dict[str, Any]) -> str:
    """The keys of phases of ten times as many images."""
    return "".join(
        f" phases.{number}.images={10 * phase['images']}"
        for number, phase in enumerate(_phases(settings))
    )


def _phases(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The phases of the DDM's training."""
    phases: list[dict[str, Any]] = settings.get("generator", {}).get("phases", [])
    return phases


def _settings(report: dict[str, Any], album: Album) -> str:
    """Small print: the protocols of the numbers, unreadable images, every setting."""
    protocol = "".join(
        f"<dt>{text(DISTANCES.get(metric, metric))}</dt><dd>{text(line)}</dd>"
        for metric, line in report["protocol"].items()
    )
    return section(
        "Protocols and settings",
        f"<dl>{protocol}</dl>{_unreadable(report['source']['unreadable'])}"
        f"<details><summary>Settings</summary><pre>{text(to_yaml(report['settings']))}</pre>"
        f"</details>",
    )


def _unreadable(images: list[dict[str, str]]) -> str:
    if not images:
        return ""
    rows = "".join(
        f"<tr><td>{text(image['key'])}</td><td>{text(image['reason'])}</td></tr>"
        for image in images
    )
    return (
        f'<details><summary class="warning">{counted(len(images), "image")} could not be read '
        f"and are left out</summary><table><thead><tr><th>Image</th><th>Reason</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></details>"
    )


SECTIONS: tuple[Section, ...] = (
    header,
    side_by_side,
    _grids,
    _curves,
    _numbers,
    _autoencoder,
    _attributes,
    _time,
    _next,
    _settings,
)
