"""Pictures embedded in the page."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

from latentddm.engine.errors import JobError
from latentddm.report.formatting import text


@dataclass(frozen=True)
class Album:
    """The pictures of one report; their names are relative to `folder`."""

    folder: Path

    def show(self, name: str, description: str) -> str:
        """An <img> that holds the PNG `name` itself; JobError if it cannot be read."""
        path = self.folder / name
        try:
            data = b64encode(path.read_bytes()).decode()
        except OSError as error:
            raise JobError(
                f"The picture {path} of the report cannot be read ({error.strerror or error}); "
                f"run the demo again."
            ) from error
        return f'<img alt="{text(description)}" src="data:image/png;base64,{data}">'
