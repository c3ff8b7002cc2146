"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from latentddm.engine.atomic_io import atomic_path, read_json, write_json, write_text
from latentddm.engine.errors import JobError, UserError


def write_half(path: Path, error: Exception) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
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


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"kept": 1})
    with pytest.raises(JobError, match=r"disk is full while writing .*a\.json"):
        write_half(path, OSError(errno.ENOSPC, "No space left on device"))
    assert read_json(path) == {"kept": 1}


def test_a_torn_or_missing_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match="does not exist"):
        read_json(path)
    path.write_text('{"a": ')
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match="not a JSON object"):
        read_json(path)
