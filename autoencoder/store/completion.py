"""The folder of a store in the making: its plan, its temporary files, its manifest."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from autoencoder.store.locations import read_manifest
from autoencoder.store.manifest import MANIFEST_NAME, Manifest
from autoencoder.store.plan import EncodePlan, check_same_plan
from autoencoder.store.shard import RECORDS, read_record
from autoencoder.store.statistics import ChannelStatistics
from latentddm.engine.atomic_io import (
    TEMPORARY_SUFFIX,
    make_folder,
    read_json,
    remove_leftovers,
    size_problem,
    write_bytes,
)
from latentddm.engine.errors import JobError, UserError

PLAN_NAME = "plan.json"
_PACKAGES = ("latentddm", "torch", "diffusers", "numpy", "pillow")


def plan_of_store(folder: Path) -> EncodePlan:
    """The plan in the manifest of a store or, if that is damaged, in the records of its encoding.

    UserError for an unfinished store, or for none; JobError for a damaged manifest without records.
    """
    try:
        return read_manifest(folder).plan
    except JobError as error:
        plan = begun_plan(folder)
        if plan is None:
            raise JobError(
                f"{error.args[0].rpartition('; ')[0]}, and cannot be made again without "
                f"{folder / RECORDS}; restore it from a copy, or encode into another folder."
            ) from None
        return plan


def found_plan(folder: Path, plan: EncodePlan) -> EncodePlan | None:
    """The plan of the store in `folder`, finished or begun; None for an empty or a missing folder.

    UserError for a folder with other files or with another plan than `plan`.
    """
    finished = (folder / MANIFEST_NAME).exists()
    found = plan_of_store(folder) if finished else begun_plan(folder)
    if found is not None:
        check_same_plan(found.to_json(), plan.to_json(), str(folder))
        return found
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder for the store.")
    others = sorted(
        path.name
        for path in (folder.iterdir() if folder.exists() else ())
        if path.name != RECORDS and not path.name.endswith(TEMPORARY_SUFFIX)
    )
    if others:
        raise UserError(
            f"{folder} holds {others[0]} and is not a latent store; give an empty folder."
        )
    return None


def prepare_folder(folder: Path, plan: EncodePlan) -> EncodePlan:
    """Write `plan` into the records of a folder without one; returns the plan in the folder.

    UserError for a folder with other files or with another plan.
    """
    plan = found_plan(folder, plan) or plan
    make_folder(folder / RECORDS)
    text = json.dumps(plan.to_json(), indent=2, ensure_ascii=False) + "\n"
    _write_alike(folder / RECORDS / PLAN_NAME, text.encode("utf-8", "backslashreplace"))
    return plan


def finished_manifest(folder: Path, plan: EncodePlan) -> Manifest | None:
    """The manifest of a store of `plan` in which nothing is left to encode; None for any other.

    Its shards have their sizes and, if there are records of the encoding, are those of the records.
    UserError as from `found_plan`.
    """
    if found_plan(folder, plan) is None or not (folder / MANIFEST_NAME).exists():
        return None
    try:
        manifest = read_manifest(folder)
    except JobError:  # made again from the records
        return None
    for number, shard in enumerate(manifest.shards):
        if size_problem(folder / shard.name, shard.bytes) is not None:
            return None
        if (folder / RECORDS).is_dir():
            record = read_record(folder, number)
            if record is None or record.entry != shard:
                return None
    return manifest


def complete_store(folder: Path, plan: EncodePlan) -> Manifest | None:
    """Write and return the manifest once every shard is finished; None before.

    Safe for any number of processes at once: all write the same bytes.
    """
    records = []
    for number in range(plan.shards):
        record = read_record(folder, number)
        if record is None:
            return None
        records.append(record)
    unreadable = tuple(image for record in records for image in record.unreadable)
    if not any(record.entry.samples for record in records):
        raise JobError(
            f"None of the {len(unreadable)} images of {plan.source['name']} can be read (the "
            f"first, {unreadable[0].key}: {unreadable[0].reason}); give other images."
        )
    parts = (record.statistics for record in records)
    statistics = ChannelStatistics.merged(parts, plan.layout.shape[0])
    manifest = Manifest(
        plan=plan,
        shards=tuple(record.entry for record in records),
        mean=statistics.mean,
        std=statistics.std,
        labelled=sum(record.labelled for record in records),
        unreadable=unreadable,
        software=software_versions(),
    )
    _write_alike(folder / MANIFEST_NAME, manifest.to_bytes())
    remove_leftovers(folder)
    remove_leftovers(folder / RECORDS)
    return manifest


def software_versions() -> dict[str, str]:
    """The versions of packages, recorded for information, not a part of the plan."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def begun_plan(folder: Path) -> EncodePlan | None:
    """The plan of an encoding in `folder`; None without one."""
    path = folder / RECORDS / PLAN_NAME
    if not path.exists():
        return None
    try:
        return EncodePlan.from_json(read_json(path))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete {folder} and encode again.") from None


def _write_alike(path: Path, data: bytes) -> None:
    """Write a file that other processes may write at the same time, with the same bytes."""
    try:
        if not path.exists() or path.read_bytes() != data:
            write_bytes(path, data)
    except JobError:
        # Another process may have completed the file and removed the temporary one of this.
        if not path.exists() or path.read_bytes() != data:
            raise
