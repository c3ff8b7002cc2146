"""The diffusers face: a trained generator, its autoencoder and a scheduler in one pipeline.

from latentddm.hub.pipeline import LatentDDMPipeline
pipe = LatentDDMPipeline.from_pretrained("exported").to("cuda")
images = pipe(batch_size=4, generator=torch.Generator().manual_seed(0)).images
"""

# No postponed annotations here: diffusers reads those of __init__ as classes.
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin
from PIL import Image
from torch import Tensor

from autoencoder.decode import decode_latents
from autoencoder.models import Autoencoder, PixelAutoencoder, wrap_network
from autoencoder.store import Standardisation
from latentddm.diffusion.guidance import GuidedDenoiser
from latentddm.diffusion.process import from_x0
from latentddm.diffusion.sampling import extend_scales, normal_like, xi_scales
from latentddm.diffusion.schedules import make_schedule
from latentddm.engine.seeding import torch_generator
from latentddm.hub.call_arguments import (
    CALLBACK_TENSORS,
    Generators,
    OutputType,
    check_call,
    one_generator_each,
)
from latentddm.hub.scheduler import DistributionalScheduler
from latentddm.hub.scheduler_fit import (
    scheduler_prediction,
    set_flow_map_times,
    step_arguments,
)
from latentddm.inference.flow_maps import FlowMapNetwork
from latentddm.networks.attention import Backend, set_attention_backend
from latentddm.networks.network import NetworkModel

__all__ = ["DistributionalScheduler", "LatentDDMPipeline"]


