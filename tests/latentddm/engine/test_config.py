"""A mistake in a config is one sentence that names the file, the key and the nearest known key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from messages import raises_naming

from latentddm.engine.config import (
    build,
    differences,
    load_config,
    to_plain,
    to_yaml,
)
from latentddm.engine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 1.0
    kind: Literal["a", "b", "no"] = "a"


@dataclass(frozen=True, kw_only=True)
class Part:
    length: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    images: int
    widths: tuple[int, ...] = (1, 2)
    limit: float | None = None
    name: str = "x"
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    parts: tuple[Part, ...] = ()


def read(tmp_path: Path, text: str, *overrides: str) -> Outer:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(Outer, path, overrides)


def test_values_of_every_type_are_read_and_overrides_have_precedence(tmp_path: Path) -> None:
    text = "images: 5\nwidths: [3, 4]\nlimit: 2\nname: y\ninner: {rate: 1e-3, kind: b}\n"
    config = read(tmp_path, text, "images=7", "inner.rate=2", "flag=true", "widths=[8]")
    assert config == Outer(
        images=7, widths=(8,), limit=2.0, name="y", flag=True, inner=Inner(rate=2.0, kind="b")
    )


@pytest.mark.parametrize("text", ["images: 5\ninner: {kind: no}", "images: 5\ninner: {kind: 'no'}"])
def test_no_is_a_word_and_not_false(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).inner.kind == "no"
    assert read(tmp_path, "images: 5", "inner.kind=no").inner.kind == "no"


def test_the_written_config_reads_back_equal(tmp_path: Path) -> None:
    config = Outer(images=3, limit=None, inner=Inner(kind="b"))
    assert read(tmp_path, to_yaml(config)) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("imagse: 5", ["'imagse'", "'images'"]),
        ("images: 5\ninner: {rat: 1}", ["'inner.rat'", "'rate'"]),
        ("images: 5\nxyz: 1", ["'xyz'", "images, widths, limit, name, flag, inner"]),
        ("images: many", ["'images'", "whole number", "'many'"]),
        ("images: 1.5", ["'images'", "whole number", "1.5"]),
        ("images: true", ["'images'", "whole number", "True"]),
        ("images: 5\ninner: {kind: c}", ["'inner.kind'", "a, b, no", "'c'"]),
        ("images: 5\nwidths: [1, x]", ["'widths.1'", "whole number", "'x'"]),
        ("images: 5\nflag: maybe", ["'flag'", "true or false", "'maybe'"]),
        ("name: y", ["'images'", "missing"]),
        ("images: [", ["cannot be read", "correct it"]),
        ("- 1\n- 2", ["not a mapping", "key: value"]),
    ],
)
def test_a_mistake_names_the_file_the_key_and_the_remedy(
    tmp_path: Path, text: str, named: list[str]
) -> None:
    with raises_naming(UserError, str(tmp_path / "config.yaml"), *named):
        read(tmp_path, text)


def test_a_missing_file_and_a_bad_override_are_refused(tmp_path: Path) -> None:
    with raises_naming(UserError, str(tmp_path / "none.yaml"), "check the path"):
        load_config(Outer, tmp_path / "none.yaml")
    with raises_naming(UserError, "'seven'", "key=value"):
        read(tmp_path, "images: 5", "seven")


def test_differences_name_the_dotted_keys() -> None:
    first = {"a": 1, "b": {"c": 2, "d": 3}}
    second = {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}
    assert differences(first, second) == ["b.c", "e"]


def test_none_is_accepted_by_optional_keys_only() -> None:
    assert build(Outer, {"images": 1, "limit": None}, "x").limit is None
    with raises_naming(UserError, "'name'", "a text", "None"):
        build(Outer, {"images": 1, "name": None}, "x")


@dataclass(frozen=True, kw_only=True)
class Shape:
    kind: str

    @staticmethod
    def kinds() -> dict[str, type[Shape]]:
        return {"circle": Circle, "box": Box}


@dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Box(Shape):
    kind: Literal["box"] = "box"
    edges: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shape: Shape = field(default_factory=Circle)
    layers: tuple[Inner, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)


def test_the_key_kind_chooses_the_dataclass_and_its_name_alone_is_enough() -> None:
    assert build(Drawing, {"shape": {"kind": "box", "edges": [1]}}, "f").shape == Box(edges=(1.0,))
    assert build(Drawing, {"shape": "box"}, "f").shape == Box()
    assert build(Drawing, {"shape": {"radius": 2}}, "f").shape == Circle(radius=2.0)
    drawing = Drawing(shape=Box(edges=(3.0,)), weights={"a": 0.5})
    assert build(Drawing, to_plain(drawing), "f") == drawing


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"shape": "bxo"}, ["'shape.kind'", "circle, box", "bxo"]),
        ({"shape": {"kind": "box", "radius": 2}}, ["'shape.radius'", "edges"]),
        ({"layers": [{}, {"rate": "fast"}]}, ["'layers.1.rate'", "fast"]),
        ({"weights": {"a": "heavy"}}, ["'weights.a'", "heavy"]),
    ],
)
def test_a_wrong_value_below_a_kind_a_list_or_a_mapping_is_named_by_its_whole_key(
    values: dict[str, object], named: list[str]
) -> None:
    with raises_naming(UserError, "drawing.yaml", *named):
        build(Drawing, values, "drawing.yaml")


def test_an_override_reaches_into_a_list(tmp_path: Path) -> None:
    path = tmp_path / "drawing.yaml"
    path.write_text("layers: [{rate: 1}, {rate: 2}]\nweights: {a: 1}\n")
    drawing = load_config(Drawing, path, ["layers.1.rate=5", "weights.b=2"])
    assert [layer.rate for layer in drawing.layers] == [1, 5]
    assert drawing.weights == {"a": 1, "b": 2}
    with raises_naming(UserError, "layers.7.rate=5", "correct its key"):
        load_config(Drawing, path, ["layers.7.rate=5"])


@pytest.mark.parametrize(("key", "meant"), [("rate", "inner.rate"), ("length", "parts.0.length")])
def test_a_key_that_belongs_into_a_group_is_named_with_the_group(
    tmp_path: Path, key: str, meant: str
) -> None:
    with raises_naming(UserError, "config.yaml and the command line", f"'{meant}'"):
        read(tmp_path, "images: 5", f"{key}=2")
    with pytest.raises(UserError, match=r"config\.yaml: unknown key"):
        read(tmp_path, f"images: 5\n{key}: 2")
