"""A file is never half-written, whatever interrupts the writing."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from messages import raises_naming

from latentddm.engine.atomic_io import atomic_path, make_folder, read_json, write_json, write_text
from latentddm.engine.errors import JobError, UserError


def write_half(path: Path, error: Exception) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError):
        write_half(path, RuntimeError())
    assert path.read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("1")
        assert not path.exists()
    assert (path / "a").read_text() == "1"


def test_a_folder_that_vanished_with_its_disk_is_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "disk" / "run"
    make_folder(folder)
    shutil.rmtree(folder.parent)
    with raises_naming(JobError, str(folder / "a.txt"), "check the disk"):
        write_text(folder / "a.txt", "text")
    assert not folder.parent.exists()


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"kept": 1})
    with raises_naming(JobError, "disk is full", str(path), "free space"):
        write_half(path, OSError(errno.ENOSPC, "No space left on device"))
    assert read_json(path) == {"kept": 1}


def test_a_missing_or_damaged_json_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with raises_naming(UserError, str(path), "does not exist", "check the path"):
        read_json(path)
    path.write_text('{"a": ')
    with raises_naming(UserError, str(path), "not valid JSON", "restore it"):
        read_json(path)
    path.write_text("[1]")
    with raises_naming(UserError, str(path), "list", "restore it"):
        read_json(path)
