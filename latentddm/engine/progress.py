"""Progress bar with images per second and the time left."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm


class Progress:
    """A count of images: a live bar on a terminal, a line every 15 s in a log file."""

    def __init__(
        self,
        total: int,
        description: str,
        *,
        done: int = 0,
        unit: str = "images",
        show: bool = True,
    ) -> None:
        live = sys.stderr.isatty()
        self._bar: tqdm = tqdm(
            total=total,
            initial=done,
            desc=description,
            unit=f" {unit}",
            disable=not show,
            mininterval=0.5 if live else 15.0,
            miniters=1,
            ascii=not live,
            dynamic_ncols=live,
        )

    def update(self, count: int, **shown: float) -> None:
        """Advance by `count` images; `shown`: values printed at the end of the bar."""
        if shown:
            self.show(shown)
        self._bar.update(count)

    def show(self, values: Mapping[str, float]) -> None:
        """Print values at the end of the bar."""
        self._bar.set_postfix(
            {name: f"{value:.4g}" for name, value in values.items()}, refresh=False
        )

    def close(self) -> None:
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
