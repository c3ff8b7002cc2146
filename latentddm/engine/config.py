"""Typed configs: dataclasses with defaults, and the differences in YAML and key=value overrides.

OmegaConf reads, merges and interpolates; `build` checks every key and value against the dataclass:
the error for a typing mistake names the place, the key and the nearest known key.

A dataclass with a static method `kinds() -> Mapping[str, type]` is the base of a family: the key
`kind` of the values chooses one dataclass of it by name, the first by default. A name alone,
`network: dit`, is short for `network: {kind: dit}`. In a dict of a family, `dict[str, Family]` or
`dict[str, float | Family]`, the name of an entry is its kind if it gives no other.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from omegaconf import OmegaConf

from latentddm.engine.errors import UserError, one_line

T = TypeVar("T")
MISSING = "???"  # OmegaConf's mark of a required value
KIND_KEY = "kind"  # in a run's config.yaml, beside the config: the kind of run


def load_config(kind: type[T], path: Path | str | None, overrides: Sequence[str] = ()) -> T:
    """Read `path` (YAML) into the dataclass `kind`, with `key=value` overrides.

    A key is a path with dots; a number is an index into a list: `phases.0.images=1000`. UserError
    for a file that cannot be read, an unknown key or a wrong value.
    """
    try:
        base = OmegaConf.load(path) if path is not None else OmegaConf.create({})
        if not OmegaConf.is_dict(base):
            raise UserError(f"The config {path} is not a mapping; write `key: value` lines.")
        for override in overrides:
            _override(base, override)
        values = OmegaConf.to_container(base, resolve=True)
    except FileNotFoundError:
        raise UserError(f"The config {path} does not exist; check the path.") from None
    except UserError:
        raise
    except Exception as error:  # YAML's constructors raise nearly every built-in error
        source = f"The config {path}" if path is not None else "The command line"
        raise UserError(f"{source} cannot be read ({one_line(error)}); correct it.") from error
    assert isinstance(values, dict)
    values.pop(KIND_KEY, None)  # so that a run's own config.yaml can be given
    places = [
        *([str(path)] if path is not None else []),
        *(["the command line"] if overrides else []),
    ]
    return build(kind, values, " and ".join(places) or "the defaults")


def _override(config: Any, override: str) -> None:
    """Set one `key=value` in an OmegaConf config; a group of keys is merged, a list replaced."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"{override!r} is not an override; write key=value.")
    value = OmegaConf.from_dotlist([f"value={text}"]).value
    try:
        OmegaConf.update(config, key, value, merge=True, force_add=True)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"The override {override!r} does not fit the config ({one_line(error)}); correct its "
            "key."
        ) from None


def build(kind: type[T], values: Mapping[Any, Any], source: str, prefix: str = "") -> T:
    """An instance of the dataclass `kind` from a mapping; UserError names the wrong key.

    source: the file, and prefix: the dotted path of the mapping in it, for error messages.
    """
    if "kinds" in vars(kind):
        kind, values = _choose_kind(kind, values, source, prefix)
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    converted = _convert_all({name: hints[name] for name in fields}, values, source, prefix)
    for name, entry in fields.items():
        required = (
            entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        )
        missing = converted.get(name) == MISSING and entry.default != MISSING
        if missing or (required and name not in converted):
            raise UserError(f"{source}: the key '{prefix}{name}' is missing; give it a value.")
    try:
        return kind(**converted)
    except ValueError as error:  # of __post_init__
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the config'}: {error}.") from None


def _choose_kind(
    base: Any, values: Mapping[Any, Any], source: str, prefix: str
) -> tuple[type[T], Mapping[Any, Any]]:
    """The dataclass chosen by the key `kind`, and the values with that key."""
    kinds = base.kinds()
    name = values.get("kind", next(iter(kinds)))
    if not isinstance(name, str) or name not in kinds:
        raise UserError(
            f"{source}: '{prefix}kind' must be one of {', '.join(kinds)}, not {name!r}."
        )
    return kinds[name], {**values, "kind": name}


