"""A Hugging Face dataset with an image column, from the hub or from a save_to_disk folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autoencoder.sources.protocol import IndexedSource, UnreadableImage
from latentddm.engine.errors import UserError

PREFIX = "hf:"
_MARKS = ("dataset_info.json", "dataset_dict.json")


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by save_to_disk."""
    return any((folder / mark).is_file() for mark in _MARKS)


class HuggingFaceSource(IndexedSource):
    """The rows of a dataset in their order; the first ClassLabel column gives labels.

    A reference is `owner/name`, `owner/name:split` or a save_to_disk folder with or without
    `:split`. Without a split the only one is meant, or else `train`.
    """

    def __init__(self, reference: str, name: str) -> None:
        datasets = _import_datasets()
        dataset, split = _open(datasets, reference)
        features = dataset.features
        column = _first(features, datasets.Image)
        if column is None:
            raise UserError(
                f"The dataset {reference} has no image column (its columns: "
                f"{', '.join(features)}); choose a dataset of images."
            )
        labels = _first(features, datasets.ClassLabel)
        self._column = column
        self._rows = dataset.select_columns([column]).cast_column(
            column, datasets.Image(decode=False)
        )
        keys = [f"{split}/{row:08d}" for row in range(len(dataset))]
        if not keys:
            raise UserError(f"The dataset {reference} has no rows; choose another split.")
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
    except Exception as error:  # the hub client raises a family of errors of several packages
        raise UserError(
            f"The Hugging Face dataset {place} cannot be opened ({_first_line(error)}); check the "
            "name and the network, or give a local folder."
        ) from error
    if not isinstance(found, dict):
        if split is not None:
            raise UserError(f"{place} holds one split only; leave out :{split}.")
        return found, str(found.split or "row")
    if split is None:
        split = next(iter(found)) if len(found) == 1 else "train"
    if split not in found:
        raise UserError(
            f"The dataset {place} has no split {split}; write hf:{place}:SPLIT with one of "
            f"{', '.join(found)}."
        )
    return found[split], split


def _divide(reference: str) -> tuple[str, str | None]:
    if Path(reference).is_dir():
        return reference, None
    place, colon, split = reference.rpartition(":")
    return (place, split) if colon and "/" not in split else (reference, None)


def _known(labels: Iterable[int | None]) -> list[int | None]:
    """Labels with None for those that are not given; datasets write -1 there, or null."""
    return [None if label is None or label < 0 else label for label in labels]


def _first(features: Any, kind: type) -> str | None:
    return next((name for name, feature in features.items() if isinstance(feature, kind)), None)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
