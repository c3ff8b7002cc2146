"""File formats of images: those that are read, with which package, and those that are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import features

from autoencoder.sources.jxl import CODESTREAM, CONTAINER
from autoencoder.sources.naming import is_hidden, key_of, natural_key, suffix

# Explicit lists, since some of PIL's rarer formats start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_OTHER_PICTURES = (
    *(".3fr", ".apng", ".arw", ".cr2", ".cr3", ".crw", ".dds", ".dng", ".eps", ".erf", ".exr"),
    *(".hdr", ".icns", ".ico", ".j2c", ".j2k", ".jif", ".jp2", ".jpe", ".jpf", ".jpx", ".jxr"),
    *(".kdc", ".mpo", ".mrw", ".nef", ".nrw", ".orf", ".pam", ".pbm", ".pcx", ".pef", ".pfm"),
    *(".pgm", ".pnm", ".ppm", ".psb", ".psd", ".qoi", ".raf", ".rw2", ".rwl", ".sr2", ".srf"),
    *(".srw", ".svg", ".svgz", ".tga", ".wdp", ".x3f", ".xcf"),
)
_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIF": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
}


def _register_avif() -> None:
    if "avif" not in features.modules or not features.check_module("avif"):
        raise ImportError("this Pillow has no AVIF")


def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


def _register_jxl() -> None:
    import pillow_jxl  # noqa: F401  registers itself


@dataclass(frozen=True)
class OptionalFormat:
    """A format that Pillow reads with a package. register: ImportError without the package."""

    name: str
    suffixes: tuple[str, ...]
    package: str
    register: Callable[[], None]

    @property
    def remedy(self) -> str:
        return f"run `pip install {self.package}`"


OPTIONAL = (
    OptionalFormat("AVIF", (".avif",), "'pillow>=11.3'", _register_avif),
    OptionalFormat("HEIF", (".heic", ".heif", ".hif"), "pillow-heif", _register_heif),
    OptionalFormat("JXL", (".jxl",), "pillow-jxl-plugin", _register_jxl),
)


@dataclass(frozen=True)
class LeftOut:
    """Files of a source that look like pictures and are not read: how many have a suffix.

    first: the key of the first. remedy: a clause.
    """

    suffix: str
    files: int
    first: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.files} {self.suffix} ({self.first}; {self.remedy})"


@cache
def installed() -> tuple[OptionalFormat, ...]:
    """The optional formats that this process reads, registered with Pillow."""
    found = []
    for kind in OPTIONAL:
        try:
            kind.register()
        except ImportError:
            continue
        found.append(kind)
    return tuple(found)


@cache
def read_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    return _FORMATS + tuple(kind.name for kind in installed())


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of image files that are read."""
    return frozenset(_SUFFIXES).union(*(kind.suffixes for kind in installed()))


def is_image(name: str) -> bool:
    """Whether a name has the suffix of an image file that is read."""
    return suffix(name) in image_suffixes()


def find_left_out(names: Iterable[str]) -> tuple[LeftOut, ...]:
    """The files among `names` that look like pictures and are not read, by suffix."""
    remedies = dict.fromkeys(_OTHER_PICTURES, "convert it to png")
    remedies |= {ending: kind.remedy for kind in OPTIONAL for ending in kind.suffixes}
    groups: dict[str, list[str]] = {}
    for name in names:
        ending = suffix(name)
        if ending in remedies and ending not in image_suffixes() and not is_hidden(name):
            groups.setdefault(ending, []).append(name)
    return tuple(
        LeftOut(ending, len(found), key_of(min(found, key=natural_key)), remedies[ending])
        for ending, found in sorted(groups.items())
    )


def describe_left_out(found: Sequence[LeftOut]) -> str:
    """One sentence on files that are left out."""
    total = sum(kind.files for kind in found)
    files = (
        "file that looks like a picture is" if total == 1 else "files that look like pictures are"
    )
    return f"{total} {files} not read: {', '.join(map(str, found))}."


def missing_format(data: bytes) -> OptionalFormat | None:
    """The format of the bytes of a file, if it is an optional one whose package is missing."""
    name = "JXL" if data.startswith((CODESTREAM, CONTAINER)) else None
    if data[4:8] == b"ftyp":
        name = next((name for name, brands in _BRANDS.items() if data[8:12] in brands), None)
    missing = (kind for kind in OPTIONAL if kind.name == name and kind not in installed())
    return next(missing, None)
