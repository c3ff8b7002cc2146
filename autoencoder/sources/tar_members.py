"""The members of a tar file by offset, from one strict pass over its headers.

Python's tarfile and webdataset read a torn header as the end of the archive and lose the images
behind it in silence. Here every tar must be complete up to its end-of-archive blocks.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from latentddm.engine.errors import JobError, UserError

BLOCK = 512
LONGEST_PADDING = 1 << 20  # tar writers pad to a record of 10 KiB as a rule, 1 MiB at most
LONGEST_NUMBER = 20  # digits of a size; Python's int refuses thousands of them

_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PAX_LOCAL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)


class Member(NamedTuple):
    """A file in a tar: `size` bytes from `offset` on. A link has no bytes and size -1."""

    name: str
    offset: int
    size: int


def read_members(path: Path) -> list[Member]:
    """The files in a tar in order, without folders, with links.

    JobError that names the tar if it is truncated, damaged, or continues behind its end.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return _Scan(file, path).members()
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}); check the path.") from error


def read_range(path: Path, offset: int, size: int) -> bytes:
    """The bytes of one member; JobError if the tar has become shorter or unreadable."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise JobError(f"{path} cannot be read ({error.strerror}); check the disk.") from error
    if len(data) < size:
        raise JobError(f"{path} has become shorter since it was opened; restore it.")
    return data


class _Scan:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = file
        self.path = path
        self.bytes = file.seek(0, 2)
        self.offset = 0
        self.long_name: str | None = None
        self.pax: dict[str, str] = {}

    def members(self) -> list[Member]:
        found: list[Member] = []
        while (header := self._next_header()) is not None:
            member = self._member(header)
            if member is not None:
                found.append(member)
        self._check_end()
        return found

    def _next_header(self) -> tarfile.TarInfo | None:
        self.file.seek(self.offset)
        block = self.file.read(BLOCK)
        if len(block) < BLOCK:
            raise self._damaged("is truncated: it has no end-of-archive blocks")
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return None
        except tarfile.HeaderError as error:
            if self.offset == 0:
                raise self._damaged("is not a tar file (or its first header is damaged)") from error
            raise self._damaged(f"has a damaged header at byte {self.offset}") from error
        self.offset += BLOCK
        return header

    def _member(self, header: tarfile.TarInfo) -> Member | None:
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise self._damaged(f"holds {header.name} as a sparse file, which is not supported")
        if header.type == _LONG_NAME:
            self.long_name = _text(self._payload(header))
            return None
        if header.type == _LONG_LINK:
            self._payload(header)
            return None
        if header.type in _PAX_LOCAL:
            self.pax = self._pax_records(self._payload(header))
            return None
        if header.type == tarfile.XGLTYPE:
            self._payload(header)
            return None
        name = self.pax.get("path") or self.long_name or header.name
        size = int(self.pax.get("size", header.size))
        self.long_name, self.pax = None, {}
        if header.isdir():
            return None
        if header.issym() or header.islnk():
            return Member(name, self.offset, -1)
        return Member(name, self._skip(name, size), size)

    def _payload(self, header: tarfile.TarInfo) -> bytes:
        start = self._skip(header.name, header.size)
        self.file.seek(start)
        return self.file.read(header.size)

    def _skip(self, name: str, size: int) -> int:
        """Advance behind `size` bytes of content; returns their offset."""
        start = self.offset
        if size < 0:
            raise self._damaged(f"has a damaged header before byte {start}")
        if start + size > self.bytes:
            raise self._damaged(f"is truncated inside {name}")
        self.offset = start + (size + BLOCK - 1) // BLOCK * BLOCK
        return start

    def _pax_records(self, payload: bytes) -> dict[str, str]:
        records: dict[str, str] = {}
        while payload:
            length, _, _ = payload.partition(b" ")
            if not _is_number(length) or not len(length) < int(length) <= len(payload):
                raise self._damaged(f"has a damaged extended header before byte {self.offset}")
            key, _, value = payload[len(length) + 1 : int(length) - 1].partition(b"=")
            if key.startswith(b"GNU.sparse"):
                raise self._damaged("holds a sparse file, which is not supported")
            if key == b"size" and not _is_number(value):
                raise self._damaged(f"has a damaged extended header before byte {self.offset}")
            records[_text(key)] = _text(value)
            payload = payload[int(length) :]
        return records

    def _check_end(self) -> None:
        """JobError unless only padding follows the first block of zeros."""
        self.file.seek(self.offset)
        too_long = self.bytes - self.offset > LONGEST_PADDING
        if too_long or any(self.file.read(LONGEST_PADDING)):
            raise self._damaged(f"continues behind its end at byte {self.offset}")

    def _damaged(self, reason: str) -> JobError:
        return JobError(f"{self.path} {reason}; download or write it again.")


def _is_number(digits: bytes) -> bool:
    return digits.isdigit() and len(digits) <= LONGEST_NUMBER


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
