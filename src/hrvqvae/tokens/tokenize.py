"""Images to a folder of shards of codes, in as many goes as it takes.

Each shard is a function of the sorted keys of the images, so one machine writes them one after the other, or Ray shares
them out, and the files are the same. A shard that is there is never touched again; what was not finished is made anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from hrvqvae.checkpoints.export import without_paths
from hrvqvae.checkpoints.folder import list_models
from hrvqvae.checkpoints.run import Run
from hrvqvae.checkpoints.storage import weights_digest
from hrvqvae.config import Grid, to_dict
from hrvqvae.data.batches import in_workers, same_size
from hrvqvae.data.images import Pixels, decode_image
from hrvqvae.data.loading import open_whole
from hrvqvae.data.sources import Source, decoded, encoded
from hrvqvae.tokens.shards import SUFFIX, Plan, metadata, open_shards, schema
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.locks import lock_folder
from hrvqvae.utils.outputs import remove_temporaries, replace_file, write_atomic
from hrvqvae.utils.progress import Advance, note, task

BROKEN = "_broken.jsonl"
SHARD_SIZE = 10_000
ROWS = 1_000  # of a row group
_READ, _READ_PIXELS = 256, 1 << 20  # most images, and most of their pixels, that a worker decodes at once
_READ_OWN = 8  # the same, of images whose sizes are not known
_PIXELS = {"cpu": 1 << 14, "cuda": 1 << 22}  # that the model gets at once: on a CPU its activations stay in the cache
Row = tuple[int, Grid, list[NDArray[np.int64]]]  # place of an image, its height and width, its codes of each level
Read = tuple[dict[int, Pixels], dict[str, str], list[str]]  # images by place, broken ones by key, what others lost


# The images


@dataclass(frozen=True)
class KeyedImages:
    """Images in the order of their keys."""

    source: Source
    keys: NDArray[np.bytes_]  # sorted, each once
    rows: NDArray[np.int64]  # (N,) the place of each in the source
    labels: pa.Array  # class names, or numbers where classes have no names; null where an image has none
    classes: tuple[str, ...]  # their names, in order

    def key(self, place: int) -> str:
        """The key of an image."""
        return decoded(self.keys, place)

    def digest(self) -> str:
        """A name for these keys and labels, in this order."""
        state = hashlib.blake2b(digest_size=16)
        for place, label in enumerate(self.labels.to_pylist()):
            state.update(f"{self.key(place)}\0{label!r}\0".encode())
        return state.hexdigest()


def keyed_images(path: Path) -> KeyedImages:
    """The images of a folder, a list, tars, Parquet files or arrays (`data.loading.open_whole`): names are the keys.

    Raises:
        InputError: nothing is there, no image is in it, or two images have one key.
    """
    source = open_whole(path.absolute())
    names, classes = [source.name(row) for row in range(len(source))], source.class_names
    given: Sequence[Any] = [None] * len(names) if source.labels is None else source.labels.tolist()
    labels = [classes[number] if classes else number for number in given]
    classes = classes or tuple(sorted({label for label in labels if isinstance(label, str)}))
    rows = sorted(range(len(names)), key=names.__getitem__)
    for one, other in itertools.pairwise(rows):
        if names[one] == names[other]:
            raise InputError(f"{path} has two images named {names[one]}; every image needs a name of its own")
    kind = pa.int64() if isinstance(labels[0], int) else pa.string()
    in_order = pa.array([labels[row] for row in rows], kind)
    return KeyedImages(source, encoded(names[row] for row in rows), np.array(rows), in_order, classes)


# From images to a shard


class _Reader(Dataset[Read]):
    """Decodes images, some at a time."""

    def __init__(self, images: KeyedImages, channels: int, size: int | None, max_pixels: int) -> None:
        self.images, self.channels, self.size, self.max_pixels = images, channels, size, max_pixels

    def __getitem__(self, places: Sequence[int]) -> Read:
        read, broken, losses = dict[int, Pixels](), dict[str, str](), list[str]()
        source = self.images.source
        for place in places:
            row = int(self.images.rows[place])
            where = source.where(row)
            try:
                opens = partial(source.open, row)
                read[place], lost = decode_image(opens, self.channels, self.max_pixels, self.size, name=where)
                losses += [lost] if lost else []
            except InputError as error:  # the reason is the same on every machine: without paths and addresses
                broken[self.images.key(place)] = str(error).removeprefix(where).partition(" (")[0].strip(" :")
        return read, broken, losses


class Tokenizer:
    """Writes shards of the codes that a model gives images."""

    def __init__(
        self, model: str, images: KeyedImages, full_size: bool, workers: int | None, device: str, beam: int | None
    ) -> None:
        """Takes what `tokenize` does. Raises InputError as `Run.load`."""
        self.of = model, full_size, beam
        run = Run(model)
        self.model, config = run.load(device, beam)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images, self.device = images, next(self.model.parameters()).device
        self.size = None if full_size else config.data.size
        self.digest = weights_digest(self.model.state_dict())
        self._described, self._symbols = to_dict(without_paths(run.described_config)), config.model.num_symbols
        self.workers = config.data.workers if workers is None else workers
        self._reader = _Reader(images, config.data.channels, self.size, config.data.max_pixels)

    def write(self, path: Path, places: Sequence[int], advance: Advance = lambda number: None) -> tuple[int, list[str]]:
        """Write the shard of the images at some places; -> how many they are, what each that lost something lost.

        Raises:
            OSError: the disk is full; nothing is left of the shard.
            InputError: a process that decodes was ended from outside.
        """
        at_once = _READ_OWN if self.size is None else max(1, min(_READ, _READ_PIXELS // self.size**2))
        chunks = (places[start : start + at_once] for start in range(0, len(places), at_once))
        columns = schema(self._symbols, self.images.labels.type)
        rows, unread, losses = list[Row](), dict[str, str](), list[str]()
        with (
            replace_file(path) as temporary,
            pq.ParquetWriter(temporary, columns, compression="zstd", write_page_checksum=True) as file,
        ):
            for read, broken, lost in in_workers(self._reader, chunks, self.workers):
                rows += self._coded(read)
                unread |= broken
                losses += lost
                while len(rows) >= ROWS:
                    self._append(file, rows[:ROWS], columns)
                    rows = rows[ROWS:]
                advance(len(read) + len(broken))
            if rows:
                self._append(file, rows, columns)
            file.add_key_value_metadata(metadata(self.digest, self._described, self.size, self.images.classes, unread))
        return len(places), losses

    @torch.inference_mode()
    def _coded(self, read: dict[int, Pixels]) -> list[Row]:
        """The codes of some images, in the order of their places."""
        found, places = list[Row](), list(read)
        sizes = [(pixels.shape[1], pixels.shape[2]) for pixels in read.values()]
        for some in same_size(sizes, _PIXELS.get(self.device.type, _PIXELS["cpu"])):
            images = torch.from_numpy(np.stack([read[places[number]] for number in some]))
            codes = [level.cpu().numpy() for level in self.model.encode(images.to(self.device))]
            found += [(places[number], sizes[number], [*own]) for number, *own in zip(some, *codes, strict=True)]
        return sorted(found, key=lambda row: row[0])

    def _append(self, file: pq.ParquetWriter, rows: Sequence[Row], columns: pa.Schema) -> None:
        """Append a row group."""
        places, sizes, codes = zip(*rows, strict=True)
        values = [[self.images.key(place) for place in places], self.images.labels.take(pa.array(places)).to_pylist()]
        values += [list(side) for side in zip(*sizes, strict=True)]
        for level in zip(*codes, strict=True):
            values += [list(side) for side in zip(*(one.shape for one in level), strict=True)]
            values.append([one.ravel() for one in level])
        arrays = [pa.array(some, column.type) for some, column in zip(values, columns, strict=True)]
        file.write_table(pa.Table.from_arrays(arrays, schema=columns), row_group_size=len(rows))


# All shards


@dataclass(frozen=True)
class Tokenized:
    """Counts of a folder of shards."""

    images: int
    broken: int  # images that could not be read, and are in no shard
    shards: int
    made: int  # images that this call added


def tokenize(
    model: str, source: Path, out: Path, *, shard_size: int | None = None, full_size: bool = False,
    workers: int | None = None, device: str = "cpu", engine: Literal["local", "ray"] = "local",
    retry_broken: bool = False, beam: int | None = None,
) -> Tokenized:  # fmt: skip
    """Write the codes of images to the shards of a folder, or go on where that was stopped.

    Args:
        model: a run, or the name of a model inside the package.
        source: a folder of images, a list of images, tars, Parquet files or arrays (`keyed_images`).
        out: the folder of the shards.
        shard_size: images of a shard; None takes the folder's own, or 10,000.
        full_size: code images at their own sizes; else each is cropped to a square and brought to the size of training.
        workers: processes that decode images beside each model; None takes `data.workers` of the model.
        engine: "local", or "ray" for Ray, which shares the shards out over its machines.
        retry_broken: try images again that were broken before.
        beam: paths that the model's search keeps at each level; None keeps as many as in training.

    Raises:
        InputError: no such model or source, no image, the folder is in use, was begun otherwise or can't be written.
        DamagedFileError: a shard of the folder is damaged.
    """
    if not (model in list_models() and not Path(model).exists()):
        model = str(Path(model).absolute())  # other processes may work elsewhere
    images = keyed_images(source)
    tokenizer = Tokenizer(model, images, full_size, workers, device, beam)
    try:
        with lock_folder(out):
            remove_temporaries(out)
            before = Plan.of(out)
            plan = Plan(
                model=tokenizer.digest, image_size=tokenizer.size, keys=len(images.keys), keys_digest=images.digest(),
                shard_size=shard_size or (before.shard_size if before else SHARD_SIZE), beam=beam,
            )  # fmt: skip
            plan.begin(out)
            return _finish(tokenizer, plan, out, engine == "ray", retry_broken)
    except OSError as error:
        raise InputError(
            f"{out} can't be written ({error.strerror or error}); finished shards stay, and the same command goes on"
        ) from error


def _finish(tokenizer: Tokenizer, plan: Plan, out: Path, ray: bool, retry: bool) -> Tokenized:
    """Write the shards that are missing, and those of images that were broken if they are to be tried again."""
    _, before, broken = _present(out, plan)
    places = {out / name: some for name, some in plan.parts.items()}
    left: dict[Path, Sequence[int]] = {path: some for path, some in places.items() if not path.is_file()}
    again = [place for place in range(plan.keys) if tokenizer.images.key(place) in broken] if retry else []
    numbered = (out / f"retry-{number:06d}{SUFFIX}" for number in itertools.count())
    free = (path for path in numbered if not path.exists())
    left |= {next(free): again[start : start + plan.shard_size] for start in range(0, len(again), plan.shard_size)}
    lost = list[str]()
    with task("tokenize", plan.keys, done=before + len(broken) - len(again)) as advance:
        in_turn = (tokenizer.write(path, some, advance) for path, some in left.items())
        for _, losses in _on_ray(tokenizer, left, advance) if ray else in_turn:
            lost += losses
    for path in left.keys() - places.keys():
        if not pq.read_metadata(path).num_rows:
            path.unlink()
    shards, images, broken = _present(out, plan)
    if broken:
        lines = [json.dumps({"key": key, "error": broken[key]}, ensure_ascii=False) + "\n" for key in sorted(broken)]
        write_atomic(out / BROKEN, "".join(lines).encode())
        note(f"broken images left out: {len(broken):,} of {plan.keys:,}, listed in {out / BROKEN}: {lines[0].strip()}")
    else:
        (out / BROKEN).unlink(missing_ok=True)
    if lost:
        note(f"images converted: {len(lost):,} ({lost[0]})")
    return Tokenized(images, len(broken), shards, images - before)


def _present(out: Path, plan: Plan) -> tuple[int, int, dict[str, str]]:
    """(shards in a folder, images in them, key -> why of the images that could not be read)."""
    retries = sorted(out.glob(f"retry-*{SUFFIX}"))
    paths = [*(path for name in plan.parts if (path := out / name).is_file()), *retries]
    if not paths:
        return 0, 0, {}
    shards = open_shards(paths)
    if shards.model != plan.model:
        raise InputError(f"{out} holds shards of another model ({shards.model[:12]}); delete them")
    read = {key for rows in replace(shards, paths=tuple(retries)).rows(0) for key in rows.keys}
    return len(paths), shards.count, {key: why for key, why in shards.broken.items() if key not in read}


def _on_ray(tokenizer: Tokenizer, left: dict[Path, Sequence[int]], advance: Advance) -> Iterator[tuple[int, list[str]]]:
    """Write these shards on the cluster that RAY_ADDRESS names, else on this machine.

    Each actor holds the model, on one GPU where the cluster has some. The folder, the images and the model must lie
    under the same paths on every machine. Nothing is reported to Ray's makers, and Ray logs errors alone.
    """
    if not left:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # these are read when ray is imported
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    from ray.util import ActorPool

    logging.getLogger("ray").setLevel(logging.ERROR)
    begun = not ray.is_initialized()
    if begun:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        has = ray.cluster_resources()  # type: ignore[no-untyped-call]
        on_gpu = tokenizer.device.type == "cuda" and has.get("GPU", 0) > 0
        workers = tokenizer.workers if on_gpu else 0
        most = max(1, int(has.get("GPU" if on_gpu else "CPU", 1)))
        actor = ray.remote(num_cpus=1 + workers, num_gpus=int(on_gpu))(Tokenizer)
        images, device, (model, full_size, beam) = ray.put(tokenizer.images), tokenizer.device.type, tokenizer.of
        actors = [actor.remote(model, images, full_size, workers, device, beam) for _ in range(min(most, len(left)))]
        made = ActorPool(actors).map_unordered(
            lambda one, shard: one.write.remote(shard[0].resolve(), shard[1]), list(left.items())
        )
        for done in made:
            advance(done[0])
            yield done
    except ray.exceptions.RayError as error:
        reason = " ".join(str(getattr(error, "cause", error)).split())[-200:]  # what went wrong is said last
        raise InputError(f"Ray stopped ({reason}); finished shards stay, and the same command goes on") from error
    finally:
        if begun:
            ray.shutdown()
