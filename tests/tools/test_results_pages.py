"""The measurements in tools/results: whole files, pages that say what the files say, curves."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from latentddm.engine.errors import UserError

TOOLS = Path(__file__).parents[2] / "tools"
RESULTS = TOOLS / "results"
LONGEST_PAGE = 60  # lines
PAGES = sorted(path.parent.name for path in RESULTS.glob("*/README.md"))
TOPICS = sorted(path.parent.name for path in RESULTS.glob("*/results.json"))


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("results_pages")


def plain(topic: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((RESULTS / topic / "results.json").read_text("utf-8"))
    return values


def test_every_topic_has_a_page_and_a_line_in_the_index() -> None:
    index = (RESULTS / "README.md").read_text("utf-8")
    assert len(TOPICS) > 20
    assert set(TOPICS) <= set(PAGES)
    for topic in PAGES:
        assert f"[{topic}]({topic}/README.md)" in index, topic


@pytest.mark.parametrize("topic", [".", *PAGES])
def test_a_page_is_read_in_a_minute(topic: str) -> None:
    lines = (RESULTS / topic / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= LONGEST_PAGE
    if topic in TOPICS:
        assert any(line.startswith("**Verdict") for line in lines)
        assert any(line.startswith(("**Question", "**Setting")) for line in lines)


@pytest.mark.parametrize("topic", TOPICS)
def test_every_number_stands_in_a_named_column(topic: str) -> None:
    tables = plain(topic)["tables"]
    assert plain(topic)["topic"] == topic
    assert len({table["name"] for table in tables}) == len(tables) > 0
    for table in tables:
        where = f"{topic}: {table['name']}"
        names = [row["name"] for row in table["rows"]]
        assert len(set(names)) == len(names) > 0, where
        deviations = {f"{key}_sd" for key in table["metrics"]}
        known = {"name", "notes", *table["metrics"], *deviations, *table.get("extras", {})}
        for row in table["rows"]:
            assert set(row) <= known, (where, row["name"])
            assert set(row.get("notes", {})) <= set(table["columns"]), (where, row["name"])
            measured = [row[key] for key in (*table["metrics"], *deviations) if key in row]
            assert measured, (where, row["name"])
            for values in measured:
                assert len(values) == len(table["columns"]), (where, row["name"])
                assert any(value is not None for value in values), (where, row["name"])
                assert all(value is None or type(value) in (int, float) for value in values)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_says_what_its_file_says(topic: str, pages: ModuleType) -> None:
    page = (RESULTS / topic / "README.md").read_text("utf-8")
    expected = pages.page_with_tables(page, pages.read_topic(RESULTS / topic), topic)
    assert page == expected, f"run `python tools/results_pages.py {topic}`"


@pytest.mark.parametrize("topic", [topic for topic in TOPICS if "curves" in plain(topic)])
def test_every_curve_is_drawn_from_the_figures_as_they_are(
    topic: str, pages: ModuleType, tmp_path: Path
) -> None:
    values = pages.read_topic(RESULTS / topic)
    page = (RESULTS / topic / "README.md").read_text("utf-8")
    for curve in values["curves"]:
        drawn, kept = tmp_path / curve["file"], RESULTS / topic / curve["file"]
        pages.draw(values, curve, drawn)
        picture = drawn.read_text("utf-8")
        for panel in curve["panels"]:
            for name in panel["rows"]:
                assert name.replace("`", "") in picture, name
        mark = pages.fingerprint(values, curve)
        assert mark in picture
        assert mark in kept.read_text("utf-8"), f"run `python tools/results_pages.py {topic}`"
        assert f"]({curve['file']})" in page, f"{curve['file']} is shown nowhere"


@pytest.fixture
def small() -> dict[str, Any]:
    rows = [{"name": "DDM", "frechet": [1.5, 0.8], "frechet_sd": [None, 0.1]}]
    metrics = {"frechet": "Fréchet distance"}
    table = {"name": "faces", "title": "Faces", "x": "evaluations", "metrics": metrics}
    panel = {"table": "faces", "metric": "frechet", "title": "Faces", "rows": ["DDM"]}
    return {
        "topic": "small",
        "tables": [{**table, "columns": ["1", "2"], "rows": rows}],
        "curves": [{"file": "faces.svg", "panels": [panel]}],
    }


def test_a_figure_keeps_its_digits(
    small: dict[str, Any], pages: ModuleType, tmp_path: Path
) -> None:
    text = json.dumps(small).replace("0.8", "0.80").replace("0.1]", "0.10]")
    (tmp_path / "results.json").write_text(text, "utf-8")
    topic = pages.read_topic(tmp_path)
    assert "| DDM | 1.5 | 0.80 ± 0.10 |" in pages.markdown(topic["tables"][0])


def test_an_edited_figure_makes_the_curve_stale(small: dict[str, Any], pages: ModuleType) -> None:
    curve = small["curves"][0]
    before = pages.fingerprint(small, curve)
    small["tables"][0]["rows"][0]["frechet"][1] = 0.7
    assert pages.fingerprint(small, curve) != before


def _in_page(pages: ModuleType, topic: dict[str, Any], path: Path) -> None:
    pages.page_with_tables("<!-- table faecs -->\n<!-- end -->", topic, "here")


def _in_curve(pages: ModuleType, topic: dict[str, Any], path: Path) -> None:
    topic["curves"][0]["panels"][0]["table"] = "faecs"
    pages.draw(topic, topic["curves"][0], path)


@pytest.mark.parametrize("use", [_in_page, _in_curve])
def test_a_misspelt_table_is_named_beside_those_that_exist(
    use: Callable[[ModuleType, dict[str, Any], Path], None],
    small: dict[str, Any],
    pages: ModuleType,
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"faecs.*faces"):
        use(pages, small, tmp_path / "faces.svg")
    assert not (tmp_path / "faces.svg").exists()


def test_a_damaged_file_is_named(pages: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match=r"results\.json"):
        pages.read_topic(tmp_path)
