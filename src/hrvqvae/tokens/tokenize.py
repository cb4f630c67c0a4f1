"""Images to a folder of shards of codes, in as many goes as it takes.

A shard that is there is never touched again; what was not finished is made anew. So the command may be ended at any
moment, in any way, and run again: no image is in two shards, and none is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from hrvqvae.tokens.coding import Coder, Done, Tokenizer, Unit
from hrvqvae.tokens.images import KeyedImages, keyed_images
from hrvqvae.tokens.plan import SHARD_SIZE, Plan, begin, missing, part_name, read_plan, retry_name
from hrvqvae.tokens.shards import read_about
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.files import locked, remove_temporaries, write_atomic
from hrvqvae.utils.progress import Advance, note, task
from hrvqvae.utils.quantities import counted

BROKEN = "_broken.jsonl"
Engine = Literal["local", "ray"]
Broken = dict[str, str]
"""Key -> why the image could not be read."""


@dataclass(frozen=True)
class Tokenized:
    """What a folder of shards holds.

    Attributes:
        images: in all shards.
        broken: that could not be read, and are in none.
        shards: how many files.
        made: images that this call added.
    """

    images: int
    broken: int
    shards: int
    made: int


def tokenize(
    model: str, source: Path, out: Path, *, shard_size: int | None = None, full_size: bool = False,
    workers: int | None = None, device: str = "cpu", engine: Engine = "local", retry_broken: bool = False,
    beam: int | None = None, say: Callable[[str], None] = note,
) -> Tokenized:  # fmt: skip
    """Write the codes of images to the shards of a folder, or go on where that was stopped.

    Args:
        model: a run, or the name of a model inside the package.
        source: a folder of images, a list of images, tars, Parquet files or arrays (`images.keyed_images`).
        out: the folder of the shards.
        shard_size: images of a shard; None takes the folder's own, or 10,000.
        full_size: code images at their own sizes; else each is cropped to a square and brought to the size of training.
        workers: processes that decode images beside each model; None takes `data.workers` of the model.
        device: of the model: auto, cpu, cuda or cuda:N.
        engine: "local", or "ray" for Ray, which shares the shards out over its machines.
        retry_broken: try images again that were broken before.
        beam: paths that the model's search keeps at each level; None keeps as many as in training.
        say: is told of what is broken, and of conversions.

    Raises:
        InputError: no such model or source, no image, the folder is in use, was begun otherwise or can't be written.
        DamagedFileError: a shard of the folder is damaged.
    """
    coder = Coder(model, device, beam)
    images = keyed_images(source)
    size = None if full_size else coder.config.data.size
    try:
        with locked(out):
            remove_temporaries(out)
            before = read_plan(out)
            chosen = shard_size or (before.shard_size if before else SHARD_SIZE)
            plan = Plan(
                model=coder.digest, image_size=size, keys=len(images), keys_digest=images.digest(), shard_size=chosen,
                beam=beam,
            )  # fmt: skip
            begin(out, plan)
            count = coder.config.data.workers if workers is None else workers
            tokenizer = Tokenizer(coder, images, out, size, images.classes, count)
            return _work(tokenizer, plan, engine, retry_broken, str(source), say)
    except OSError as error:
        raise InputError(
            f"{out} can't be written ({error.strerror or error}); finished shards stay, and the same command goes on"
        ) from error


def _work(
    tokenizer: Tokenizer, plan: Plan, engine: Engine, retry: bool, source: str, say: Callable[[str], None]
) -> Tokenized:
    folder, images = tokenizer.folder, tokenizer.images
    left = missing(folder, plan)
    there = [folder / part_name(shard) for shard in range(plan.shards) if shard not in set(left)]
    found, broken = _found(there, plan)
    mended = _mended(folder, plan)
    made = converted = 0
    first = ""
    units = [Unit(part_name(shard), plan.images(shard)) for shard in left]
    with task("tokenize", len(images), done=found + len(broken)) as advance:
        for done in _engine(tokenizer, engine)(units, advance):
            broken |= done.broken
            made += done.images
            converted, first = converted + done.converted[0], first or done.converted[1]
    broken = {key: error for key, error in broken.items() if key not in mended}
    if retry and broken:
        made += len(again := _retried(tokenizer, broken, plan.shard_size))
        mended |= again
        broken = {key: error for key, error in broken.items() if key not in again}
    _write_broken(folder / BROKEN, broken)
    if converted:
        say(f"images converted: {converted:,} ({first})")
    if len(broken) == len(images):
        say(f"every image of {source} is broken, {next(iter(broken.values()))}")
    elif broken:
        say(f"broken images left out: {len(broken):,} of {len(images):,}, listed in {folder / BROKEN}")
    files = plan.shards + len(list(folder.glob(retry_name(0).replace("000000", "*"))))
    return Tokenized(len(images) - len(broken), len(broken), files, made)


def _engine(tokenizer: Tokenizer, engine: Engine) -> Callable[[Sequence[Unit], Advance], Iterator[Done]]:
    if engine == "local":
        return tokenizer.write
    from hrvqvae.tokens.ray_engine import on_ray

    return on_ray(tokenizer)


def _found(there: Sequence[Path], plan: Plan) -> tuple[int, Broken]:
    """(images, broken ones) of the shards that are there. Raises where one is damaged or of another model."""
    images, broken = 0, Broken()
    for path in there:
        try:
            about, count = read_about(path)
        except DamagedFileError as error:
            raise DamagedFileError(
                f"{path} is damaged or cut short; delete it, and the same command makes it anew"
            ) from error
        if about.model != plan.model:
            raise InputError(f"{path} is of another model ({about.model[:12]}, not {plan.model[:12]}); delete it")
        images += count
        broken |= about.broken
    return images, broken


def _mended(folder: Path, plan: Plan) -> set[str]:
    """Keys of the images that were read later."""
    keys = set[str]()
    for path in sorted(folder.glob(retry_name(0).replace("000000", "*"))):
        _found([path], plan)
        keys |= set(pq.read_table(path, columns=["key"]).column("key").to_pylist())
    return keys


def _retried(tokenizer: Tokenizer, broken: Broken, shard_size: int) -> set[str]:
    """Try broken images again, in shards of their own; -> keys of those that could be read."""
    images, folder = tokenizer.images, tokenizer.folder
    places = _places(images, broken)
    first = len(list(folder.glob(retry_name(0).replace("000000", "*"))))
    mended, number = set[str](), first
    with task("retry", len(places)) as advance:
        for start in range(0, len(places), shard_size):
            some = places[start : start + shard_size]
            for done in tokenizer.write([Unit(retry_name(number), some, if_any=True)], advance):
                mended |= {images.key(place) for place in some} - {key for key, _ in done.broken}
                number += done.images > 0
    return mended


def _places(images: KeyedImages, keys: Broken) -> list[int]:
    return [place for place in range(len(images)) if images.key(place) in keys]


def _write_broken(path: Path, broken: Broken) -> None:
    """A line for each image that is in no shard; no file where there is none."""
    if not broken:
        path.unlink(missing_ok=True)
        return
    lines = [json.dumps({"key": key, "error": broken[key]}, ensure_ascii=False) + "\n" for key in sorted(broken)]
    write_atomic(path, "".join(lines).encode())


def summary(found: Tokenized, out: Path) -> str:
    """What a person is told at the end."""
    shards = counted(found.shards, "shard")
    return f"{counted(found.images, 'image')} in {shards}, {found.made:,} of them made now: {out}"
