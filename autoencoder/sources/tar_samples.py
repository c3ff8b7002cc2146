"""The samples of a tar shard: its members grouped by base name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from autoencoder.sources.formats import image_suffixes, is_image
from autoencoder.sources.naming import is_hidden, key_of
from autoencoder.sources.tar_members import Member
from latentddm.engine.errors import JobError, UserError

SampleKeys = Literal["webdataset", "whole"]
"""The end of a base name: the first dot, as in webdataset, or the last one."""
ABSENT = Member("", 0, -2)


class Sample(NamedTuple):
    """An image, ABSENT without one, and its label; key: that of the name of the image member."""

    key: str
    image: Member
    cls: Member
    json: Member


def group_members(shard: Path, members: list[Member], sample_keys: SampleKeys) -> list[Sample]:
    """A shard's members grouped by base name, in the order of the first member of each."""
    groups: dict[str, dict[str, Member]] = {}
    for member in members:
        name = member.name.removeprefix("./")
        if is_hidden(name):
            continue
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        if sample_keys == "whole" and extension:
            stem, _, extension = base.rpartition(".")
        group = groups.setdefault(folder + slash + stem, {})
        if extension.lower() in group:
            raise JobError(f"{shard} holds {name} twice; write the shard again.")
        group[extension.lower()] = member._replace(name=name)
    found = []
    for base, group in groups.items():
        image = _image_of(shard, base, group)
        labels = group.get("cls", ABSENT), group.get("json", ABSENT)
        if image is not ABSENT or labels != (ABSENT, ABSENT):
            found.append(Sample(key_of(image.name or base), image, *labels))
    return found


def _image_of(shard: Path, base: str, group: dict[str, Member]) -> Member:
    images = {extension: group[extension] for extension in group if is_image(f"x.{extension}")}
    # of a.jpg and a.mask.png, a.jpg is the image
    plain = [images[extension] for extension in images if "." + extension in image_suffixes()]
    choice = plain or list(images.values())
    if len(choice) > 1:
        names = ", ".join(member.name for member in choice)
        raise UserError(
            f"{shard} holds several images in the sample {base} ({names}): in webdataset the name "
            "of a sample ends at the first dot; give --keys whole (in a config keys: whole) "
            "for one sample per image, its name up to the last dot, or write one image per sample."
        )
    return choice[0] if choice else ABSENT


def unique_keys(shards: list[Path], samples: list[list[Sample]]) -> list[str]:
    """The keys of the samples of all shards, with the names of the shards if a key occurs twice."""
    keys = [sample.key for group in samples for sample in group]
    if len(set(keys)) == len(keys):
        return keys
    keys = [
        f"{key_of(shard.name)}/{sample.key}"
        for shard, group in zip(shards, samples, strict=True)
        for sample in group
    ]
    if len(set(keys)) < len(keys):
        raise UserError("Two tar shards share file name and members; give each shard once.")
    return keys
