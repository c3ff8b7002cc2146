"""The protocol of image sources, and the base class of most of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from PIL import Image

from autoencoder.sources.decoding import UnreadableImage, decode_image
from autoencoder.sources.formats import LeftOut

__all__ = [
    "ImageSource",
    "IndexedSource",
    "LeftOut",
    "PerProcess",
    "SourceImage",
    "UnreadableImage",
    "is_sequential",
    "left_out",
]

Handle = TypeVar("Handle")


@dataclass(frozen=True)
class SourceImage:
    """One image: its key in the source, its 8-bit RGB pixels, its label and attributes."""

    key: str
    image: Image.Image
    label: int | None
    attributes: dict[str, Any] | None = None


class ImageSource(Protocol):
    """Random access to images, in an order that depends on the content alone.

    A source supports pickling and use after a fork. Indices run from 0 to len(source) - 1. A source
    of files may have an attribute `left_out`, a tuple of LeftOut; one with `sequential` true is
    read in order by an encoding, without a shuffle.
    """

    @property
    def name(self) -> str:
        """The name of the source in manifests and messages, without credentials."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The unique name of an image within the source."""

    def label(self, index: int) -> int | None:
        """The class of an image; None without one."""

    def load(self, index: int) -> SourceImage:
        """Read one image; UnreadableImage for an unusable one, JobError for a damaged source."""


def left_out(source: ImageSource) -> tuple[LeftOut, ...]:
    """The files of a source that look like pictures and are not read."""
    return getattr(source, "left_out", ())


def is_sequential(source: ImageSource) -> bool:
    """Whether a source is much faster in order than at random."""
    return getattr(source, "sequential", False)


class IndexedSource(ABC):
    """A source of image files whose keys and labels are listed when it is opened."""

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        labels: Sequence[int | None] | None = None,
        left_out: tuple[LeftOut, ...] = (),
    ) -> None:
        self.name = name
        self.left_out = left_out
        self._keys = keys
        self._labels = labels

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def label(self, index: int) -> int | None:
        return None if self._labels is None else self._labels[index]

    def load(self, index: int) -> SourceImage:
        key = self.key(index)
        return SourceImage(key, decode_image(self.read(index), key), self.label(index))

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The stored bytes of an image file; UnreadableImage if they cannot be read."""


class PerProcess(Generic[Handle]):
    """A handle opened once per process, on first use; not part of a pickle."""

    def __init__(self, opener: Callable[[], Handle]) -> None:
        self._opener = opener
        self._handle: Handle | None = None
        self._owner: int | None = None

    def get(self) -> Handle:
        if self._handle is None or self._owner != os.getpid():
            self._handle, self._owner = self._opener(), os.getpid()
        return self._handle

    def __reduce__(self) -> tuple[Any, ...]:
        return PerProcess, (self._opener,)
