"""The report as report.json, and as report.html, one file with everything in it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from latentddm.engine.atomic_io import write_json, write_text
from latentddm.report.figures import Album
from latentddm.report.formatting import text
from latentddm.report.sections import SECTIONS


def write_report(folder: Path, report: dict[str, Any]) -> Path:
    """Write folder/report.json and folder/report.html; returns the path of the latter.

    The page needs no network and no script; the images that the report names, relative to
    `folder`, are embedded. JobError if one cannot be read or the disk fails.
    """
    report = _encodable(report)
    page = folder / "report.html"
    write_json(folder / "report.json", report)
    write_text(page, render(report, Album(folder)))
    return page


def render(report: dict[str, Any], album: Album) -> str:
    """The whole page; empty sections are left out."""
    template = Template(_resource("page.html"))
    contents = [section(report, album) for section in SECTIONS]
    return template.substitute(
        title=text(f"{report['title']}: {report['source']['name']}"),
        style=_resource("style.css"),
        content="\n".join(content for content in contents if content),
    )


def _resource(name: str) -> str:
    return (files("latentddm.report") / name).read_text(encoding="utf-8")


def _encodable(value: Any) -> Any:
    """The value with text that UTF-8 can encode; file names on Linux may be any bytes."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value
