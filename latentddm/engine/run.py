"""The folder of a run: config.yaml, metrics.jsonl, samples/, checkpoints/, ema/, events/."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from latentddm.engine.atomic_io import (
    TEMPORARY_SUFFIX,
    make_folder,
    read_json,
    remove_folder,
    remove_leftovers,
    write_json,
    write_text,
)
from latentddm.engine.config import KIND_KEY, differences, to_plain, to_yaml
from latentddm.engine.errors import UserError, one_line

BEFORE = "trained_before.json"  # in a run that began with the weights of another


@dataclass(frozen=True)
class Effort:
    """Images and seconds of a training, by the logged speeds: time between commands is not counted.

    core_seconds: on a CPU those of its cores, in which other work beside the training does not
    count; elsewhere the clock's.
    """

    images: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.images + other.images,
            self.seconds + other.seconds,
            self.core_seconds + other.core_seconds,
        )


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
        # This command's config, set by `begin` on the main process; None elsewhere.
        self._own_config: Mapping[str, Any] | None = None

    @classmethod
    def create(
        cls, path: Path, kind: str, config: Any, may_change: Collection[str] = ()
    ) -> RunFolder:
        """Create the folder, or reopen it; UserError if it has another run's or other contents.

        kind: of the trained model; may_change: dotted config keys that may differ on a resumed run.
        """
        run = cls(path, may_change)
        run.begin(kind_and_config(kind, config))
        return run

    def begin(self, config: Mapping[str, Any]) -> None:
        """Create the folder with this config, or reopen it; UserError as of `create`.

        config: plain values with the run's kind, of `kind_and_config`.
        """
        self._own_config = config
        exists = self.config_path.exists()
        if exists:
            self._require_folders_config(config)
        else:
            require_new_folder(self.path, "a run")
        make_folder(self.path)
        for folder in (self.path, self.samples):
            remove_leftovers(folder)
        if not exists:
            write_text(self.config_path, to_yaml(config))

    def write_own_config(self) -> None:
        """Bring config.yaml up to date with this command's config, in the keys that may change.

        The caller holds the run's lock: else a command that is then refused would change the config
        of a training in progress. UserError if another key differs.
        """
        if self._own_config is not None:
            self._require_folders_config(self._own_config)
            write_text(self.config_path, to_yaml(self._own_config))

    def _require_folders_config(self, config: Mapping[str, Any]) -> None:
        """UserError unless the folder's config is this one, but for what may change."""
        changed = _changed(self.read_config(), config, self.may_change)
        if changed:
            raise UserError(
                f"{self.path} holds a run of another config (differs in: {changed}); use that "
                "config or another output folder."
            )

    def may_be_replaced_by(self, config: Mapping[str, Any]) -> bool:
        """Whether a plain config differs from that of a run of its kind that was never trained.

        Such a run has no logged figure, no preview, no checkpoint and no average: it was refused,
        or ended, before any of them.
        """
        if not self.config_path.is_file():
            return False
        saved = self.read_config()
        return (
            saved.get(KIND_KEY) == config[KIND_KEY]
            and bool(_changed(saved, config, self.may_change))
            and not (self.metrics_path.exists() and self.metrics_path.stat().st_size)
            and all(map(_is_unused, (self.samples, self.checkpoints, self.averages)))
        )

    def replace_config(self, config: Mapping[str, Any]) -> None:
        """Write another config into a run that was never trained.

        Removed are the JSON files that other packages keep there, latents.json and sampling.json
        among them, and the trackers' files.
        """
        for path in (*self.path.glob("*.json"), self.path / "tracker_id"):
            path.unlink(missing_ok=True)
        events = self.path / "events"
        if events.is_dir():
            remove_folder(events)
        write_text(self.config_path, to_yaml(config))

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

    def effort(self, images: int) -> Effort:
        """Images and seconds up to `images` seen, those of the run it began with included."""
        seconds, core_seconds, before = 0.0, 0.0, 0.0
        for line in self.read_metrics():
            if line["images"] <= images:
                seen, speed = line["images"] - before, line["images_per_second"]
                seconds += seen / speed
                core_seconds += seen / line.get("images_per_core_second", speed)
                before = line["images"]
        return self.effort_before() + Effort(images, seconds, core_seconds)

    def effort_before(self) -> Effort:
        """What the run took whose weights this one began with; nothing where none is kept."""
        path = self.path / BEFORE
        return Effort(**read_json(path)) if path.is_file() else Effort()

    def keep_effort_before(self, effort: Effort) -> None:
        """Keep what was trained before this run began, which later moves of that run cannot lose.

        effort: of the run whose weights this one begins with.
        """
        write_json(self.path / BEFORE, asdict(effort))

    def rewind_metrics(self, images: int) -> None:
        """Remove the lines after `images` from metrics.jsonl: a resumed run logs them again."""
        if not self.metrics_path.exists():
            return
        kept = [line for line in self.read_metrics() if line["images"] <= images]
        write_text(self.metrics_path, "".join(json.dumps(line) + "\n" for line in kept))


def kind_and_config(kind: str, config: Any) -> dict[str, Any]:
    """The content of a run's config.yaml: the kind of run, and its config in plain values."""
    return {KIND_KEY: kind, **to_plain(config)}


def require_new_folder(path: Path, purpose: str) -> None:
    """UserError unless `path` is missing or a folder with nothing but leftovers of a kill."""
    if not _is_unused(path):
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
    """Whether there is nothing at a path, or a folder with nothing but leftovers of a kill."""
    if not folder.is_dir():
        return not folder.exists()
    return all(path.name.endswith(TEMPORARY_SUFFIX) for path in folder.iterdir())


def _changed(saved: Mapping[str, Any], given: Mapping[str, Any], may: Collection[str]) -> str:
    """The keys that differ and must not; `output` may, as the folder may have been moved."""
    return ", ".join(key for key in differences(saved, given) if key not in (*may, "output"))
