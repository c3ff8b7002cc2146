"""Damaged archives are refused by name; no image of one is lost in silence."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import image_file

from autoencoder.images import Preprocessing, open_source, read_pixels
from autoencoder.sources.tar_members import read_members
from latentddm.engine.errors import JobError

COUNT = 20


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "images-000.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(COUNT):
            member = tarfile.TarInfo(f"{number:05d}.png")
            member.size = len(image_file(number))
            archive.addfile(member, io.BytesIO(image_file(number)))
    return path


def end_of_members(path: Path) -> int:
    last = read_members(path)[-1]
    return last.offset + (last.size + 511) // 512 * 512


def test_the_index_agrees_with_tarfile(shard: Path) -> None:
    with tarfile.open(shard) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive.getmembers()]
    assert [tuple(member) for member in read_members(shard)] == expected


def test_a_tar_truncated_anywhere_is_refused_by_name(shard: Path) -> None:
    whole = shard.read_bytes()
    end = end_of_members(shard)
    places = np.random.default_rng(0).integers(0, end + 1, 200).tolist()
    members = read_members(shard)
    places += [0, 1, 511, 512, end, end + 511]
    places += [member.offset for member in members]  # between a header and its payload
    places += [member.offset - 512 for member in members]  # between members
    places += [member.offset - 100 for member in members]  # inside a header
    for place in places:
        shard.write_bytes(whole[:place])
        with pytest.raises(JobError, match=r"images-000\.tar"):
            open_source(shard)


def test_a_tar_without_padding_is_complete(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: end_of_members(shard) + 1024])
    assert len(open_source(shard)) == COUNT


def test_every_flipped_bit_in_a_header_is_detected(shard: Path) -> None:
    whole = shard.read_bytes()
    header = read_members(shard)[7].offset - 512
    for place in range(0, 500, 7):
        damaged = bytearray(whole)
        damaged[header + place] ^= 1 << place % 8
        shard.write_bytes(damaged)
        with pytest.raises(JobError, match=r"images-000\.tar"):
            open_source(shard)


def test_zeros_in_the_middle_and_a_second_archive_behind_the_end_are_detected(shard: Path) -> None:
    whole = shard.read_bytes()
    middle = read_members(shard)[5].offset - 512
    shard.write_bytes(whole[:middle] + bytes(1024) + whole[middle + 1024 :])
    with pytest.raises(JobError, match="behind its end at byte"):
        open_source(shard)
    shard.write_bytes(whole + whole)
    with pytest.raises(JobError, match="behind its end at byte"):
        open_source(shard)
    shard.write_bytes(whole[:middle] + bytes(2 << 20))
    with pytest.raises(JobError, match="behind its end at byte"):
        open_source(shard)


def test_the_damaged_one_of_several_shards_is_named(shard: Path) -> None:
    other = shard.with_name("images-001.tar")
    other.write_bytes(shard.read_bytes()[:-11_000])
    with pytest.raises(JobError, match=r"images-001\.tar is truncated"):
        open_source(shard.parent)


def test_a_flipped_bit_in_a_payload_is_one_unreadable_image(shard: Path) -> None:
    member = read_members(shard)[3]
    damaged = bytearray(shard.read_bytes())
    damaged[member.offset + member.size // 2] ^= 16
    shard.write_bytes(damaged)
    pixels, unreadable = read_pixels(open_source(shard), Preprocessing(size=16))
    assert len(pixels) == COUNT - 1
    assert [image.key for image in unreadable] == ["00003.png"]


def test_a_member_twice_is_refused(shard: Path) -> None:
    with tarfile.open(shard, "a") as archive:
        member = tarfile.TarInfo("00003.png")
        member.size = len(image_file(99))
        archive.addfile(member, io.BytesIO(image_file(99)))
    with pytest.raises(JobError, match=r"00003\.png twice"):
        open_source(shard)


def test_another_file_with_the_suffix_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>" * 500)
    with pytest.raises(JobError, match=r"a\.tar is not a tar file"):
        open_source(tmp_path / "a.tar")


def test_zip_damage(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", image_file(number))
        place = archive.getinfo("1.png").header_offset
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(JobError, match=r"images\.zip is not a complete zip"):
        open_source(path)
    damaged = bytearray(whole)
    damaged[place + 200] ^= 1
    path.write_bytes(damaged)
    pixels, unreadable = read_pixels(open_source(path), Preprocessing(size=16))
    assert len(pixels) == 2
    assert [image.key for image in unreadable] == ["1.png"]
    assert "damaged in the zip" in unreadable[0].reason


def test_a_truncated_lmdb_is_refused_and_does_not_kill_the_process(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with (
        lmdb.open(str(tmp_path), map_size=1 << 24) as database,
        database.begin(write=True) as writer,
    ):
        for number in range(200):
            writer.put(f"{number:040x}".encode(), image_file(number) * 4)
    file = tmp_path / "data.mdb"
    whole = file.read_bytes()
    for size in (len(whole) // 2, len(whole) - 4096, 5000, 100, 0):
        file.write_bytes(whole[:size])
        with pytest.raises(JobError, match=r"data\.mdb"):
            open_source(tmp_path)
    file.write_bytes(whole)
    assert len(open_source(tmp_path)) == 200
