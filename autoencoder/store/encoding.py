"""Encoding of shards: image decoding ahead, the autoencoder, and writing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from autoencoder.images import LoadedPixels, UnreadableImage, iterate_pixels
from autoencoder.store.layout import SampleInfo
from autoencoder.store.manifest import Unreadable
from autoencoder.store.plan import EncodePlan
from autoencoder.store.shard import ShardBuilder
from latentddm.engine.cpu_threads import available_cores, leave_room_for
from latentddm.engine.errors import JobError
from latentddm.engine.progress import Progress

if TYPE_CHECKING:
    from autoencoder.images import ImageSource, Preprocessing
    from autoencoder.models import Autoencoder

_IMAGES_CHECKED = 8


def default_workers() -> int:
    """Half of the processor cores available to this process, between 1 and 8."""
    return max(1, min(8, available_cores() // 2))


class ShardEncoding:
    """The encoding of shards of a plan, each in batches of its own images."""

    def __init__(
        self,
        source: ImageSource,
        autoencoder: Autoencoder,
        preprocessing: Preprocessing,
        plan: EncodePlan,
        batch_size: int,
        strict: bool = False,
    ) -> None:
        self.source = source
        self.autoencoder = autoencoder
        self.preprocessing = preprocessing
        self.plan = plan
        self.batch_size = batch_size
        self.strict = strict
        self._order = plan.source_order()

    def indices(self, number: int) -> np.ndarray:
        """The source indices of shard `number`."""
        first = number * self.plan.shard_samples
        return self._order[first : first + self.plan.shard_samples]

    def check_autoencoder(self, reconstruction: bool) -> None:
        """Encode a few images, and reconstruct them on request.

        UserError for an autoencoder without the contents of the plan, or for a bad reconstruction.
        """
        # Imported here: it imports diffusers, which readers of a store do not need.
        from autoencoder.models import check_reconstruction

        count = min(_IMAGES_CHECKED, self.batch_size)
        order = self.indices(0).tolist()
        with closing(iterate_pixels(self.source, order, self.preprocessing)) as images:
            readable = (image for image in images if isinstance(image, LoadedPixels))
            first = [image.pixels for image in islice(readable, count)]
        if not first:
            return
        pixels = torch.from_numpy(np.stack(first))
        if self.plan.layout.contents == "moments":
            self.autoencoder.encode_moments(pixels)
        if reconstruction:
            check_reconstruction(self.autoencoder, pixels)

    def run(
        self,
        numbers: Sequence[int],
        finish: Callable[[ShardBuilder], None],
        workers: int,
        progress: Progress | None = None,
    ) -> None:
        """Encode the shards `numbers` and call `finish` with each.

        Images are decoded ahead in `workers` processes; `finish` runs behind in a thread.
        """
        leave_room_for(workers, self.autoencoder.device.type)
        order = np.concatenate([self.indices(number) for number in numbers]).tolist()
        images = iterate_pixels(self.source, order, self.preprocessing, workers)
        finished: Future[None] | None = None
        # Closed here: the traceback of an error would keep the processes of `images` alive.
        with closing(images), ThreadPoolExecutor(1) as pool:
            for number in numbers:
                builder = self._build(number, images, progress)
                if finished is not None:
                    finished.result()  # at most one shard waits for the disk
                finished = pool.submit(finish, builder)
            if finished is not None:
                finished.result()

    def _build(
        self,
        number: int,
        images: Iterator[LoadedPixels | UnreadableImage],
        progress: Progress | None,
    ) -> ShardBuilder:
        first = number * self.plan.shard_samples
        builder = ShardBuilder(number, first, self.batch_size, self.plan.layout)
        batch: list[LoadedPixels] = []
        # Indices first: zip must not consume an image of the next shard.
        for index, image in zip(self.indices(number).tolist(), images, strict=False):
            if isinstance(image, UnreadableImage):
                self._refuse_if_strict(image)
                builder.skip(Unreadable(index, image.key, image.reason))
            else:
                batch.append(image)
            if len(batch) == self.batch_size:
                self._encode_into(builder, batch)
                batch = []
            if progress is not None:
                progress.update(1)
        if batch:
            self._encode_into(builder, batch)
        return builder

    def _refuse_if_strict(self, image: UnreadableImage) -> None:
        if self.strict:
            raise JobError(
                f"The image {image.key} of {self.source.name} cannot be read ({image.reason}); "
                "repair or remove it, or encode without --strict."
            )

    def _encode_into(self, builder: ShardBuilder, batch: list[LoadedPixels]) -> None:
        pixels = torch.from_numpy(np.stack([image.pixels for image in batch]))
        views = [pixels, pixels.flip(2)][: len(self.plan.layout.views)]
        rows = [self._rows(view, batch) for view in views]
        builder.add(rows, [SampleInfo(image.key, image.label, image.index) for image in batch])

    def _rows(self, pixels: torch.Tensor, batch: list[LoadedPixels]) -> np.ndarray:
        """Stored rows [B, *row_shape] of pixels uint8 [B,H,W,3]."""
        layout = self.plan.layout
        if layout.contents == "moments":
            latents = torch.cat(self.autoencoder.encode_moments(pixels), dim=1)
        else:
            latents = self.autoencoder.encode(pixels)
        if latents.shape[1:] != layout.row_shape:
            raise JobError(
                f"The autoencoder {self.autoencoder.reference} gives latents of shape "
                f"{list(latents.shape[1:])}, not {list(layout.row_shape)} as planned; its "
                "configuration does not match its weights."
            )
        rows = latents.to(getattr(torch, layout.dtype)).cpu()
        finite = torch.isfinite(rows).flatten(1).all(dim=1)
        if not finite.all():
            image = batch[int((~finite).nonzero()[0])]
            raise JobError(
                f"The latents of image {image.key} are not finite in {layout.dtype}; "
                "load the autoencoder in float32 or store float32."
            )
        return rows.numpy()
