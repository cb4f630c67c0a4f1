"""How the work of a folder of shards is cut: by the sorted keys of the images alone.

Shard i holds the images i * S to (i + 1) * S - 1 in the order of their keys, whoever makes it and whenever. So shards
are the unit of restart, and processes on several machines agree on nothing but the plan, which lies beside the shards.

OUT/_manifest.json        the plan
    part-000000.parquet   the first S images, and so on
    retry-000000.parquet  images that were broken at first and could be read later
    _broken.jsonl         key and error of each image that is in no shard
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.files import write_atomic
from hrvqvae.utils.quantities import counted

SUFFIX = ".parquet"
MANIFEST = "_manifest.json"  # tools that read a folder of Parquet pass over names that begin so
SHARD_SIZE = 10_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a folder of shards is made of.

    Attributes:
        model: digest of the model's weights.
        image_size: height and width that every image is brought to; None keeps each image's own.
        keys: how many images there are.
        keys_digest: of their keys and labels, in order.
        shard_size: images of a shard.
        beam: paths that the search keeps at each level; None keeps as many as in training.
    """

    model: str
    image_size: int | None
    keys: int
    keys_digest: str
    shard_size: int
    beam: int | None = None

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.keys // self.shard_size)

    def images(self, shard: int) -> range:
        """Places of a shard's images in the order of the keys."""
        return range(shard * self.shard_size, min(self.keys, (shard + 1) * self.shard_size))


def part_name(shard: int) -> str:
    """The file of a shard."""
    return f"part-{shard:06d}{SUFFIX}"


def retry_name(number: int) -> str:
    """The file of images that could be read later."""
    return f"retry-{number:06d}{SUFFIX}"


def read_plan(folder: Path) -> Plan | None:
    """The plan of a folder; None where there is none. Raises DamagedFileError."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        values.setdefault("beam", None)  # folders of before there was one
        return Plan(**{one.name: values[one.name] for one in dataclasses.fields(Plan)})
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); begin anew in another folder") from error


def begin(folder: Path, plan: Plan) -> None:
    """Write the plan of a new folder, or see that the folder's own is the same.

    Raises:
        InputError: the folder was begun with another model, other images or otherwise, or holds shards without a plan.
        OSError: the folder can't be written.
    """
    found = read_plan(folder)
    if found is None:
        if any(folder.glob(f"*{SUFFIX}")):
            raise InputError(f"{folder} holds {SUFFIX} files, but no {MANIFEST}; choose another folder")
        write_atomic(folder / MANIFEST, f"{json.dumps(dataclasses.asdict(plan), indent=2)}\n".encode())
        return
    if found.model != plan.model:
        raise InputError(f"{folder} was begun with the model {found.model[:12]}, this one is {plan.model[:12]}{_OTHER}")
    if found.beam != plan.beam:
        there, here = ("no --beam" if one is None else f"--beam {one}" for one in (found.beam, plan.beam))
        raise InputError(f"{folder} was begun with {there}, not with {here}{_OTHER}")
    if found.image_size != plan.image_size:
        there, here = (
            "images at their own sizes" if one is None else f"{one}x{one} pixels"
            for one in (found.image_size, plan.image_size)
        )
        raise InputError(f"{folder} was begun with {there}, not with {here}{_OTHER}")
    if (found.keys, found.keys_digest) != (plan.keys, plan.keys_digest):
        raise InputError(
            f"{folder} was begun with {counted(found.keys, 'image')} of other names or labels than these "
            f"{plan.keys:,}{_OTHER}"
        )
    if found.shard_size != plan.shard_size:
        raise InputError(f"{folder} was begun with --shard-size {found.shard_size}, not {plan.shard_size}{_OTHER}")


_OTHER = "; choose another folder"


def missing(folder: Path, plan: Plan) -> list[int]:
    """Shards that are not there yet."""
    return [shard for shard in range(plan.shards) if not (folder / part_name(shard)).is_file()]


def require_finished(folder: Path) -> None:
    """Raises InputError where a folder has a plan, and not all of its shards."""
    plan = read_plan(folder)
    if plan is None:
        return
    left = missing(folder, plan)
    if left:
        raise InputError(
            f"{folder} lacks {part_name(left[0])}: {plan.shards - len(left):,} of {counted(plan.shards, 'shard')} are "
            "there; run the same hrvqvae tokenize again, which makes the rest"
        )
