"""Cost of sampling beside the bare networks, of our loop and of a pipeline in diffusers' style.

    python tools/bench_sample.py [--steps 4] [--batch 16] [--device cuda] [--output FILE.json]

Both draw the same latents with the same network in the same evaluations and decode them with the
same autoencoder: ours is `latentddm.sample` and `Autoencoder.decode`, the other a loop over
FlowMatchEulerDiscreteScheduler.step, `vae.decode` and VaeImageProcessor, as in diffusers' pipelines
(without their progress bar). They run in turn; printed are the median times, that of the bare
networks, and the median over the turns of the ratio of ours to diffusers'. The pictures of both are
compared first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from command_line import exit_code
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from autoencoder.models import Autoencoder, load_autoencoder
from latentddm.diffusion.sampling import sample, time_grid
from latentddm.engine.atomic_io import make_folder, write_json
from latentddm.engine.devices import default_device
from latentddm.engine.errors import JobError
from latentddm.engine.seeding import torch_generator
from latentddm.networks.unet import UNet

PORTRAITS = Path(__file__).resolve().parents[1] / "autoencoder" / "pretrained" / "portraits"
OURS, DIFFUSERS, NETWORKS = "ours", "diffusers", "networks alone"


@dataclass(frozen=True)
class Modules:
    """The networks of both loops, their times and initial noise."""

    network: UNet
    autoencoder: Autoencoder
    noise: Tensor
    times: Tensor

    def generator(self) -> torch.Generator:
        return torch_generator(0, "bench", device=self.noise.device)


@torch.no_grad()
def our_pictures(modules: Modules) -> np.ndarray:
    """uint8 [B, H, W, 3]."""
    x0 = sample(modules.network, modules.noise, modules.times, generator=modules.generator())
    return modules.autoencoder.decode(x0).cpu().numpy()


@torch.no_grad()
def diffusers_pictures(modules: Modules) -> np.ndarray:
    """The same in the style of a pipeline of diffusers: uint8 [B, H, W, 3]."""
    scheduler, generator = FlowMatchEulerDiscreteScheduler(), modules.generator()
    x, device = modules.noise, modules.noise.device
    scheduler.set_timesteps(sigmas=modules.times[:-1].tolist(), device=device)
    for timestep in scheduler.timesteps:
        t = timestep / scheduler.config.num_train_timesteps
        xi = torch.randn(x.shape, generator=generator, device=device)
        x0 = modules.network(x, t.expand(len(x)), xi)
        x = scheduler.step((x - x0) / t, timestep, x, return_dict=False)[0]
    decoded = modules.autoencoder.network.decode(x, return_dict=False)[0]
    pictures = VaeImageProcessor().postprocess(decoded, output_type="np")
    return (pictures * 255).round().astype("uint8")


@torch.no_grad()
def networks_alone(modules: Modules) -> None:
    """The evaluations and the decoding, without a sampler."""
    x = modules.noise
    for t in modules.times[:-1].to(x):
        modules.network(x, t.expand(len(x)), x)
    modules.autoencoder.network.decode(x, return_dict=False)


def seconds_of(work: Callable[[Modules], object], modules: Modules) -> float:
    """Seconds of one call: processor time on a CPU, independent of other programs; else elapsed."""
    on_cpu = modules.noise.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    started = clock()
    work(modules)
    if modules.noise.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def measure(modules: Modules, rounds: int) -> dict[str, list[float]]:
    """Seconds of each loop in each turn; in turn, as the speed of the machine varies."""
    ways: dict[str, Callable[[Modules], object]] = {
        OURS: our_pictures,
        DIFFUSERS: diffusers_pictures,
        NETWORKS: networks_alone,
    }
    gap = np.abs(our_pictures(modules).astype(int) - diffusers_pictures(modules).astype(int)).max()
    if gap > 1:  # rounding may differ by one level
        raise JobError(
            f"The two loops drew different pictures (by {gap} levels); do not time them."
        )
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        names = list(ways) if turn % 2 else list(ways)[::-1]
        for name in names:
            taken[name].append(seconds_of(ways[name], modules))
    return taken


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    device = torch.device(options.device) if options.device else default_device()
    torch.manual_seed(0)
    autoencoder = load_autoencoder(options.autoencoder, device=device)
    channels = autoencoder.latent_channels
    network = UNet(latent_channels=channels, channels=options.channels).eval().to(device)
    shape = (options.batch, channels, options.latent_size, options.latent_size)
    noise = torch.randn(shape, generator=torch_generator(0, "noise")).to(device)
    modules = Modules(network, autoencoder, noise, time_grid(options.steps))
    seconds = measure(modules, options.rounds)
    ratios = [ours / other for ours, other in zip(seconds[OURS], seconds[DIFFUSERS], strict=True)]
    print(
        f"{options.steps} evaluations and decoding of {options.batch} images of {list(shape[1:])} "
        f"latents on {device}, {network.num_parameters():,} parameters, {options.rounds} turns:"
    )
    for name, values in seconds.items():
        print(f"  {name:15} {median(values) * 1e3:9.2f} ms")
    print(f"  ours / diffusers = {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    if options.output:
        about = {**vars(options), "output": str(options.output), "device": str(device)}
        make_folder(options.output.parent)
        write_json(options.output, {**about, "ratio": median(ratios), "seconds": seconds})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 1 the work failed, 2 the request was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=64, help="width of the network")
    parser.add_argument("--latent-size", type=int, default=8, help="latents a side")
    parser.add_argument("--autoencoder", default=str(PORTRAITS), metavar="REF")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", help="default: CUDA or MPS, else the CPU")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parsed = parser.parse_args(arguments)
    return exit_code(lambda: run(parsed))


if __name__ == "__main__":
    raise SystemExit(main())
