"""The sections of the page, top to bottom: each is HTML from the report, empty if left out."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from latentddm.engine.config import to_yaml
from latentddm.report.figures import Album, curve
from latentddm.report.formatting import counted, duration, interval, number, ratio, text
from latentddm.report.tables import DISTANCES, attributes, numbers, results_by_steps, stages

Section = Callable[[dict[str, Any], Album], str]
HEADLINE_STEPS = 4


def _header(report: dict[str, Any], album: Album) -> str:
    """The main result in one paragraph, and the conditions of the run."""
    first, last = report["methods"][0], report["methods"][-1]
    every_result = results_by_steps(report["methods"])
    steps = HEADLINE_STEPS if HEADLINE_STEPS in every_result else min(every_result)
    results = every_result[steps]
    ours, theirs = (results[method["key"]]["frechet"]["value"] for method in (first, last))
    source, machine = report["source"], report["machine"]
    about = (
        f"{source['name']}, {source['images']:,} images of {source['size']} × {source['size']} px",
        f"{machine['processor']}, {counted(machine['cores'], 'core')}, {machine['device']}, "
        f"torch {machine['torch']}",
        f"latentddm {report['version']}",
        f"finished {report['finished']} after {duration(report['seconds'])}",
    )
    return (
        f"<header><h1>{text(report['title'])}</h1>"
        f'<p class="lead">Samples of two generators that differ in their training objective, and '
        f"in the noise input ξ, which only the first has. "
        f"With {counted(steps, 'network evaluation')} per image, "
        f'<b class="method-0">{text(first["label"])}</b> is at a Fréchet distance of '
        f"<b>{number(ours)}</b> from the reference, "
        f'<b class="method-1">{text(last["label"])}</b> at <b>{number(theirs)}</b>: '
        f"<b>{ratio(ours, theirs)}</b> the distance.</p>"
        f'<ul class="about">{"".join(f"<li>{text(item)}</li>" for item in about)}</ul></header>'
    )


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
    return _section("Samples by number of network evaluations", "".join(rows))


def _grid(place: int, label: str, result: dict[str, Any], album: Album) -> str:
    figures = [
        f"{name} <b>{number(result[metric]['value'])}</b> "
        f"<small>({interval(result[metric])})</small>"
        for metric, name in {"frechet": "Fréchet", "energy": "Energy"}.items()
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
    return _section(
        "Distance from the training images",
        f'<div class="pair">{figures}</div>'
        f"<p>Lower is better; bands are intervals. The reference is the training images after the "
        f"autoencoder, as latents and as reconstructions, so that the distances are due to the "
        f"generators alone. The floor is the distance of {text(floor['what'])}, the best value "
        f"that any generator can have.</p>",
    )


def _numbers(report: dict[str, Any], album: Album) -> str:
    return _section("All numbers", numbers(report["methods"], report["floor"]))


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
    facts.append(f"trained here on {counted(model['images_seen'], 'image')}")
    facts.append(
        f"Fréchet distance of the reconstructions from the originals {number(model['frechet'])}, "
        f"energy distance {number(model['energy'])}"
    )
    return _section(
        "Reconstruction by the autoencoder",
        f'<div class="pair">{figures}</div><p>{text("; ".join(facts))}.</p>',
    )


def _attributes(report: dict[str, Any], album: Album) -> str:
    found = report["attributes"]
    if found is None:
        return ""
    return _section(
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
    return _section(
        "Time of each stage",
        f"{stages(report['stages'], report['seconds'])}<p>{text(runs)}.{start}</p>",
    )


def _plain_share(settings: dict[str, Any]) -> float:
    """The share of the DDM's images that its phases of plain diffusion see."""
    phases = settings.get("generator", {}).get("phases", [])
    plain = [phase["images"] for phase in phases if phase["objective"]["kind"] == "plain"]
    return sum(plain) / sum(phase["images"] for phase in phases) if plain else 0.0


def _next(report: dict[str, Any], album: Album) -> str:
    run, size = album.folder, report["source"]["size"]
    trained, autoencoder = shlex.quote(str(run / "ddm")), run / "autoencoder" / "autoencoder"
    commands = {
        "The same on your own images": "latentddm demo --images FOLDER --output my-demo",
        "More samples of this demo's generator": f"latentddm sample {trained} --steps 4 "
        f"--num 64 --output samples --decode",
        "A longer training, one stage after the other": f"latentddm encode --images FOLDER "
        f"--autoencoder {shlex.quote(str(autoencoder))} --size {size} --output my-store\n"
        f"latentddm train CONFIG.yaml store=my-store output=my-run",
    }
    items = "".join(
        f"<p>{purpose}</p><pre>{text(command)}</pre>" for purpose, command in commands.items()
    )
    return _section("Next commands", items)


def _settings(report: dict[str, Any], album: Album) -> str:
    """Small print: the protocols of the numbers, unreadable images, every setting."""
    protocol = "".join(
        f"<dt>{text(DISTANCES.get(metric, metric))}</dt><dd>{text(line)}</dd>"
        for metric, line in report["protocol"].items()
    )
    return _section(
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


def _section(title: str, content: str) -> str:
    return f"<section><h2>{text(title)}</h2>{content}</section>"


SECTIONS: tuple[Section, ...] = (
    _header,
    _grids,
    _curves,
    _numbers,
    _autoencoder,
    _attributes,
    _time,
    _next,
    _settings,
)
