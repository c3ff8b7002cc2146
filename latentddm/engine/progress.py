"""A progress bar with images per second and the time left; quiet where no one watches."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Counts images. On a terminal a live bar; in a log file a line now and then."""

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
        """Count `count` more images; `shown` are figures to print at the bar's end."""
        if shown:
            self.show(shown)
        self._bar.update(count)

    def show(self, figures: Mapping[str, float]) -> None:
        """Print figures at the bar's end."""
        self._bar.set_postfix(
            {name: f"{value:.4g}" for name, value in figures.items()}, refresh=False
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
