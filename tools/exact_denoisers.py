"""The cost of few evaluations for a perfect model: exact denoisers of the latents in a store.

    python tools/exact_denoisers.py STORE [--samples 1000] [--evaluations 1,2] [--solver unipc]

For the latents of a store as the whole distribution, p(x_0 | x_t) is known: each latent y has the
weight softmax(-|x_t - alpha y|^2 / (2 sigma^2)). Its mean is the limit of endless training as plain
diffusion, a draw from it that of a distributional model. Sampled with DDIM on a uniform grid, they
bound every training: the first row is the error of the steps alone of plain diffusion, the second
the floor of the estimators. Other solvers are for the mean; applied to draws they only add error.
Distances are to 2,000 of the latents and, in the features of pictures, to their decoded images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from command_line import exit_code, list_of
from torch import Tensor

from autoencoder.decode import decode_latents
from autoencoder.models import Autoencoder
from autoencoder.store import LatentStore
from latentddm.demo.reference import REFERENCE_IMAGES, Reference
from latentddm.diffusion.process import draw_targets, posterior_weights
from latentddm.diffusion.schedules import FlowSchedule
from latentddm.diffusion.solvers import SOLVERS, solve, solver_grid
from latentddm.engine.devices import default_device
from latentddm.engine.seeding import torch_generator
from latentddm.evaluation.extractors import LatentExtractor, default_extractor
from latentddm.evaluation.protocol import Result
from latentddm.inference.latent_space import LatentSpace

BATCH = 100


class ExactDenoiser:
    """The posterior of x_0 when x_0 is uniform on `data`, [N, C, H, W]: its mean, or a draw."""

    def __init__(self, data: Tensor, draws: bool) -> None:
        self.data, self.draws = data, draws

    def __call__(self, x_t: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        """x_0 [B, C, H, W]. Of xi one number is used: the quantile of the draw."""
        if self.draws:
            quantile = torch.special.ndtr(xi.flatten(1)[:, :1].double())
            return draw_targets(x_t, t, self.data, quantile, FlowSchedule())[:, 0]
        weights = posterior_weights(x_t, t, self.data)
        return (weights @ self.data.flatten(1).double()).reshape(x_t.shape).to(x_t.dtype)


class Judge:
    """Distances of latents, and of the pictures in them, to a reference."""

    def __init__(self, reference: Tensor, space: LatentSpace, autoencoder: Autoencoder) -> None:
        self.space, self.autoencoder = space, autoencoder
        self.pictures = Reference.of("pictures ", default_extractor(), self._decode(reference))
        latents = LatentExtractor(space.shape, space.fingerprint)
        self.latents = Reference.of("latents ", latents, reference)

    def measure(self, latents: Tensor) -> dict[str, Result]:
        """Fréchet and energy distances of latents in model space, [N, C, H, W]."""
        return self.pictures.distances(self._decode(latents)) | self.latents.distances(latents)

    def _decode(self, latents: Tensor) -> Tensor:
        return decode_latents(self.space.restore(latents), self.autoencoder, batch_size=BATCH)


def draw(denoiser: ExactDenoiser, samples: int, times: Tensor, solver: str, seed: int) -> Tensor:
    """Samples in model space, [samples, C, H, W]."""
    parts = []
    for start in range(0, samples, BATCH):
        random = torch_generator(seed, "exact denoisers", start)
        shape = (min(BATCH, samples - start), *denoiser.data.shape[1:])
        noise = torch.randn(shape, generator=random)
        parts.append(solve(denoiser, noise, times, solver, generator=random))
    return torch.cat(parts)


def run(options: argparse.Namespace) -> None:
    """Measure both denoisers at every number of evaluations, and print a row for each."""
    store = LatentStore(options.store)
    count = min(options.images, len(store))
    data = next(store.stream(count, seed=options.seed)).latents
    space = LatentSpace.of_store(store)
    judge = Judge(data[:REFERENCE_IMAGES], space, space.load_autoencoder(default_device()))
    print(
        f"{count} latents; {options.samples} samples against {min(count, REFERENCE_IMAGES)} of them"
    )
    for draws, kind in ((False, "mean"), (True, "draw")):
        denoiser = ExactDenoiser(data, draws)
        for steps in options.evaluations:
            times = solver_grid(options.solver, steps, "uniform")
            drawn = draw(denoiser, options.samples, times, options.solver, options.seed)
            found = judge.measure(drawn)
            figures = ", ".join(f"{name} {result.value:.3g}" for name, result in found.items())
            print(f"{kind}, {steps} evaluations: {figures}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0 done, 1 the work failed, 2 the request was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", help="folder or URL of a latent store")
    parser.add_argument("--images", type=int, default=4000, help="of the store (default 4000)")
    parser.add_argument("--samples", type=int, default=1000, help="default 1000")
    parser.add_argument("--evaluations", type=list_of(int), default=(1, 2, 4, 8, 50))
    parser.add_argument("--solver", choices=SOLVERS, default="ddim", help="default ddim")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
