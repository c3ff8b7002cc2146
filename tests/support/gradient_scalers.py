"""The gradient scaler of fp16, which accelerate has on CUDA alone, in a training on the CPU."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from latentddm.engine import distributed

FIRST_SCALE = 2.0**10


def emulate_gradient_scaler(
    monkeypatch: pytest.MonkeyPatch, growth_interval: int = 2000, overflows: int = 0
) -> list[torch.amp.GradScaler]:
    """Give each training that begins a scaler; the list receives them in their order.

    overflows: of the first steps' gradients.
    """
    scalers: list[torch.amp.GradScaler] = []
    left = overflows
    start = distributed.start_processes

    def with_scaler(*arguments: object) -> Accelerator:
        accelerator = start(*arguments)  # type: ignore[arg-type]
        scaler = torch.amp.GradScaler("cpu", FIRST_SCALE, growth_interval=growth_interval)
        accelerator.scaler = scaler
        scalers.append(scaler)
        return accelerator

    def unscale(self: Accelerator) -> None:  # accelerate's own asks for precision fp16
        nonlocal left
        for prepared in self._optimizers:
            for parameter in prepared.param_groups[0]["params"] if left > 0 else ():
                parameter.grad.fill_(torch.inf)
            self.scaler.unscale_(prepared.optimizer)
        left -= 1

    monkeypatch.setattr(distributed, "start_processes", with_scaler)
    monkeypatch.setattr(Accelerator, "unscale_gradients", unscale)
    return scalers
