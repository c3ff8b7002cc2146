"""Rows of parquet files that stay where they are, on a disk or on the hub.

Parquet files list their row groups, so any row is found without the rows before it: the number of
images is known, and an interrupted encoding goes on where it was. One row group at a time is read,
hence rows in order are read once and rows at random many times over.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import fsspec
import numpy as np

from autoencoder.sources.decoding import decode_image
from autoencoder.sources.protocol import PerProcess, SourceImage, UnreadableImage
from latentddm.engine.errors import JobError, UserError, one_line

_FOOTERS_AT_ONCE = 8


class ParquetSource:
    """The images of an image column in parquet files, in the order of the files and their rows.

    sequential: an encoding keeps this order, since a shuffle reads a row group for each image.
    """

    sequential = True

    def __init__(self, name: str, files: Sequence[str], split: str) -> None:
        self.name = name
        self._files, self._split = list(files), split
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            footers = list(pool.map(_footer, self._files))
        self.schema = footers[0][0]
        places = [
            (file, group, rows)
            for file, (_, groups) in enumerate(footers)
            for group, rows in enumerate(groups)
        ]
        self._file, self._group, rows = np.array(places, dtype=np.int64).reshape(-1, 3).T
        self._count = int(rows.sum())
        self._first = np.cumsum(rows) - rows
        if not len(self):
            raise UserError(f"The dataset {name} has no rows; give another split.")
        self.choose("image", None)

    def choose(self, image: str, label: str | None) -> None:
        """Set the columns of images and of labels."""
        self._image, self._label = image, label
        columns = [column for column in (image, label) if column is not None]
        self._open_group = PerProcess(partial(_OpenGroup, self._files, columns))

    def __len__(self) -> int:
        return self._count

    def key(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return f"{self._split}/{index:08d}"

    def label(self, index: int) -> int | None:
        return self._label_in(self._row(index))

    def load(self, index: int) -> SourceImage:
        key, row = self.key(index), self._row(index)
        value = row[self._image]
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise UnreadableImage(key, "the row has no image")
        if not isinstance(data, bytes):
            raise UserError(
                f"The column {self._image} of {self.name} does not hold images; give ?image=COLUMN."
            )
        return SourceImage(key, decode_image(data, key), self._label_in(row))

    def _label_in(self, row: dict[str, Any]) -> int | None:
        label = None if self._label is None else row[self._label]
        return int(label) if label is not None and label >= 0 else None

    def _row(self, index: int) -> dict[str, Any]:
        place = int(np.searchsorted(self._first, index, side="right")) - 1
        rows = self._open_group.get().read(int(self._file[place]), int(self._group[place]))
        return rows.slice(index - int(self._first[place]), 1).to_pylist()[0]


class _OpenGroup:
    """The row group that was read last."""

    def __init__(self, files: Sequence[str], columns: list[str]) -> None:
        self._files, self._columns = files, columns
        self._place: tuple[int, int] | None = None
        self._rows: Any = None

    def read(self, file: int, group: int) -> Any:
        """The columns of a row group, an arrow table."""
        if self._place != (file, group):
            self._rows = None  # at most one in memory
            with _reading(self._files[file]), fsspec.open(self._files[file], "rb") as data:
                # without threads, which a fork would lose
                self._rows = _parquet(data).read_row_group(
                    group, columns=self._columns, use_threads=False
                )
            self._place = file, group
        return self._rows


def _footer(file: str) -> tuple[Any, list[int]]:
    """The arrow schema of a file, and the rows of each of its groups."""
    with _reading(file), fsspec.open(file, "rb") as data:
        parquet = _parquet(data)
        groups = range(parquet.num_row_groups)
        return parquet.schema_arrow, [parquet.metadata.row_group(g).num_rows for g in groups]


def _parquet(data: Any) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(data, pre_buffer=False)


class _reading:
    """A context in which the errors of file systems and of pyarrow become a JobError."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, MemoryError):
            raise JobError(
                f"{self.file} cannot be read ({type(error).__name__}: {one_line(error)}); check "
                "the network, or download it again."
            ) from error
