"""A Hugging Face dataset with an image column: from the hub, from its files, or from save_to_disk.

    hf:PLACE[:CONFIG][:SPLIT][?image=COLUMN&label=COLUMN&streaming=true]

PLACE is a name on the hub or a folder. One word after it is the split; with CONFIG the split may be
empty. By default the split is the only one or `train`, and the columns are the first of their kind.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from autoencoder.sources.decoding import read_image_file
from autoencoder.sources.parquet import ParquetSource
from autoencoder.sources.protocol import ImageSource, IndexedSource, UnreadableImage
from latentddm.engine.errors import UserError

PREFIX = "hf:"
_MARKERS = ("dataset_info.json", "dataset_dict.json")
_OPTIONS = ("image", "label", "streaming")
_log = logging.getLogger("latentddm")


@dataclass(frozen=True, kw_only=True)
class DatasetReference:
    """The parts of a reference; None: by default. streaming: read in place, without a copy."""

    place: str
    config: str | None = None
    split: str | None = None
    image: str | None = None
    label: str | None = None
    streaming: bool = False


def parse_reference(reference: str) -> DatasetReference:
    """The parts of PLACE[:CONFIG][:SPLIT][?OPTIONS]; UserError for an unknown option."""
    place, _, query = (reference, "", "") if Path(reference).is_dir() else reference.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(options.keys() - set(_OPTIONS)) or (
        ["nothing"] if query and not options else []
    )
    streaming = options.pop("streaming", "false")
    if unknown or streaming not in ("true", "false"):
        raise UserError(
            f"hf:{reference} has the option {unknown[0] if unknown else f'streaming={streaming}'} "
            "behind its question mark; give ?image=COLUMN, ?label=COLUMN or ?streaming=true, "
            "joined by &."
        )
    words: list[str] = []
    while len(words) < 2 and not Path(place).is_dir():
        rest, colon, word = place.rpartition(":")
        if not colon or "/" in word or "\\" in word:
            break
        place, words = rest, [word, *words]
    return DatasetReference(
        place=place,
        config=(words[0] or None) if len(words) == 2 else None,
        split=(words[-1] or None) if words else None,
        image=options.get("image"),
        label=options.get("label"),
        streaming=streaming == "true",
    )


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by save_to_disk."""
    return any((folder / marker).is_file() for marker in _MARKERS)


def open_dataset(reference: str, size: int | None) -> ImageSource:
    """The dataset of a reference with its prefix; `size` has no effect."""
    return _open(parse_reference(reference.removeprefix(PREFIX)), reference)


def open_saved(path: Path, name: str) -> ImageSource:
    """The dataset in a folder of save_to_disk."""
    return _open(DatasetReference(place=str(path)), name)


class HuggingFaceSource(IndexedSource):
    """The rows of one split in order; keys are the split and the number of the row."""

    def __init__(
        self, name: str, rows: Any, split: str, column: str, labels: Iterable[int | None] | None
    ) -> None:
        keys = [f"{split}/{row:08d}" for row in range(len(rows))]
        super().__init__(name, keys, None if labels is None else _known(labels))
        self._rows, self._column = rows, column

    def read(self, index: int) -> bytes:
        return image_bytes(self._rows[index][self._column], self.key(index))


def image_bytes(value: Any, key: str) -> bytes:
    """The file of a value of an image column: its bytes, or those at its path."""
    if value is None or (value["bytes"] is None and value["path"] is None):
        raise UnreadableImage(key, "the row has no image")
    if value["bytes"] is not None:
        return bytes(value["bytes"])
    return read_image_file(Path(value["path"]), key)


def _open(reference: DatasetReference, name: str) -> ImageSource:
    datasets = _import_datasets()
    if reference.streaming:
        return _open_streamed(datasets, reference, name)
    found = _load(datasets, reference)
    if isinstance(found, dict):
        split = _chosen_split(reference, list(found))
        found = found[split]
    elif reference.split is not None:
        raise UserError(f"{reference.place} is a single split; leave out :{reference.split}.")
    else:
        split = str(found.split or "row")
    column, label = _columns(datasets, found.features, reference)
    if not len(found):
        raise UserError(f"The dataset {reference.place} has no rows; give another split.")
    labels = None if label is None else found[label]
    try:
        rows = found.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # the errors of pyarrow
        raise UserError(
            f"The column {column} of the dataset {reference.place} does not hold images "
            f"({_reason(error)}); give hf:{reference.place}?image=COLUMN."
        ) from error
    return HuggingFaceSource(name, rows, split, column, labels)