def require_values(config: Any, *names: str) -> None:
    """UserError if one of the dotted keys `names` of a config has no value."""
    for name in names:
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        if value == MISSING:
            raise UserError(f"The key '{name}' is missing; add {name}=... to the command.")


def to_yaml(config: Any) -> str:
    """The whole config as YAML, defaults included."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as dicts, lists and strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def differences(first: Any, second: Any, prefix: str = "") -> list[str]:
    """The dotted keys at which two plain configs differ."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = sorted({*first, *second}, key=str)
        return [
            found
            for key in keys
            for found in differences(first.get(key), second.get(key), f"{prefix}{key}.")
        ]
    if _are_groups(first) and _are_groups(second):
        return differences(dict(enumerate(first)), dict(enumerate(second)), prefix)
    return [] if first == second else [prefix.rstrip(".")]


def _are_groups(value: Any) -> bool:
    """Whether a value is a list of mappings, such as `phases`."""
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def _convert_all(
    hints: Mapping[str, Any], values: Mapping[Any, Any], source: str, prefix: str
) -> dict[str, Any]:
    converted = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{source}: unknown key '{prefix}{key}'{_nearest(key, hints)}.")
        converted[key] = _convert(hints[key], value, source, f"{prefix}{key}")
    return converted


def _nearest(key: Any, known: Mapping[str, Any]) -> str:
    inside = [name for name, group in _groups(known) if str(key) in typing.get_type_hints(group)]
    if inside:
        return f" (did you mean '{inside[0]}.{key}'?)"
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else f"; known keys: {', '.join(known)}"


def _groups(hints: Mapping[str, Any]) -> Iterator[tuple[str, type]]:
    """The groups of keys among `hints` by name, the first of a list as `name.0`."""
    for name, hint in hints.items():
        (item, *_) = typing.get_args(hint) or (None,)
        if dataclasses.is_dataclass(hint):
            yield name, hint  # type: ignore[misc]
        elif typing.get_origin(hint) is tuple and dataclasses.is_dataclass(item):
            yield f"{name}.0", item  # type: ignore[misc]


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    """`value` as the annotated type `hint`, or UserError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or value == MISSING:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [argument for argument in arguments if argument is not type(None)]
        groups = [argument for argument in inner if dataclasses.is_dataclass(argument)]
        is_group = isinstance(value, Mapping) and bool(groups)
        return _convert((groups if is_group else inner)[0], value, source, key)
    if origin is Literal and value in arguments:
        return value
    if origin is Literal and value is False and "no" in arguments:  # YAML reads `no` as false
        return "no"
    if isinstance(value, str) and "kinds" in vars(hint if isinstance(hint, type) else object):
        value = {"kind": value}
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, source, f"{key}.")  # type: ignore[type-var, arg-type]
    if origin is dict and isinstance(value, Mapping):
        return {
            _convert(arguments[0], name, source, key): _convert(
                arguments[1], _with_kind(arguments[1], name, item), source, f"{key}.{name}"
            )
            for name, item in value.items()
        }
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(
            _convert(arguments[0], item, source, f"{key}.{index}")
            for index, item in enumerate(value)
        )
    if hint in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number beyond the largest float
            if hint is float or isinstance(value, int) or value.is_integer():
                return hint(value)
    elif hint in (str, bool) and isinstance(value, hint):
        return value
    raise UserError(f"{source}: '{key}' must be {_describe(hint)}, not {value!r}.")


def _with_kind(hint: Any, name: Any, value: Any) -> Any:
    """An entry of a dict; of a family's dict, its name is the default of its `kind`."""
    types_ = [each for each in (hint, *typing.get_args(hint)) if isinstance(each, type)]
    of_family = any("kinds" in vars(each) for each in types_)
    return {"kind": name, **value} if of_family and isinstance(value, Mapping) else value


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin is tuple:
        return f"a list of {_describe(arguments[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, "a group of keys")
