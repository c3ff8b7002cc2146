"""Cost of our interface of an autoencoder: images/s beside its bare module in a loop.

    python tools/bench_autoencoder.py [--autoencoder REF] [--size 256] [--batch-size 8] [--compile]

Bare: encode and decode of the diffusers module on prepared tensors of the same dtype, device and
memory format. Ours: uint8 pixels in and out, with all checks. They run in turn in one process; the
ratio is the median over the rounds, 1 without any cost. --compile adds torch.compile of the bare
decoder.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from autoencoder.decode import decode_latents
from autoencoder.models import Autoencoder, load_autoencoder
from autoencoder.training.network import SHIPPED_WEIGHTS
from latentddm.engine.devices import default_device, encoding_dtype
from latentddm.engine.seeding import torch_generator


def main() -> None:
    arguments = _arguments()
    device = default_device()
    dtype = encoding_dtype(device)
    autoencoder = load_autoencoder(arguments.autoencoder, device=device, dtype=dtype)
    size, batch = arguments.size, arguments.batch_size
    pixels = torch.randint(
        0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=torch_generator(0, "bench")
    )
    print(f"{arguments.autoencoder}, {batch} x {size} px, {dtype}, {device}, torch "
          f"{torch.__version__}, {torch.get_num_threads()} threads")  # fmt: skip
    print("stage    bare images/s    ours images/s    ours / bare    over the rounds")
    for stage, (bare, ours) in _stages(autoencoder, pixels, arguments.compile).items():
        rounds = [_round(bare, ours, arguments.calls) for _ in range(arguments.rounds)]
        ratios = [theirs / mine for theirs, mine in rounds]
        speeds = [batch / statistics.median(times) for times in zip(*rounds, strict=True)]
        print(
            f"{stage:8} {speeds[0]:12.2f} {speeds[1]:16.2f} {statistics.median(ratios):14.3f}"
            f"    {min(ratios):.3f} to {max(ratios):.3f}"
        )


def _stages(
    autoencoder: Autoencoder, pixels: torch.Tensor, with_compile: bool
) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """The bare call and our call of each stage."""
    network: Any = autoencoder.network
    low, high = autoencoder.pixel_range
    images = pixels.to(autoencoder.device).permute(0, 3, 1, 2).float() / 255 * (high - low) + low
    images = images.to(autoencoder.dtype)
    latents = autoencoder.encode(pixels)
    typed = latents.to(autoencoder.dtype).contiguous(memory_format=torch.channels_last)

    def bare_decode() -> Any:
        return network.decode(typed, return_dict=False)

    def our_decode() -> torch.Tensor:
        return decode_latents(latents, autoencoder, batch_size=len(latents))

    stages: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "encode": (
            lambda: network.encode(images, return_dict=False),
            lambda: autoencoder.encode(pixels),
        ),
        "decode": (bare_decode, our_decode),
    }
    if with_compile:
        compiled = torch.compile(lambda: network.decode(typed, return_dict=False))
        stages["compiled"] = (bare_decode, compiled)
    return stages


@torch.no_grad()
def _round(bare: Callable[[], Any], ours: Callable[[], Any], calls: int) -> tuple[float, float]:
    """Seconds of one call of each; calls in turn, after a warm-up."""
    spent = [0.0, 0.0]
    for call in range(-1, calls):
        for which, function in enumerate((bare, ours)):
            _wait()
            start = time.perf_counter()
            function()
            _wait()
            if call >= 0:  # the first warms up
                spent[which] += time.perf_counter() - start
    return spent[0] / calls, spent[1] / calls


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--autoencoder", metavar="REF", default=str(SHIPPED_WEIGHTS / "portraits"))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--calls", type=int, default=5, help="of each in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