def _open_streamed(datasets: Any, reference: DatasetReference, name: str) -> ImageSource:
    """The parquet files of a dataset, read where they are."""
    try:
        builder = datasets.load_dataset_builder(reference.place, reference.config)
        files = {split: list(found) for split, found in (builder.config.data_files or {}).items()}
    except Exception as error:
        raise _unopened(reference, error) from error
    if not files:
        raise UserError(f"The dataset {reference.place} has no files; leave out ?streaming=true.")
    split = _chosen_split(reference, list(files))
    other = next((file for file in files[split] if not file.endswith(".parquet")), None)
    if other is not None:
        raise UserError(
            f"The dataset {reference.place} holds {other.rpartition('/')[2]}, and ?streaming=true "
            "reads parquet files; leave it out, or give the URL of tar shards."
        )
    source = ParquetSource(name, files[split], split)
    features = builder.info.features or datasets.Features.from_arrow_schema(source.schema)
    source.choose(*_columns(datasets, features, reference))
    return source


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            "Reading a Hugging Face dataset needs the datasets package; run `pip install datasets`."
        ) from None
    return datasets


def _load(datasets: Any, reference: DatasetReference) -> Any:
    try:
        if is_saved_dataset(Path(reference.place)):
            return datasets.load_from_disk(reference.place)
        return datasets.load_dataset(reference.place, reference.config)
    except Exception as error:  # the hub client raises errors of several packages
        raise _unopened(reference, error) from error


def _unopened(reference: DatasetReference, error: Exception) -> UserError:
    return UserError(
        f"The Hugging Face dataset {reference.place} cannot be opened ({_reason(error)}); "
        "check the name and the network, or give hf:NAME:CONFIG:SPLIT or a local folder."
    )


def _chosen_split(reference: DatasetReference, splits: list[str]) -> str:
    split = reference.split
    if split is None:
        split = splits[0] if len(splits) == 1 else "train"
    if split in splits:
        return str(split)
    place = ":".join(part for part in (reference.place, reference.config) if part)
    raise UserError(
        f"The dataset {place} has no split {split}; give hf:{place}:SPLIT with one of "
        f"{', '.join(map(str, splits))}."
    )


def _columns(datasets: Any, features: Any, reference: DatasetReference) -> tuple[str, str | None]:
    """The columns of images and of labels, by name or by type."""
    place = reference.place
    for kind, column in (("image", reference.image), ("label", reference.label)):
        if column is not None and column not in features:
            raise UserError(
                f"The dataset {place} has no column {column}; give hf:{place}?{kind}=COLUMN with "
                f"one of {', '.join(features)}."
            )
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if reference.image is None and not images:
        raise UserError(
            f"The dataset {place} has no image column (its columns: {', '.join(features)}); give a "
            f"dataset of images, or hf:{place}?image=COLUMN for a column with files of images."
        )
    image = reference.image or images[0]
    label = reference.label or (labels[0] if labels else None)
    if label is not None and not _holds_labels(datasets, features[label]):
        raise UserError(
            f"The column {label} of the dataset {place} holds {_kind_of(features[label])}, not "
            f"whole numbers; give hf:{place}?label=COLUMN with a column of labels."
        )
    for kind, column, found in (("image", image, images), ("label", label, labels)):
        if len(found) > 1:
            _log.info(
                "%s has the %s columns %s; %s is read (hf:%s?%s=COLUMN for another)",
                *(place, kind, ", ".join(found), column, place, kind),
            )
    return image, label


def _holds_labels(datasets: Any, kind: Any) -> bool:
    """Whether the values of a column are classes, whole numbers, or true and false."""
    if isinstance(kind, datasets.ClassLabel):
        return True
    return isinstance(kind, datasets.Value) and kind.dtype.startswith(("int", "uint", "bool"))


def _kind_of(kind: Any) -> str:
    """The type of a column's values, for messages."""
    return str(getattr(kind, "dtype", None) or type(kind).__name__)


def _known(labels: Iterable[int | None]) -> list[int | None]:
    """Labels with None for missing ones, which datasets store as -1 or null."""
    return [None if label is None or label < 0 else int(label) for label in labels]


def _reason(error: Exception) -> str:
    """The first line of an error's text, with the names of the configs if one is missing."""
    first, *others = str(error).splitlines() or [type(error).__name__]
    return " ".join([first, *(line for line in others if "available configs" in line)])
