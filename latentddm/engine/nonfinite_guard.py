"""No step on numbers that are not finite, on any process, and without waiting for the device.

The flags of all processes are exchanged on the device, where they also hold the optimizer back:
a fused optimizer skips its update if `found_inf` is set, as it does for a gradient scaler. The
host reads them when they have arrived: at once on a CPU, one step later on CUDA.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from latentddm.engine.distributed import collect
from latentddm.engine.errors import JobError

SMALLEST_SCALE = 1.0  # of the losses in fp16; below it they would vanish and not overflow


class LateReader:
    """Reads small tensors of the device without making the host wait for it.

    `read` returns its argument's values on a CPU, the values of the last call on CUDA.
    """

    def __init__(self) -> None:
        self._waiting: tuple[Tensor, torch.cuda.Event, int] | None = None

    def read(self, values: Tensor, images: int) -> tuple[Tensor, int] | None:
        """Values that have arrived with the `images` they came with; None if there are none."""
        if values.device.type != "cuda":
            return values.cpu(), images
        copy, event = values.to("cpu", non_blocking=True), torch.cuda.Event()
        event.record()
        arrived, self._waiting = self._waiting, (copy, event, images)
        if arrived is None:
            return None
        arrived[1].synchronize()  # long past: a whole step has been queued since
        return arrived[0], arrived[2]


class NonfiniteGuard:
    """Holds back the optimizer step, then stops all processes, after a number is not finite.

    With sharded weights, whose optimizer knows no `found_inf`, the host waits for the flags.
    """

    def __init__(self, accelerator: Accelerator, batch_size: int, sharded: bool = False) -> None:
        self.accelerator, self.batch_size, self.sharded = accelerator, batch_size, sharded
        self._reader = LateReader()

    def before_step(
        self, optimizer: Optimizer, loss_finite: Tensor, gradient_finite: Tensor, images: int
    ) -> None:
        """Look at one step's loss and gradient; JobError names step, images and rank.

        A gradient that overflows in fp16 is the gradient scaler's to skip, until its scale is used
        up.
        """
        scaler = self.accelerator.scaler
        if scaler is not None:
            gradient_finite = scaler._get_scale_async().ge(SMALLEST_SCALE)
        bad = ~torch.stack([loss_finite, gradient_finite.reshape(())])
        everyone = collect(self.accelerator, bad.float())  # [processes, 2]
        if scaler is None and not self.sharded:
            optimizer.found_inf = everyone.amax()  # type: ignore[attr-defined]
        if self.sharded:
            everyone = everyone.cpu()
        arrived = self._reader.read(everyone, images)
        if arrived is not None and arrived[0].any():
            raise JobError(self._sentence(*arrived))

    def _sentence(self, flags: Tensor, images: int) -> str:
        ranks = [str(rank) for rank, bad in enumerate(flags[:, 0].tolist()) if bad]
        what = f"loss of rank {', '.join(ranks)}" if ranks else "gradient of all ranks together"
        return (
            f"The {what} is not finite in step {images // self.batch_size + 1}, after {images} "
            "images; no weights were changed. Lower optimizer.learning_rate (or use precision "
            "bf16) and run again: it goes on from the last checkpoint."
        )
