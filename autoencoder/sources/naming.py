"""File names in sources: image suffixes, natural order, class labels from subfolders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit, urlunsplit

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def suffix(name: str) -> str:
    """The last suffix of a file name in lower case, with its dot; empty without one."""
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    return dot + extension.lower() if stem else ""


def is_image(name: str) -> bool:
    """Whether a name has the suffix of an image file."""
    return suffix(name) in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a path has a hidden part: a dot file or a __MACOSX folder."""
    parts = (part for part in name.split("/") if part not in (".", ".."))
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sort key with image2 before image10; different for different names."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def class_labels(names: Sequence[str]) -> list[int] | None:
    """One label per image of sibling class folders; None for any other arrangement.

    Every image must lie directly in one of at least two folders with one parent; the parent itself
    may lie in other folders, as it often does in archives. Classes count from 0 in the natural
    order of their names.
    """
    folders = [name.rpartition("/")[0] for name in names]
    classes = set(folders)
    parents = {folder.rpartition("/")[0] for folder in classes}
    if "" in classes or len(classes) < 2 or len(parents) > 1:
        return None
    numbers = {name: number for number, name in enumerate(sorted(classes, key=natural_key))}
    return [numbers[folder] for folder in folders]


def public_name(reference: str) -> str:
    """A reference without credentials: a URL loses user, password, query and fragment."""
    if "://" not in reference:
        return reference
    parts = urlsplit(reference)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def describe_files(names: Iterable[str]) -> str:
    """A clause with the most common suffixes of files, for messages about missing images."""
    found = Counter(suffix(name) or "no suffix" for name in names)
    if not found:
        return "it is empty"
    common = ", ".join(f"{count} with {ending}" for ending, count in found.most_common(3))
    return f"it holds files of other kinds: {common}"
