"""Checks of error messages: one line that names the key or the file, and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def assert_names(message: str, *named: str) -> None:
    """The message is one line and contains each of `named`."""
    missing = [part for part in named if part not in message]
    assert not missing, f"{missing} not named in: {message}"
    assert "\n" not in message.strip(), message
    assert "Traceback" not in message


@contextmanager
def raises_naming(kind: type[Exception], *named: str) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """The block raises `kind`, and its message is one line that contains each of `named`."""
    with pytest.raises(kind) as caught:
        yield caught
    assert_names(str(caught.value), *named)
