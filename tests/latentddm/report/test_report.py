"""The page is one file, shows every number, and escapes foreign text."""

from __future__ import annotations

import json
import math
import re
from base64 import b64decode
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoencoder.image_io import image_grid, save_image
from latentddm.engine.errors import JobError
from latentddm.engine.seeding import numpy_generator
from latentddm.report import write_report
from latentddm.report.formatting import duration, number, ratio

STEPS = (1, 2, 4, 8, 16, 50)
VOID = {"meta", "link", "img", "br"}
NASTY = "<b>&\"x' $title </style><script>alert(1)</script>"


class Page(HTMLParser):
    """The text, the links, the ids and the elements of a page; fails where tags do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.style = ""
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        linking = ("src", "href", "srcset", "poster", "data", "action", "xlink:href")
        self.links += [value or "" for name, value in attrs if name in linking]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.style += "".join(f"{value};" for name, value in attrs if name == "style")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    @property
    def pictures(self) -> list[bytes]:
        prefix = "data:image/png;base64,"
        return [b64decode(link[len(prefix) :]) for link in self.links if link.startswith(prefix)]


def tiles(name: str, count: int = 32) -> np.ndarray:
    """Seeded images uint8 [count,64,64,3]: a coloured disc on a coloured ground."""
    random = numpy_generator(0, "report test", name)
    rows, columns = np.mgrid[:64, :64]
    pictures = []
    for _ in range(count):
        across, down = random.uniform(24, 40, 2)
        inside = (rows - down) ** 2 + (columns - across) ** 2 < random.uniform(12, 22) ** 2
        ground, disc = random.integers(0, 256, (2, 3))
        pictures.append(np.where(inside[..., None], disc, ground))
    return np.stack(pictures).astype(np.uint8)


def measured(value: float) -> dict[str, float]:
    return {"value": value, "low": 0.93 * value, "high": 1.08 * value}


def make_method(key: str, label: str, frechet: float, energy: float, draws: int) -> dict[str, Any]:
    results = [
        {
            "steps": steps,
            "frechet": measured(0.41 + frechet / steps),
            "energy": measured(0.0011 + energy / steps**1.5),
            "original_frechet": measured(9.1 + frechet / steps),
            "original_energy": measured(0.51 + energy / steps**1.5),
            "latent_frechet": measured(0.62 + 1.3 * frechet / steps),
            "latent_energy": measured(0.0007 + 0.8 * energy / steps**1.5),
            "attributes": 0.021 + frechet / 400 / steps,
            "picture": f"pictures/{key}-{steps:02d}.png",
        }
        for steps in STEPS
    ]
    return {
        "key": key,
        "label": label,
        "training_seconds": 190.4 if key == "ddm" else 101.7,
        "images_seen": 48_000,
        "parameters": 1_750_339,
        "draws": draws,
        "results": results,
    }


def make_report(folder: Path) -> dict[str, Any]:
    """A report with every part, its images in `folder`."""
    methods = [
        make_method("ddm", "DDM (energy score)", 19.2, 0.31, draws=4),
        make_method("plain", "plain diffusion (DDIM)", 81.3, 4.7, draws=1),
    ]
    names = [result["picture"] for method in methods for result in method["results"]]
    pictures = {
        "originals": "pictures/originals.png",
        "reconstructions": "pictures/reconstructions.png",
    }
    side_by_side = {name: f"pictures/top-{name}.png" for name in (*pictures, "draws")}
    (folder / "pictures").mkdir()
    for name in (*names, *pictures.values(), *side_by_side.values()):
        save_image(folder / name, image_grid(tiles(name), columns=8))
    return {
        "title": "latentddm demo",
        "version": "0.1.0",
        "finished": "2026-11-22 05:00 UTC",
        "machine": {"processor": "x86_64", "cores": 2, "device": "cpu", "torch": "2.15"},
        "source": {
            "name": "portraits:4000",
            "images": 4013,
            "available": 4015,
            "size": 64,
            "unreadable": [
                {"key": "set/a.jpg", "reason": "cut short"},
                {"key": "b.png", "reason": "one pixel wide"},
            ],
        },
        "stages": [
            {"name": "Read the images", "seconds": 3.43, "detail": "4,013 images, 2 unreadable"},
            {"name": "Train the autoencoder", "seconds": 71.2, "detail": "2,400 images seen"},
            {"name": "Train DDM", "seconds": 190.4, "detail": "48,000 images seen, 4 draws each"},
            {"name": "Sample, decode and evaluate", "seconds": 88.0, "detail": "12 settings"},
        ],
        "seconds": 431.0,
        "autoencoder": {
            "parameters": 951_017,
            "factor": 8,
            "latent_channels": 6,
            "reference": "demo/autoencoder/autoencoder",
            "warning": "",
            "psnr": 27.13,
            "images_seen": 2400,
            "frechet": 9.91,
            "energy": 0.733,
        },
        "methods": methods,
        "floor": {
            "frechet": 0.377,
            "energy": 0.00093,
            "original_frechet": 8.87,
            "original_energy": 0.613,
            "latent_frechet": 0.61,
            "latent_energy": 0.00021,
            "what": "1,000 other images of the same source",
        },
        "attributes": {
            "steps": 4,
            "rows": [
                {
                    "name": "hair_colour",
                    "reference": {"black": 0.51, "copper": 0.3, "silver": 0.19},
                    "ddm": {"black": 0.53, "copper": 0.29, "silver": 0.18},
                    "plain": {"black": 0.72, "copper": 0.22, "silver": 0.06},
                    "distance": {"ddm": 0.0213, "plain": 0.2131},
                },
                {
                    "name": "glasses",
                    "reference": {"none": 0.34, "round": 0.35, "square": 0.31},
                    "ddm": {"none": 0.4, "round": 0.33, "square": 0.27},
                    "plain": {"none": 0.91, "round": 0.07, "square": 0.02},
                    "distance": {"ddm": 0.0634, "plain": 0.5712},
                },
            ],
        },
        "pictures": pictures,
        "side_by_side": {**side_by_side, "method": "DDM (energy score)", "steps": 4},
        "protocol": {
            "frechet": "Fréchet distance in pyramid-v2 features; n = 1,000 against 4,013",
            "energy": "energy distance in pyramid-v2 features; n = 1,000 against 4,013",
            "latent_frechet": "Fréchet distance of the latents; n = 1,000 against 4,013",
            "latent_energy": "energy distance of the latents; n = 1,000 against 4,013",
        },
        "settings": {"images": "portraits", "generator": {"objective": {"draws": 4, "lam": 1.25}}},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def complete(folder: Path) -> dict[str, Any]:
    return make_report(folder)


@pytest.fixture
def report(complete: dict[str, Any]) -> dict[str, Any]:
    return deepcopy(complete)


def write(folder: Path, report: dict[str, Any]) -> Page:
    path = write_report(folder, report)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_needs_nothing_beside_itself(folder: Path, report: dict[str, Any]) -> None:
    page = write(folder, report)
    assert page.links
    assert [link for link in page.links if not link.startswith(("data:", "#"))] == []
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not {"script", "iframe", "object", "embed", "base"} & set(page.tags)


def test_every_image_is_embedded_unchanged(folder: Path, report: dict[str, Any]) -> None:
    page = write(folder, report)
    originals = {path.read_bytes() for path in (folder / "pictures").iterdir()}
    assert len(page.pictures) == 2 * len(STEPS) + 2 + 3
    assert set(page.pictures) == originals


def test_the_json_holds_the_same_report(folder: Path, report: dict[str, Any]) -> None:
    write(folder, report)
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == report


def numeric_leaves(value: Any, path: str = "") -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [
            leaf for key, item in value.items() for leaf in numeric_leaves(item, f"{path}/{key}")
        ]
    if isinstance(value, list):
        return [leaf for item in value for leaf in numeric_leaves(item, path)]
    return [(path, value)] if isinstance(value, int | float) else []


def spellings(value: float) -> set[str]:
    """The spellings of a number that a reader may expect, independent of the report's code."""
    minutes, seconds = divmod(round(value), 60)
    return {
        f"{value:,}",
        f"{value:,.1f} s",
        f"{value * 1000:.1f} ms",
        f"{minutes} min {seconds} s",
        f"{value * 100:.0f} %",
        f"{value:#.3g}".rstrip("."),
    }


