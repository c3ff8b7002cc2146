"""The opening of the page: the main result in words, and the pictures to judge it by."""

from __future__ import annotations

from typing import Any

from latentddm.report.figures import Album
from latentddm.report.formatting import counted, duration, number, ratio, section, text
from latentddm.report.tables import headline_steps, results_by_steps


def header(report: dict[str, Any], album: Album) -> str:
    """The main result in one paragraph, and the conditions of the run."""
    first, last = report["methods"][0], report["methods"][-1]
    every_result = results_by_steps(report["methods"])
    steps = headline_steps(every_result)
    results = every_result[steps]
    ours, theirs = (results[method["key"]]["frechet"]["value"] for method in (first, last))
    from_originals = [
        f"{method['label']} at {number(results[method['key']]['original_frechet']['value'])}"
        for method in (first, last)
    ]
    floor, model = report["floor"]["original_frechet"], report["autoencoder"]
    warning = f'<p class="warning">{text(model["warning"])}</p>' if model["warning"] else ""
    source, machine = report["source"], report["machine"]
    part = f" of {source['available']:,}" if source["available"] > source["images"] else ""
    minutes = report["settings"].get("minutes")
    about = (
        f"{source['name']}, {source['images']:,}{part} images, {source['size']} × "
        f"{source['size']} px" + (f", sizes for {minutes:g} minutes" if minutes else ""),
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
        f"<b>{ratio(ours, theirs)}</b> the distance, where a perfect generator of these latents "
        f"would be at <b>{number(report['floor']['frechet'])}</b>.</p>"
        f"<p>This reference is what the autoencoder keeps of the images (reconstructions, PSNR "
        f"{number(model['psnr'])} dB). From the originals, "
        f"{text(' and '.join(from_originals))}, and a perfect generator at {number(floor)}.</p>"
        f"{warning}"
        f'<ul class="about">{"".join(f"<li>{text(item)}</li>" for item in about)}</ul></header>'
    )


def side_by_side(report: dict[str, Any], album: Album) -> str:
    """Originals, reconstructions and draws, large enough to judge."""
    shown, psnr = report["side_by_side"], number(report["autoencoder"]["psnr"])
    captions = {
        "originals": ("Originals", "images of the source"),
        "reconstructions": ("Reconstructions", f"the same through the autoencoder, PSNR {psnr} dB"),
        "draws": (f"Drawn by {shown['method']}", counted(shown["steps"], "network evaluation")),
    }
    figures = "".join(
        f"<figure>{album.show(shown[name], title)}<figcaption><strong>{text(title)}</strong>"
        f"<small>{text(note)}</small></figcaption></figure>"
        for name, (title, note) in captions.items()
    )
    return section("Originals, reconstructions, draws", f'<div class="triple">{figures}</div>')
