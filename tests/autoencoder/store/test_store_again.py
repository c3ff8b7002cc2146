"""Encoding and importing again into a finished store: nothing is written, nothing is hidden."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from messages import raises_naming

from autoencoder.store import import_latents, verify_store
from autoencoder.store import shard as shard_module
from latentddm.engine.errors import JobError, UserError


def without_records(folder: Path, copy: Path) -> Path:
    """A copy of a store as its readers need it: the manifest and the shards."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("encoding"))
    return copy


def test_a_copied_store_without_records_is_complete(tmp_path: Path, toy: SimpleNamespace) -> None:
    manifest = toy.encode(tmp_path / "store")
    copy = without_records(tmp_path / "store", tmp_path / "copy")
    before, again = toy.folder_bytes(copy), toy.Autoencoder()
    assert toy.encode(copy, autoencoder=again).to_bytes() == manifest.to_bytes()
    assert again.encoded == 0
    assert toy.folder_bytes(copy) == before
    assert not (copy / "encoding").exists()
    with raises_naming(UserError, "copy has another plan", "seed"):
        toy.encode(copy, seed=1)


def test_a_copied_store_with_a_missing_shard_is_encoded_again(
    tmp_path: Path, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.encode(tmp_path / "store")
    copy = without_records(tmp_path / "store", tmp_path / "copy")
    (copy / "latents-000002.tar").unlink()
    write = shard_module.write_json

    def stop(path: Path, value: object) -> None:
        if path.name == "latents-000004.json":
            raise JobError("the disk is full")
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(shard_module, "write_json", stop)
        with pytest.raises(JobError):
            toy.encode(copy)
    again = toy.Autoencoder()
    toy.encode(copy, autoencoder=again)  # the sizes fit; the records say what is left to do
    assert 0 < again.encoded < 200
    assert toy.folder_bytes(copy) == toy.folder_bytes(tmp_path / "store")
    assert verify_store(copy).ok


def test_a_damaged_manifest_without_records_is_not_encoded_over(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    toy.encode(tmp_path / "store")
    copy = without_records(tmp_path / "store", tmp_path / "copy")
    (copy / "manifest.json").write_text("{")
    before = toy.folder_bytes(copy)
    with raises_naming(JobError, "manifest.json is damaged", "encoding", "another folder"):
        toy.encode(copy)
    assert toy.folder_bytes(copy) == before


def test_a_damaged_plan_is_no_loss_to_a_finished_store(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    toy.encode(tmp_path / "store")
    (tmp_path / "store" / "encoding" / "plan.json").write_text("{")
    assert toy.encode(tmp_path / "store").samples == 200


def test_strict_refuses_what_an_earlier_call_left_out(tmp_path: Path, toy: SimpleNamespace) -> None:
    source, folder = toy.Source(40, broken=(5, 11)), tmp_path / "store"
    toy.encode(folder, source)
    with raises_naming(UserError, str(folder / "manifest.json"), "2 unreadable", "--strict"):
        toy.encode(folder, source, strict=True)
    (folder / "manifest.json").unlink()
    with raises_naming(UserError, str(folder / "encoding"), "2 unreadable", "--strict"):
        toy.encode(folder, source, strict=True)
    assert toy.encode(folder, source).samples == 38
    toy.encode(tmp_path / "whole", toy.Source(40))
    assert toy.encode(tmp_path / "whole", toy.Source(40), strict=True).samples == 40


def test_a_url_is_no_place_for_a_store(toy: SimpleNamespace) -> None:
    secret = "https://someone:SECRET@host/store?token=SECRET"
    with raises_naming(UserError, "https://host/store", "this machine") as caught:
        toy.encode(secret)
    assert "SECRET" not in str(caught.value)
    with raises_naming(UserError, "https://host/store", "this machine"):
        import_latents("gone", toy.Autoencoder(), secret)
