"""A Hugging Face dataset with an image column, from the hub or from a save_to_disk folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autoencoder.sources.protocol import IndexedSource, UnreadableImage
from latentddm.engine.errors import UserError

PREFIX = "hf:"
_MARKERS = ("dataset_info.json", "dataset_dict.json")


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by save_to_disk."""
    return any((folder / marker).is_file() for marker in _MARKERS)


def open_dataset(reference: str, size: int | None) -> HuggingFaceSource:
    """The dataset of `hf:NAME[:split]` or `hf:FOLDER[:split]`; `size` has no effect."""
    return HuggingFaceSource(reference.removeprefix(PREFIX), reference)


class HuggingFaceSource(IndexedSource):
    """The rows of a dataset in order, with labels from the first ClassLabel column.

    reference: `owner/name`, `owner/name:split`, or a save_to_disk folder with or without `:split`.
    The default is the only split, or else `train`.
    """

    def __init__(self, reference: str | Path, name: str) -> None:
        datasets = _import_datasets()
        reference = str(reference)
        dataset, split = _open(datasets, reference)
        features = dataset.features
        column = _first(features, datasets.Image)
        if column is None:
            raise UserError(
                f"The dataset {reference} has no image column (its columns: "
                f"{', '.join(features)}); give a dataset of images."
            )
        labels = _first(features, datasets.ClassLabel)
        self._column = column
        self._rows = dataset.select_columns([column]).cast_column(
            column, datasets.Image(decode=False)
        )
        keys = [f"{split}/{row:08d}" for row in range(len(dataset))]
        if not keys:
            raise UserError(f"The dataset {reference} has no rows; give another split.")
        super().__init__(name, keys, None if labels is None else _known(dataset[labels]))

    def read(self, index: int) -> bytes:
        value = self._rows[index][self._column]
        if value is None:
            raise UnreadableImage(self.key(index), "the row has no image")
        if value["bytes"] is not None:
            return bytes(value["bytes"])
        try:
            return Path(value["path"]).read_bytes()
        except OSError as error:
            raise UnreadableImage(self.key(index), f"cannot be read: {error.strerror}") from error


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            "Reading a Hugging Face dataset needs the datasets package; run `pip install datasets`."
        ) from None
    return datasets


def _open(datasets: Any, reference: str) -> tuple[Any, str]:
    place, split = _divide(reference)
    try:
        if Path(place).is_dir():
            found = datasets.load_from_disk(place)
        else:
            found = datasets.load_dataset(place)
    except Exception as error:  # the hub client raises errors of several packages
        raise UserError(
            f"The Hugging Face dataset {place} cannot be opened ({_first_line(error)}); check the "
            "name and the network, or give a local folder."
        ) from error
    if not isinstance(found, dict):
        if split is not None:
            raise UserError(f"{place} is a single split; leave out :{split}.")
        return found, str(found.split or "row")
    if split is None:
        split = next(iter(found)) if len(found) == 1 else "train"
    if split not in found:
        raise UserError(
            f"The dataset {place} has no split {split}; give hf:{place}:SPLIT with one of "
            f"{', '.join(found)}."
        )
    return found[split], split


def _divide(reference: str) -> tuple[str, str | None]:
    if Path(reference).is_dir():
        return reference, None
    place, colon, split = reference.rpartition(":")
    return (place, split) if colon and "/" not in split else (reference, None)


def _known(labels: Iterable[int | None]) -> list[int | None]:
    """Labels with None for missing ones, which datasets store as -1 or null."""
    return [None if label is None or label < 0 else label for label in labels]


def _first(features: Any, kind: type) -> str | None:
    return next((name for name, feature in features.items() if isinstance(feature, kind)), None)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
