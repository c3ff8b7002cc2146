"""Worker processes that read images: they outlive the signals that their group is sent."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from autoencoder.images import Preprocessing, open_source
from autoencoder.loading import LoadedPixels, iterate_pixels


@pytest.mark.skipif(os.name == "nt", reason="workers are forked on Linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_leaves_the_workers_to_their_parent(number: int) -> None:
    """Else a scheduler's SIGTERM ends a training with a traceback before it could save."""
    source = open_source("portraits:400", size=32)
    before = set(psutil.Process().children())
    items = iterate_pixels(source, range(400), Preprocessing(size=32), 2)
    first = next(items)
    workers = set(psutil.Process().children()) - before
    assert len(workers) == 2
    for worker in workers:
        worker.send_signal(number)
    rest = list(items)
    assert isinstance(first, LoadedPixels)
    assert [item.index for item in rest if isinstance(item, LoadedPixels)] == list(range(1, 400))
