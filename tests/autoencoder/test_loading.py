"""Image decoding processes and the signals to their process group."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from autoencoder.images import Preprocessing, open_source
from autoencoder.loading import LoadedPixels, iterate_pixels


@pytest.mark.skipif(os.name == "nt", reason="workers are forked on Linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_workers_survive_a_signal_to_the_whole_process_group(number: int) -> None:
    """Otherwise a scheduler's SIGTERM ends a training before its checkpoint is written."""
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
