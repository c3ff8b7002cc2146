"""The size in the header of a JPEG XL file, before anything of it is decoded.

Pillow's plugin decodes all pixels when it opens a file, hence before a limit could stop it. Source:
ISO/IEC 18181-1, "SizeHeader", and 18181-2 for the boxes of a file.
"""

from __future__ import annotations

from collections.abc import Iterator

CODESTREAM = b"\xff\x0a"
CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_LONGEST_HEADER = 16  # bytes: two selectors, two sizes of 30 bits, the ratio
_SIZE_BITS = (9, 13, 18, 30)


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in the header of a JPEG XL file; None if there is no such header."""
    start = _codestream(data)
    if start is None or data[start : start + 2] != CODESTREAM:
        return None
    header = data[start + 2 : start + 2 + _LONGEST_HEADER].ljust(_LONGEST_HEADER, b"\0")
    bits = _Bits(int.from_bytes(header, "little"))
    small = bits.read(1)
    height = _side(bits, small)
    ratio = bits.read(3)
    if ratio == 0:
        return _side(bits, small), height
    numerator, denominator = _RATIOS[ratio]
    return height * numerator // denominator, height


class _Bits:
    """The bits of a number, the lowest first."""

    def __init__(self, value: int) -> None:
        self.value = value

    def read(self, count: int) -> int:
        found = self.value & ((1 << count) - 1)
        self.value >>= count
        return found


def _side(bits: _Bits, small: int) -> int:
    return 8 * (bits.read(5) + 1) if small else bits.read(_SIZE_BITS[bits.read(2)]) + 1


def _codestream(data: bytes) -> int | None:
    """The first byte of the codestream; None if the file holds none."""
    if data.startswith(CODESTREAM):
        return 0
    if not data.startswith(CONTAINER):
        return None
    for kind, start in _boxes(data):
        if kind == b"jxlc":
            return start
        if kind == b"jxlp":  # a part, behind its number
            return start + 4
    return None


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The kind and the first byte of the contents of each box."""
    place = 0
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        head = 8
        if size == 1:  # a size of 64 bits behind the kind
            size, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        yield kind, place + head
        if size < head:  # 0: to the end of the file
            return
        place += size
