"""The folder of a run: config.yaml, metrics.jsonl, samples/, checkpoints/, ema/, events/."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from latentddm.engine.atomic_io import (
    TEMPORARY_SUFFIX,
    make_folder,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
)
from latentddm.engine.config import KIND_KEY, differences, to_plain, to_yaml
from latentddm.engine.errors import UserError, one_line


class RunFolder:
    """The folder of one training run, created once and resumed with the same config."""

    def __init__(self, path: Path, may_change: Collection[str] = ()) -> None:
        """may_change: dotted config keys that may differ on a resumed run."""
        self.path, self.may_change = Path(path), may_change
        self.config_path = self.path / "config.yaml"
        self.metrics_path = self.path / "metrics.jsonl"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.averages = self.path / "ema"  # snapshots of the moving averages

    @classmethod
    def create(
        cls, path: Path, kind: str, config: Any, may_change: Collection[str] = ()
    ) -> RunFolder:
        """Create the folder, or reopen it; UserError if it has another run's or other contents.

        kind: of the trained model; may_change: dotted config keys that may differ on a resumed run.
        """
        run = cls(path, may_change)
        plain = {KIND_KEY: kind, **to_plain(config)}
        if run.config_path.exists():
            changed = _changed(run.read_config(), plain, may_change)
            if changed:
                raise UserError(
                    f"{run.path} holds a run of another config (differs in: {changed}); use that "
                    "config or another output folder."
                )
        else:
            require_new_folder(run.path, "a run")
        make_folder(run.path)
        for folder in (run.path, run.samples):
            remove_leftovers(folder)
        write_text(run.config_path, to_yaml(plain))
        return run

    def make_folders(self) -> None:
        """Make the folders of a training within the run's."""
        for folder in (self.samples, self.checkpoints, self.averages):
            make_folder(folder)

    @classmethod
    def open(cls, path: Path | str, kind: str) -> RunFolder:
        """An existing run; UserError if there is none, or one of another kind."""
        run = cls(Path(path))
        if not run.config_path.is_file():
            raise UserError(f"{path} is not a run folder: it has no config.yaml; check the path.")
        found = run.read_config().get(KIND_KEY)
        if found != kind:
            raise UserError(f"{path} is a run of kind '{found}', not '{kind}'; check the path.")
        return run

    def read_config(self) -> dict[str, Any]:
        """The resolved config, with the run's kind."""
        try:
            values = OmegaConf.to_container(OmegaConf.load(self.config_path))
        except Exception as error:  # YAML's constructors raise nearly every built-in error
            raise UserError(
                f"{self.config_path} cannot be read ({one_line(error)}); restore it."
            ) from error
        if not isinstance(values, dict):
            raise UserError(f"{self.config_path} is not a mapping; restore it.")
        return {str(key): value for key, value in values.items()}

    def require_same_config(self, saved: Mapping[str, Any], source: str) -> None:
        """UserError unless a checkpoint's config is this run's; names the keys that differ."""
        changed = _changed(saved, self.read_config(), self.may_change)
        if changed:
            raise UserError(
                f"{source} is of a run of another config (differs in: {changed}); remove it, or "
                "use the config of its training."
            )

    def log_metrics(self, images: int, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        with open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"images": images, **metrics}) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl; a last line that a kill has cut short is left out."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def training_seconds(self, images: float = math.inf) -> float:
        """Seconds of training until `images` seen, by the logged speeds; stops do not count."""
        seconds, before = 0.0, 0.0
        for line in self.read_metrics():
            if line["images"] <= images:
                seconds += (line["images"] - before) / line["images_per_second"]
                before = line["images"]
        return seconds

    def rewind_metrics(self, images: int) -> None:
        """Remove the lines after `images` from metrics.jsonl: a resumed run logs them again."""
        if not self.metrics_path.exists():
            return
        kept = [line for line in self.read_metrics() if line["images"] <= images]
        write_text(self.metrics_path, "".join(json.dumps(line) + "\n" for line in kept))


def require_new_folder(path: Path, purpose: str) -> None:
    """UserError unless `path` is missing or a folder with nothing but leftovers of a kill."""
    if path.exists() and (not path.is_dir() or not _is_unused(path)):
        raise UserError(
            f"{path} already holds something else; choose another output folder for {purpose}."
        )


def claim_folder(folder: Path, name: str, settings: Mapping[str, Any], purpose: str) -> None:
    """Write `settings` to folder/name in a new folder, or find the same ones: go on in there.

    UserError if the folder has other settings or holds something else. purpose: of the folder.
    """
    path = folder / name
    if not path.is_file():
        require_new_folder(folder, purpose)
        make_folder(folder)
        write_json(path, settings)
    elif changed := differences(read_json(path), settings):
        raise UserError(
            f"{folder} already holds other {purpose} (differs in: {', '.join(changed)}); choose "
            "another output folder."
        )
    remove_leftovers(folder)


def _is_unused(folder: Path) -> bool:
    return all(path.name.endswith(TEMPORARY_SUFFIX) for path in folder.iterdir())


def _changed(saved: Mapping[str, Any], given: Mapping[str, Any], may: Collection[str]) -> str:
    """The keys that differ and must not; `output` may, as the folder may have been moved."""
    return ", ".join(key for key in differences(saved, given) if key not in (*may, "output"))
