"""A guard against optimizer steps on nonfinite numbers, without a device synchronisation.

The flags of all processes are gathered on the device, where they also stop the optimizer: a fused
optimizer skips its update if `found_inf` is set, as for a gradient scaler. The host reads them as
soon as they arrive: at once on a CPU, one step later on CUDA.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from latentddm.engine.distributed import collect
from latentddm.engine.errors import JobError
from latentddm.engine.late_reader import LateReader

NONFINITE_REMEDY = (
    "The same command goes on from the last checkpoint; if it fails again, begin a new run with a "
    "lower optimizer.learning_rate or precision bf16 (`train`: with start=RUN, from the weights of "
    "that checkpoint)."
)
SMALLEST_SCALE = 1.0  # of the fp16 gradient scaler: overflow below it is divergence


class NonfiniteGuard:
    """Skips the optimizer step and stops all processes if a loss or a gradient is not finite.

    The optimizer of sharded weights has no `found_inf`: there the host waits for the flags.
    """

    def __init__(self, accelerator: Accelerator, batch_size: int, sharded: bool = False) -> None:
        self.accelerator, self.batch_size, self.sharded = accelerator, batch_size, sharded
        self._reader = LateReader()

    def before_step(
        self, optimizer: Optimizer, loss_finite: Tensor, gradient_finite: Tensor, images: int
    ) -> None:
        """Check one step's loss and gradient; JobError names step, images and ranks.

        In fp16 the gradient scaler skips steps whose gradient overflows; the guard stops the run
        once the scale is below SMALLEST_SCALE.
        """
        scaler = self.accelerator.scaler
        if scaler is not None:
            gradient_finite = scaler._get_scale_async().ge(SMALLEST_SCALE)
        bad = ~torch.stack([loss_finite, gradient_finite.reshape(())])
        flags = collect(self.accelerator, bad.float())  # [processes, 2]
        if scaler is None and not self.sharded:
            optimizer.found_inf = flags.amax()  # type: ignore[attr-defined]
        if self.sharded:
            flags = flags.cpu()
        arrived = self._reader.read(flags, images)
        if arrived is not None and arrived[0].any():
            raise JobError(self._message(*arrived))

    def _message(self, flags: Tensor, images: int) -> str:
        ranks = [str(rank) for rank, bad in enumerate(flags[:, 0].tolist()) if bad]
        name = f"loss of rank {', '.join(ranks)}" if ranks else "gradient of all ranks together"
        return (
            f"The {name} is not finite in step {images // self.batch_size + 1}, after {images} "
            f"images; no weights were changed. {NONFINITE_REMEDY}"
        )
