"""The arrows between rooms: which may import which, read from every import, lazy ones included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MATHS = {"diffusion", "scores", "networks"}
STAGES = MATHS | {"engine", "autoencoder", "training", "inference"}
ABOVE = {"hub", "evaluation", "report"}
MAY_IMPORT = {
    "engine": set(),
    "diffusion": set(),
    "scores": set(),
    "networks": {"diffusion"},
    "autoencoder": {"engine"},
    "inference": MATHS | {"engine", "autoencoder"},
    "training": MATHS | {"engine", "autoencoder", "inference"},
    "hub": (STAGES - {"training"}) | {"evaluation"},
    "evaluation": {"engine", "autoencoder"},
    "report": {"engine", "evaluation", "autoencoder"},
    "demo": STAGES | ABOVE,
    "play": STAGES | ABOVE,
    "cli": STAGES | ABOVE | {"demo", "play"},
}
NOT_IN_MATHS = {"accelerate", "omegaconf", "os", "pathlib", "shutil", "yaml"}


def modules() -> list[Path]:
    found = sorted([*ROOT.glob("latentddm/**/*.py"), *ROOT.glob("autoencoder/**/*.py")])
    assert len(found) > 100
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """The absolute names of the modules, or of names in modules, that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str | None:
    """The room of a module of ours; None for the top of a package and for foreign modules."""
    parts = name.split(".")
    if parts[0] == "autoencoder":
        return "autoencoder"
    return parts[1] if parts[0] == "latentddm" and parts[1:] and parts[1] in MAY_IMPORT else None


def test_every_folder_is_a_room_with_its_arrows() -> None:
    folders = {path.parent.name for path in ROOT.glob("latentddm/*/__init__.py")}
    assert folders | {"autoencoder"} == set(MAY_IMPORT)


def test_a_room_imports_only_the_rooms_that_it_may() -> None:
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in modules()
        for name in imports(path)
        if (source := room(module_name(path))) is not None
        and (target := room(name)) is not None
        and target != source
        and target not in MAY_IMPORT[source]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_maths_knows_no_config_no_processes_and_no_files() -> None:
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in modules()
        for name in imports(path)
        if room(module_name(path)) in MATHS and name.split(".")[0] in NOT_IN_MATHS
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_a_detour() -> None:
    names = {module_name(path): path for path in modules()}
    graph = {
        name: {
            target
            for imported in imports(path)
            if (target := _module_of(imported, names)) is not None and target != name
        }
        for name, path in names.items()
    }
    done: set[str] = set()
    for start in graph:
        _walk(start, graph, [], done)


def _module_of(imported: str, names: dict[str, Path]) -> str | None:
    if imported in names:
        return imported
    parent = imported.rpartition(".")[0]
    return parent if parent in names else None


def _walk(name: str, graph: dict[str, set[str]], path: list[str], done: set[str]) -> None:
    if name in path:
        pytest.fail("a circle: " + " -> ".join([*path[path.index(name) :], name]))
    if name not in done:
        for target in sorted(graph[name]):
            _walk(target, graph, [*path, name], done)
        done.add(name)
