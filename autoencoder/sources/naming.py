r"""File names in sources: keys, suffixes, natural order, class labels from subfolders.

A key is the name of a file as text that every program can store. File systems and tars hold names
as bytes, and those of other times are often not UTF-8; Python reads such a byte as a surrogate,
which no UTF-8 file can hold. In a key,

    a byte that is not UTF-8     is  \xHH, its value in two lower-case hexadecimal digits
    any other lone surrogate     is  \uHHHH (names of Windows)
    a backslash that begins one of these in the name itself  is  \x5c

and all else is as it is. So `it\x92s.jpg` is the key of the bytes `it 92 s.jpg`, and
`it\x5cx92s.jpg` that of a file which is called `it\x92s.jpg`. `key_of` and `name_of` are inverse.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit, urlunsplit

_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4})")
_ESCAPED = re.compile(_ESCAPE.pattern + "|[\ud800-\udfff]")


def key_of(name: str) -> str:
    """The key of a file name; different for different names, and free of lone surrogates."""
    return _ESCAPED.sub(_escape, name)


def name_of(key: str) -> str:
    """The file name with a given key, the inverse of `key_of`."""
    return _ESCAPE.sub(_unescape, key)


def _escape(found: re.Match[str]) -> str:
    text = found.group()
    if text.startswith("\\"):
        return "\\x5c" + text[1:]
    code = ord(text)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _unescape(found: re.Match[str]) -> str:
    text = found.group()
    code = int(text[2:], 16)
    return chr(0xDC00 + code) if text[1] == "x" and code >= 0x80 else chr(code)


def suffix(name: str) -> str:
    """The last suffix of a file name in lower case, with its dot; empty without one."""
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    return dot + extension.lower() if stem else ""


def is_hidden(name: str) -> bool:
    """Whether a path has a hidden part: a dot file or a __MACOSX folder."""
    parts = (part for part in name.split("/") if part not in (".", ".."))
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def natural_key(name: str) -> tuple[list[tuple[int, str] | str], str]:
    """Sort key with image2 before image10; different for different names.

    A number is its length and its digits, without zeros in front: Python's int refuses long ones.
    """
    parts = re.split(r"([0-9]+)", name)
    return [_number(part) if place % 2 else part for place, part in enumerate(parts)], name


def _number(digits: str) -> tuple[int, str]:
    digits = digits.lstrip("0")
    return len(digits), digits


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
