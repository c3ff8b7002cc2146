"""Small tensors from the device to the host, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


class LateReader:
    """Asynchronous copies of small tensors from the device to the host.

    `read` returns the values of this call on a CPU, those of the call before it on CUDA.
    """

    def __init__(self) -> None:
        self._waiting: tuple[Tensor, torch.cuda.Event, int] | None = None

    def read(self, values: Tensor, images: int) -> tuple[Tensor, int] | None:
        """The values that have arrived and the `images` of their call; None if there are none."""
        if values.device.type != "cuda":
            return values.cpu(), images
        copy, event = values.to("cpu", non_blocking=True), torch.cuda.Event()
        event.record()
        arrived, self._waiting = self._waiting, (copy, event, images)
        if arrived is None:
            return None
        arrived[1].synchronize()  # no wait: a whole step has been queued since
        return arrived[0], arrived[2]