class LatentDDMPipeline(DiffusionPipeline):
    """Images in a few evaluations of `network`.

    network: a `networks.network.Network`; vae: a network of diffusers that `autoencoder.models`
    supports, or None where the latents are pixels; scheduler: DistributionalScheduler with the
    network's schedule, or any of diffusers' that works on flow sigmas. Saved with the pipeline are
    latent_shape [C, H, W]; latent_mean and latent_std (per channel), which standardise raw latents;
    reads_xi: True for a network that draws (DDM), False for a mean denoiser, evaluated without xi;
    flow_map: the steps learnt ("free", "dyadic") by a flow map, which also reads the end of a step;
    xi_scale: that of calls which give none.
    """

    model_cpu_offload_seq = "network->vae"
    _callback_tensor_inputs: ClassVar[list[str]] = list(CALLBACK_TENSORS)
    _optional_components: ClassVar[list[str]] = ["vae"]

    def __init__(
        self,
        network: NetworkModel,
        vae: torch.nn.Module | None,
        scheduler: SchedulerMixin,
        latent_shape: Sequence = (),
        latent_mean: Sequence = (),
        latent_std: Sequence = (),
        reads_xi: bool = True,
        flow_map: str | None = None,
        xi_scale: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        channels = network.config["latent_channels"]
        if not len(latent_mean) == len(latent_std) == channels:
            raise ValueError(
                f"latent_mean and latent_std must hold {channels} numbers, one a latent channel; "
                f"they hold {len(latent_mean)} and {len(latent_std)}."
            )
        self.register_modules(network=network, vae=vae, scheduler=scheduler)
        self.register_to_config(
            reads_xi=reads_xi,
            flow_map=flow_map,
            xi_scale=xi_scale if isinstance(xi_scale, int | float) else list(xi_scale),
            latent_shape=list(latent_shape),
            latent_mean=list(latent_mean),
            latent_std=list(latent_std),
        )
        self._tile: int | None = None

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        num_inference_steps: int = 4,
        class_labels: int | Sequence[int] | None = None,
        guidance_scale: float = 1.0,
        xi_scale: float | Sequence[float] | None = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        images_at_once: int = 8,
    ) -> ImagePipelineOutput | tuple:
        """Draw `batch_size` images.

        generator: one for all images, or a list with one for each; image i depends on its own
        alone, and is bit-equal in every batch: the network always runs on exactly `images_at_once`
        images, the last of them repeated where some are missing. class_labels: one label, or one
        for each image; guidance_scale above 1 exaggerates them, at two evaluations a step.
        xi_scale: standard deviation of xi, one number or one for each evaluation (the last goes
        on); 1 is exact, below 1 draws lie closer to their mean; None: the run's own at its export.
        latents: the first noise.
        output_type: pil; np [B, H, W, 3] or pt [B, 3, H, W] in [0, 1]; latent: float32, raw.
        callback_on_step_end(pipeline, step, timestep, tensors) may return other tensors, and may
        request "latents" (x_s) and "x0" (the draw that led there). ValueError: a wrong argument.
        """
        check_call(batch_size, images_at_once, output_type, callback_on_step_end_tensor_inputs)
        schedule = make_schedule(self.network.config["schedule"])
        prediction = scheduler_prediction(self.scheduler, schedule)
        generators = one_generator_each(generator, batch_size)
        labels = self._labels(class_labels, batch_size, guidance_scale)
        if self.config["flow_map"] is None:
            self.scheduler.set_timesteps(num_inference_steps)
        else:
            set_flow_map_times(self.scheduler, self.config["flow_map"], num_inference_steps)
        scales = self._scales(xi_scale)
        x_t = self._first(latents, generators)
        extra = step_arguments(self.scheduler, generators)
        times = self.scheduler.sigmas.to(x_t)
        for step, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            t = times[step]
            noise = normal_like(x_t, generators)  # drawn for a mean too, as in `sampling.sample`
            xi = scales[step] * noise if self.config["reads_xi"] else None
            s = None if self.config["flow_map"] is None else times[step + 1]
            x0 = self._draw(x_t, t, s, xi, labels, guidance_scale, images_at_once)
            output = from_x0(x0, x_t, t, prediction, schedule)
            x_t = self.scheduler.step(output, timestep, x_t, return_dict=False, **extra)[0]
            if callback_on_step_end is not None:
                tensors = {"latents": x_t, "x0": x0}
                seen = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                x_t = (callback_on_step_end(self, step, timestep, seen) or {}).get("latents", x_t)
        images = self._finish(x_t, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @staticmethod
    def generators(seed: int, count: int, first: int = 0) -> list[torch.Generator]:
        """The generators of images `first` on under `seed`: those of `latentddm sample --seed`."""
        return [torch_generator(seed, "sample", first + index) for index in range(count)]

    def enable_vae_tiling(self, tile: int = 64) -> None:
        """Decode latents with more than `tile` a side from overlapping tiles, in less memory."""
        self._tile = tile

    def disable_vae_tiling(self) -> None:
        """Decode each image at once."""
        self._tile = None

    def set_attention_backend(self, backend: Backend | None) -> None:
        """xformers or sdpa, for all networks of this process; None chooses by device."""
        set_attention_backend(backend)

    def _draw(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None,
        xi: Tensor | None,
        labels: Tensor | None,
        guidance: float,
        at_once: int,
    ) -> Tensor:
        """x_0 ~ p(x_0 | x_t), or its mean, evaluated on exactly `at_once` images at a time.

        s: the end of the step, of a flow map.
        """
        network, count = self.network, len(x_t)
        whole = network if s is None else FlowMapNetwork(network).ending_at(s.expand(at_once))
        fill = torch.arange(-(-count // at_once) * at_once).clamp_max(count - 1).to(x_t.device)
        half = network.dtype != torch.float32
        drawn = []
        with torch.autocast(x_t.device.type, dtype=network.dtype, enabled=half):
            for rows in fill.split(at_once):
                denoiser = whole
                if labels is not None:
                    classes = network.config["classes"]
                    denoiser = GuidedDenoiser(whole, labels[rows], classes, guidance)
                arguments = x_t[rows], t.expand(at_once), None if xi is None else xi[rows]
                drawn.append(denoiser(*arguments).to(x_t.dtype))
        return torch.cat(drawn)[:count]

    def _scales(self, given: float | Sequence[float] | None) -> Sequence[float]:
        """The scale of xi at each evaluation; ValueError where they do not fit or do nothing."""
        steps, own = len(self.scheduler.timesteps), self.config["xi_scale"]
        if given is None:
            given = own[:steps] if isinstance(own, Sequence) else own
        scales = xi_scales(extend_scales(given, steps), steps)
        if not self.config["reads_xi"] and any(scale != 1 for scale in scales):
            raise ValueError("xi_scale needs a network that reads xi; leave it out.")
        return scales

    def _labels(
        self, given: int | Sequence[int] | None, count: int, guidance: float
    ) -> Tensor | None:
        """A label for each image; ValueError for labels without classes or of a wrong number."""
        if given is None:
            if guidance != 1:
                raise ValueError("guidance_scale needs class_labels.")
            return None
        if not self.network.config["classes"]:
            raise ValueError("The network was trained without labels; leave class_labels out.")
        labels = torch.as_tensor(given)
        if labels.ndim and len(labels) != count:
            raise ValueError(f"{len(labels)} class_labels were given for {count} images.")
        return labels.expand(count).to(self._execution_device)

    def _first(self, latents: Tensor | None, generators: Sequence[torch.Generator]) -> Tensor:
        """The noise to begin with, float32 whatever the network's format."""
        scale = getattr(self.scheduler, "init_noise_sigma", 1.0)  # flow matching has none
        shape = (len(generators), *self.config["latent_shape"])
        if latents is None:
            latents = normal_like(torch.empty(shape, device=self._execution_device), generators)
        if latents.shape[:2] != shape[:2] or latents.ndim != len(shape):
            raise ValueError(f"latents must be {list(shape)}, not {list(latents.shape)}.")
        return scale * latents.to(self._execution_device, torch.float32)

    def _finish(self, x0: Tensor, output_type: OutputType) -> Any:
        """Standardised latents to the output type; pictures are decoded one by one."""
        space = Standardisation(self.config["latent_mean"], self.config["latent_std"])
        raw = space.restore(x0.cpu())
        if output_type == "latent":
            return raw
        pixels = decode_latents(raw, self._autoencoder(), batch_size=1, tile=self._tile)
        if output_type == "pil":
            return [Image.fromarray(picture) for picture in pixels.numpy()]
        unit = pixels.float() / 255
        return unit.numpy() if output_type == "np" else unit.permute(0, 3, 1, 2)

    def _autoencoder(self) -> Autoencoder:
        if self.vae is None:
            return PixelAutoencoder()
        return wrap_network(self.vae, reference="of the pipeline", fingerprint="")


# DiffusionPipeline.from_pretrained looks up the class of a folder in the attributes of diffusers.
setattr(diffusers, LatentDDMPipeline.__name__, LatentDDMPipeline)