def test_every_number_is_on_the_page(folder: Path, report: dict[str, Any]) -> None:
    found = write(folder, report).text
    leaves = numeric_leaves(report)
    assert len(leaves) > 100
    missing = [
        (path, value)
        for path, value in leaves
        if not any(
            re.search(rf"(?<![\d.,]){re.escape(s)}(?![\d])", found) for s in spellings(value)
        )
    ]
    assert missing == []


def test_every_text_is_on_the_page(folder: Path, report: dict[str, Any]) -> None:
    found = write(folder, report).text
    wanted = ["latentddm demo", "0.1.0", "2026-11-22 05:00 UTC", "portraits:4000", "x86_64", "2.15"]
    wanted += ["set/a.jpg", "cut short", "hair colour", "silver", "1,000 other images"]
    wanted += [stage[key] for stage in report["stages"] for key in ("name", "detail")]
    wanted += list(report["protocol"].values())
    assert [words for words in wanted if words not in found] == []


def test_the_headline_compares_both_methods_at_four(folder: Path, report: dict[str, Any]) -> None:
    for method, value in zip(report["methods"], (12.0, 10.0), strict=True):
        method["results"][2]["frechet"] = measured(value)
    sentence = write(folder, report).text.partition("portraits:4000, ")[0]
    assert "4 network evaluations" in sentence
    floor = number(report["floor"]["frechet"])
    assert re.search(rf"DDM.*12\.0.*plain diffusion.*10\.0.*1\.2×.*perfect.*{floor}", sentence)


