"""The documents: short enough to be read, and no link in them leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("latentddm", "configs", "tools", "tests")
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.md")
)
LONGEST = {"latentddm/README.md": 80, "latentddm/docs": 120}  # lines
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


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("latentddm/")])
def test_a_page_has_a_length_that_people_read(name: str) -> None:
    limit = LONGEST.get(name, LONGEST.get(str(Path(name).parent)))
    assert limit is not None, f"{name} belongs into latentddm/docs"
    assert len((ROOT / name).read_text("utf-8").splitlines()) <= limit
