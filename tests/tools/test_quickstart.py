"""The quickstart notebook fits the library, and runs from its first cell to its last."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "tools" / "quickstart.ipynb"


def cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return notebook["cells"]


def sources() -> list[str]:
    """The code cells."""
    return ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]


def program() -> ast.Module:
    return ast.parse("\n".join(sources()), NOTEBOOK.name)


def imported_names(tree: ast.Module) -> dict[str, Any]:
    """The objects that the cells import, by name; an import that fails is an error."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                alias.asname or alias.name: importlib.import_module(alias.name)
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            found |= {
                alias.asname or alias.name: getattr(module, alias.name) for alias in node.names
            }
    return found


def test_the_notebook_is_stored_without_outputs() -> None:
    assert {cell["cell_type"] for cell in cells()} == {"code", "markdown"}
    assert len({cell["id"] for cell in cells()}) == len(cells())
    for cell in cells():
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_every_name_is_defined_before_its_use() -> None:
    defined = set(dir(builtins))
    for source in sources():
        tree = ast.parse(source, NOTEBOOK.name)
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        defined |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
        defined |= set(imported_names(tree))
        assert {node.id for node in names} <= defined


def test_every_attribute_and_keyword_exists_in_the_library() -> None:
    """Without running a cell: a renamed function or config key must not wait for the slow test."""
    tree = program()
    imported = imported_names(tree)
    checked = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (function := resolve(node.func, imported)) is not None:
            parameters = inspect.signature(function).parameters.values()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                keywords = {keyword.arg for keyword in node.keywords}
                assert keywords <= {parameter.name for parameter in parameters}, ast.unparse(node)
                checked += 1
    assert checked >= 15


def resolve(node: ast.expr, imported: dict[str, Any]) -> Any:
    """The object of `name` or `name.attribute` for an imported name; None for all other nodes."""
    if isinstance(node, ast.Name):
        return imported.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        base = imported.get(node.value.id)
        return None if base is None else getattr(base, node.attr)
    return None


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer images, the only difference."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for source in small_sources():
        exec(compile(source, str(NOTEBOOK), "exec"), names)
    assert Image.open(tmp_path / "quickstart" / "samples.png").width > 4 * 64
    assert (tmp_path / "quickstart" / "exported" / "README.md").is_file()


def small_sources() -> Iterator[str]:
    replaced = 0
    for source in sources():
        small = source.replace("portraits:600", "portraits:80").replace("6_000", "160")
        replaced += small != source
        yield small
    assert replaced == 1
