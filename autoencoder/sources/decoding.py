"""Decoding of image files to upright 8-bit RGB, with a reason for every unreadable one."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from autoencoder.sources.formats import missing_format, read_formats
from autoencoder.sources.jxl import jxl_size
from latentddm.engine.errors import JobError

SMALLEST_SIDE = 8
LARGEST_PIXELS = 89_478_485  # PIL's own threshold of a decompression bomb: 256 MiB as RGB

# Errors of one file; any other, such as EIO or ESTALE, is of the disk, the mount or the machine.
_OF_THE_FILE = (
    *(errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
    *(errno.ENOTDIR, errno.ENXIO),
)
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class UnreadableImage(Exception):
    """An unusable image: its key in the source and the reason.

    Callers leave it out, count it and list it.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


def read_image_file(path: Path, key: str) -> bytes:
    """The bytes of an image file.

    UnreadableImage for an error of this file: deleted, no permission, a link to nothing. JobError
    for an error of the disk or the mount, and for a file that has vanished with all of its folder:
    a share that is gone would otherwise turn all images behind it into unreadable ones.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        deleted = error.errno == errno.ENOENT and _holds_files(path.parent)
        if deleted or error.errno in _OF_THE_FILE:
            raise UnreadableImage(key, f"cannot be read: {error.strerror}") from error
        raise JobError(
            f"{path} cannot be read ({error.strerror}); check the disk or the mount and run again."
        ) from error


def _holds_files(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except OSError:
        return False


def decode_image(data: bytes, key: str) -> Image.Image:
    """The upright 8-bit RGB image of an image file; the first frame of an animation.

    UnreadableImage for an empty, damaged, tiny (side < 8) or giant (> 89 million pixels) file and
    for pixels of an unknown range.
    """
    if not data:
        raise UnreadableImage(key, "the file is empty")
    try:
        _check_size(jxl_size(data))
        image = Image.open(io.BytesIO(data), formats=read_formats())
        _check_size(image.size)
        image.load()
        return to_rgb(_upright(image))
    except MemoryError:
        raise
    except Exception as error:  # PIL raises nearly every built-in error on damaged files
        raise UnreadableImage(key, _reason(error, data)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB: transparency over white, 16-bit grey scaled to the 8-bit range.

    CMYK is converted without its colour profile. ValueError for an unknown range of values.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT_MODES:
        return _eight_bit(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floating point, their range is unknown")
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        return page.convert("RGB")
    return image.convert("RGB")


def _check_size(size: tuple[int, int] | None) -> None:
    if size is None:
        return
    width, height = size
    if min(width, height) < SMALLEST_SIDE:
        raise ValueError(f"too small: {width}x{height}")
    if width * height > LARGEST_PIXELS:
        raise ValueError(f"too large: {width}x{height}")


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return image  # its decoder has turned the pixels, and leaves the EXIF block as it was
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a torn EXIF block; the pixels are loaded already
        return image


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("pixels are 32-bit integers, their range is unknown")
    # 65535 = 257 * 255: rounding to the nearest, where PIL's own conversion clips at 255
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text has a memory address
        missing = missing_format(data)
        if missing is not None:
            return f"a file in the format {missing.name}; {missing.remedy}"
        return "not an image in a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: more than {LARGEST_PIXELS // 10**6} million pixels"
    return str(error).partition("\n")[0] or type(error).__name__