def opening(page: Page) -> str:
    """The text of the page up to its first curve."""
    return page.text.partition("Samples by number of network evaluations")[0]


def test_the_top_holds_originals_reconstructions_and_draws(
    folder: Path, report: dict[str, Any]
) -> None:
    page = write(folder, report)
    shown = [(folder / report["side_by_side"][n]).read_bytes() for n in report["pictures"]]
    assert page.pictures[:2] == shown
    assert page.pictures[2] == (folder / report["side_by_side"]["draws"]).read_bytes()
    for words in ("Originals", "Reconstructions", "PSNR 27.1 dB", "Drawn by DDM"):
        assert words in opening(page)


def test_the_top_states_the_distances_from_the_originals(
    folder: Path, report: dict[str, Any]
) -> None:
    """So that a weak autoencoder cannot pass for a good generator."""
    top = opening(write(folder, report))
    ours, theirs = (m["results"][2]["original_frechet"]["value"] for m in report["methods"])
    assert re.search(rf"originals, DDM.* {number(ours)} and plain.* {number(theirs)},.*8\.87", top)


def test_a_weak_autoencoder_is_a_warning_at_the_top(folder: Path, report: dict[str, Any]) -> None:
    report["autoencoder"]["warning"] = "Every picture is blurred; add --autoencoder REF."
    page = write(folder, report)
    assert report["autoencoder"]["warning"] in opening(page)


def test_a_pretrained_autoencoder_is_named_and_was_not_trained_here(
    folder: Path, report: dict[str, Any]
) -> None:
    report["autoencoder"] |= {"images_seen": 0, "reference": "<i>a/b"}
    page = write(folder, report)
    assert "pretrained (<i>a/b), not trained here" in page.text
    assert "trained here on" not in page.text
    assert "i" not in page.tags


def with_text(report: dict[str, Any], words: str) -> dict[str, Any]:
    """The report with `words` wherever text comes from users or from their files."""
    report = deepcopy(report)
    report["source"]["name"] = report["title"] = words
    report["source"]["unreadable"] = [{"key": words, "reason": words}]
    report["stages"][0]["detail"] = report["stages"][0]["name"] = words
    report["methods"][0]["label"] = report["floor"]["what"] = words
    report["autoencoder"]["warning"] = report["side_by_side"]["method"] = words
    report["settings"] = {"images": words}
    report["protocol"]["energy"] = report["machine"]["processor"] = words
    return report


def test_foreign_text_stays_text(folder: Path, report: dict[str, Any]) -> None:
    harmless = write(folder, with_text(report, "harmless"))
    page = write(folder, with_text(report, NASTY))
    assert page.tags == harmless.tags
    assert page.text.count(NASTY) == harmless.text.count("harmless")
    assert "alert" not in page.style


def test_a_file_name_that_is_not_utf8_is_escaped(folder: Path, report: dict[str, Any]) -> None:
    report["source"]["unreadable"] = [{"key": "caf\udce9.jpg", "reason": "cut short"}]
    assert r"caf\udce9.jpg" in write(folder, report).text


def test_missing_parts_are_left_out(folder: Path, report: dict[str, Any]) -> None:
    full = write(folder, report)
    report["attributes"] = None
    report["source"]["unreadable"] = []
    for method in report["methods"]:
        for result in method["results"]:
            result["attributes"] = None
    page = write(folder, report)
    for words in ("ttributes", "glasses", "could not be read"):
        assert words in full.text
        assert words not in page.text
    assert "None" not in page.text
    assert full.tags.count("section") == page.tags.count("section") + 1


def test_a_missing_image_is_named(folder: Path, report: dict[str, Any]) -> None:
    report["pictures"]["originals"] = "pictures/gone.png"
    with pytest.raises(JobError, match=r"gone\.png"):
        write_report(folder, report)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3.2, "3.20"),
        (0.03117, "0.0312"),
        (9.996, "10.0"),
        (1234.4, "1,234"),
        (-0.5, "−0.500"),
        (0.0000412, "4.12 · 10⁻⁵"),
        (0.0, "0"),
        (math.nan, "n/a"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_a_ratio_needs_something_to_divide_by() -> None:
    assert ratio(1.0, 4.2) == "0.24×"
    assert ratio(0.0, 2.0) == "0×"
    for pair in ((1.0, 0.0), (1.0, -0.1), (-0.1, 1.0), (math.nan, 1.0), (1.0, math.inf)):
        assert ratio(*pair) == "n/a"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.00213, "2.1 ms"), (41.23, "41.2 s"), (59.97, "1 min 0 s"), (3725, "1 h 2 min")],
)
def test_times_are_in_a_readers_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
