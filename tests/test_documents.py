"""The documents: short enough to be read, and no link in them leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("latentddm", "autoencoder", "configs", "tools", "tests")
PAGES = [
    "README.md",
    *sorted(p.relative_to(ROOT).as_posix() for room in ROOMS for p in (ROOT / room).rglob("*.md")),
]
# Lines, by folder, else 80; the pages of tools/results have a shorter limit of their own.
LONGEST = {".": 120, "latentddm/docs": 120}
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names under which GitHub links to the headings of a page."""
    headings = _HEADING.findall(page.read_text("utf-8"))
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in _LINK.findall(_CODE.sub("", page.read_text("utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_pages_are_found() -> None:
    assert {"latentddm/README.md", "latentddm/docs/extending.md", "tools/results/README.md"} <= set(
        PAGES
    )


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_a_length_that_people_read(name: str) -> None:
    folder, file = str(Path(name).parent), Path(name).name
    allowed = file == "README.md" or folder == "latentddm/docs"
    assert allowed, f"{name} belongs into latentddm/docs or tools/results/TOPIC"
    limit = LONGEST.get(folder, 80)
    assert len((ROOT / name).read_text("utf-8").splitlines()) <= limit
