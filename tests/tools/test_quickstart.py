"""The notebook runs from its first cell to its last, and its pictures are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "tools" / "quickstart.ipynb"


def cells() -> list[str]:
    """The code cells, as they stand."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_without_outputs_and_is_python() -> None:
    nbformat = pytest.importorskip("nbformat", reason="pip install nbformat")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
    for source in cells():
        compile(source, str(NOTEBOOK), "exec")


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer images, which is the only difference."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for source in cells():
        small = source.replace("portraits:600", "portraits:80").replace("6_000", "160")
        exec(compile(small, str(NOTEBOOK), "exec"), names)
    assert Image.open(tmp_path / "quickstart" / "samples.png").width > 4 * 64
    assert (tmp_path / "quickstart" / "exported" / "README.md").is_file()
