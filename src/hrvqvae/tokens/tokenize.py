"""Encode images to a folder of shards of codes; a stopped command goes on when called again.

The sorted keys of the images decide what each shard holds, so one machine and a cluster of Ray write the same files. A
finished shard is never written again; an unfinished one is made anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
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
from hrvqvae.data.batches import group_by_size, map_in_workers
from hrvqvae.data.images import Pixels, decode_image
from hrvqvae.data.loading import open_whole
from hrvqvae.data.sources import Source, decode_name, encode_names
from hrvqvae.tokens.shards import SUFFIX, Plan, make_metadata, make_schema, open_shards
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.locks import lock_folder
from hrvqvae.utils.outputs import remove_temporaries, replace_file, write_atomic
from hrvqvae.utils.progress import Advance, note, task

BROKEN = "_broken.jsonl"
SHARD_SIZE = 10_000
ROWS = 1_000  # of a row group
_READ, _READ_PIXELS = 256, 1 << 20  # most images, and most pixels, that a worker decodes at a time
_READ_OWN = 8  # most images at a time whose sizes are not known
_PIXELS = {"cpu": 1 << 14, "cuda": 1 << 22}  # per call of the model: on a CPU its activations stay in the cache
Row = tuple[int, Grid, list[NDArray[np.int64]]]  # index of an image, its height and width, its codes per level
Read = tuple[dict[int, Pixels], dict[str, str], list[str]]  # images by index, errors by key, lossy conversions


# The images


@dataclass(frozen=True)
class KeyedImages:
    """Images in the order of their keys."""

    source: Source
    keys: NDArray[np.bytes_]  # sorted, each once
    rows: NDArray[np.int64]  # (N,) in the source
    labels: pa.Array  # class names, or numbers where classes have no names; null for an image without a label
    classes: tuple[str, ...]  # their names, in order

    def key(self, index: int) -> str:
        """Return the key of an image."""
        return decode_name(self.keys, index)

    def digest(self) -> str:
        """Return a digest of the keys and labels, in order."""
        state = hashlib.blake2b(digest_size=16)
        for index, label in enumerate(self.labels.to_pylist()):
            state.update(f"{self.key(index)}\0{label!r}\0".encode())
        return state.hexdigest()

    def content_digest(self, indices: Sequence[int], broken: Collection[str]) -> str:
        """Return a digest of the content of some images, without those whose keys are `broken`."""
        return self.source.digest(self.rows[[index for index in indices if self.key(index) not in broken]])


def load_keyed_images(path: Path) -> KeyedImages:
    """Return the images of a folder, a list, tars, Parquet files or arrays (`open_whole`), with their names as keys.

    Raises:
        InputError: nothing is there, no image is in it, or two images have one key.
    """
    source = open_whole(path.absolute())
    names, classes = [source.name(row) for row in range(len(source))], source.class_names
    stored: Sequence[Any] = [None] * len(names) if source.labels is None else source.labels.tolist()
    labels = [classes[number] if classes else number for number in stored]
    classes = classes or tuple(sorted({label for label in labels if isinstance(label, str)}))
    rows = sorted(range(len(names)), key=names.__getitem__)
    for row, next_row in itertools.pairwise(rows):
        if names[row] == names[next_row]:
            raise InputError(f"{path} has two images named {names[row]}; every image needs a name of its own")
    kind = pa.int64() if isinstance(labels[0], int) else pa.string()
    in_order = pa.array([labels[row] for row in rows], kind)
    return KeyedImages(source, encode_names(names[row] for row in rows), np.array(rows), in_order, classes)


# From images to a shard


class _Reader(Dataset[Read]):
    """Decodes images by lists of their indices."""

    def __init__(self, images: KeyedImages, channels: int, size: int | None, max_pixels: int) -> None:
        self.images, self.channels, self.size, self.max_pixels = images, channels, size, max_pixels

    def __getitem__(self, indices: Sequence[int]) -> Read:
        read, broken, losses = dict[int, Pixels](), dict[str, str](), list[str]()
        source = self.images.source
        for index in indices:
            row = int(self.images.rows[index])
            where = source.where(row)
            try:
                open_row = partial(source.open, row)
                read[index], lost = decode_image(open_row, self.channels, self.max_pixels, self.size, name=where)
                losses += [lost] if lost else []
            except InputError as error:  # the reason is the same on every machine: without paths and addresses
                broken[self.images.key(index)] = str(error).removeprefix(where).partition(" (")[0].strip(" :")
        return read, broken, losses


class Tokenizer:
    """Encodes images with a model, and writes shards of their codes."""

    def __init__(
        self, model: str, images: KeyedImages, full_size: bool, workers: int | None, device: str, beam: int | None
    ) -> None:
        """Load the model; the arguments are those of `tokenize`. Raises InputError as `Run.load`."""
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

    def _split(self, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield the indices in lists of as many images as a worker decodes at a time."""
        count = _READ_OWN if self.size is None else max(1, min(_READ, _READ_PIXELS // self.size**2))
        return (indices[start : start + count] for start in range(0, len(indices), count))

    def read(self, shards: Iterable[Sequence[int]]) -> Iterator[Read]:
        """Decode the images of shards, one shard after the other, in one set of worker processes."""
        return map_in_workers(self._reader, (chunk for shard in shards for chunk in self._split(shard)), self.workers)

    def write(
        self, path: Path, indices: Sequence[int], reads: Iterator[Read] | None = None,
        advance: Advance = lambda number: None,
    ) -> tuple[int, list[str]]:  # fmt: skip
        """Write the shard of some images.

        Args:
            path: the file.
            indices: the images.
            reads: the decoded images of this shard and the next ones; None decodes those of this shard.
            advance: called with the number of images that were read.

        Returns:
            The number of images, and what lossy conversions lost.

        Raises:
            OSError: the disk is full; nothing is left of the shard.
            InputError: a worker process was ended from outside.
        """
        reads = self.read([indices]) if reads is None else reads
        columns = make_schema(self._symbols, self.images.labels.type)
        rows, unread, losses = list[Row](), dict[str, str](), list[str]()
        with (
            replace_file(path) as temporary,
            pq.ParquetWriter(temporary, columns, compression="zstd", write_page_checksum=True) as file,
        ):
            for read, broken, lost in itertools.islice(reads, sum(1 for _ in self._split(indices))):
                rows += self._encode(read)
                unread |= broken
                losses += lost
                while len(rows) >= ROWS:
                    self._append(file, rows[:ROWS], columns)
                    rows = rows[ROWS:]
                advance(len(read) + len(broken))
            if rows:
                self._append(file, rows, columns)
            content = self.images.content_digest(indices, unread)
            about = make_metadata(self.digest, self._described, self.size, self.images.classes, unread, content)
            file.add_key_value_metadata(about)
        return len(indices), losses

    @torch.inference_mode()
    def _encode(self, read: dict[int, Pixels]) -> list[Row]:
        """Encode images; return their rows in the order of their indices."""
        rows, indices = list[Row](), list(read)
        sizes = [(pixels.shape[1], pixels.shape[2]) for pixels in read.values()]
        for batch in group_by_size(sizes, _PIXELS.get(self.device.type, _PIXELS["cpu"])):
            images = torch.from_numpy(np.stack([read[indices[place]] for place in batch]))
            codes = [level.cpu().numpy() for level in self.model.encode(images.to(self.device))]
            rows += [(indices[place], sizes[place], [*levels]) for place, *levels in zip(batch, *codes, strict=True)]
        return sorted(rows, key=lambda row: row[0])

    def _append(self, file: pq.ParquetWriter, rows: Sequence[Row], columns: pa.Schema) -> None:
        """Append a row group."""
        indices, sizes, codes = zip(*rows, strict=True)
        keys, labels = [self.images.key(index) for index in indices], self.images.labels.take(pa.array(indices))
        values = [keys, labels.to_pylist(), *(list(side) for side in zip(*sizes, strict=True))]
        for level in zip(*codes, strict=True):
            values += [list(side) for side in zip(*(grid.shape for grid in level), strict=True)]
            values.append([grid.ravel() for grid in level])
        arrays = [pa.array(column, field.type) for column, field in zip(values, columns, strict=True)]
        file.write_table(pa.Table.from_arrays(arrays, schema=columns), row_group_size=len(rows))


# All shards


@dataclass(frozen=True)
class Tokenized:
    """Counts of a folder of shards."""

    images: int
    broken: int  # images that could not be read, and are in no shard
    shards: int
    added: int  # images that this call added


def tokenize(
    model: str, source: Path, out: Path, *, shard_size: int | None = None, full_size: bool = False,
    workers: int | None = None, device: str = "cpu", engine: Literal["local", "ray"] = "local",
    retry_broken: bool = False, beam: int | None = None,
) -> Tokenized:  # fmt: skip
    """Write the codes of images to the shards of a folder, or go on where that was stopped.

    Args:
        model: a run, or the name of a model inside the package.
        source: a folder of images, a list of images, tars, Parquet files or arrays (`load_keyed_images`).
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
    images = load_keyed_images(source)
    tokenizer = Tokenizer(model, images, full_size, workers, device, beam)
    try:
        with lock_folder(out):
            remove_temporaries(out)
            before = Plan.read(out)
            plan = Plan(
                model=tokenizer.digest, image_size=tokenizer.size, keys=len(images.keys), keys_digest=images.digest(),
                shard_size=shard_size or (before.shard_size if before else SHARD_SIZE), beam=beam,
            )  # fmt: skip
            plan.write_or_compare(out)
            return _write_missing(tokenizer, plan, out, engine == "ray", retry_broken)
    except OSError as error:
        raise InputError(
            f"{out} can't be written ({error.strerror or error}); finished shards stay, and the same command goes on"
        ) from error


def _write_missing(tokenizer: Tokenizer, plan: Plan, out: Path, ray: bool, retry: bool) -> Tokenized:
    """Write the shards that are missing, and with `retry` shards of the images that were broken before."""
    _, before, broken = _read_existing(out, plan, tokenizer.images)
    planned = {out / name: indices for name, indices in plan.parts.items()}
    left: dict[Path, Sequence[int]] = {path: indices for path, indices in planned.items() if not path.is_file()}
    again = [index for index in range(plan.keys) if tokenizer.images.key(index) in broken] if retry else []
    numbered = (out / f"retry-{number:06d}{SUFFIX}" for number in itertools.count())
    free = (path for path in numbered if not path.exists())
    left |= {next(free): again[start : start + plan.shard_size] for start in range(0, len(again), plan.shard_size)}
    lost = list[str]()
    with task("tokenize", plan.keys, done=before + len(broken) - len(again)) as advance:
        reads = tokenizer.read(left.values())
        in_turn = (tokenizer.write(path, indices, reads, advance) for path, indices in left.items())
        for _, losses in _write_on_ray(tokenizer, left, advance) if ray else in_turn:
            lost += losses
    for path in left.keys() - planned.keys():
        if not pq.read_metadata(path).num_rows:
            path.unlink()
    shards, images, broken = _read_existing(out, plan, tokenizer.images)
    if broken:
        lines = [json.dumps({"key": key, "error": broken[key]}, ensure_ascii=False) + "\n" for key in sorted(broken)]
        write_atomic(out / BROKEN, "".join(lines).encode())
        note(f"broken images left out: {len(broken):,} of {plan.keys:,}, listed in {out / BROKEN}: {lines[0].strip()}")
    else:
        (out / BROKEN).unlink(missing_ok=True)
    if lost:
        note(f"images converted: {len(lost):,} ({lost[0]})")
    return Tokenized(images, len(broken), shards, images - before)


def _read_existing(out: Path, plan: Plan, images: KeyedImages) -> tuple[int, int, dict[str, str]]:
    """Return the number of shards in a folder, of images in them, and errors of the images that could not be read.

    Raises:
        InputError: a shard is of another model, or of other images.
    """
    retries = sorted(out.glob(f"retry-*{SUFFIX}"))
    parts = {path: indices for name, indices in plan.parts.items() if (path := out / name).is_file()}
    if not (parts or retries):
        return 0, 0, {}
    shards = open_shards([*parts, *retries])
    if shards.model != plan.model:
        raise InputError(f"{out} holds shards of another model ({shards.model[:12]}); delete them")
    for content, (path, indices) in zip(shards.contents, parts.items(), strict=False):
        if content != images.content_digest(indices, shards.broken):
            raise InputError(f"{path} was made of other images of the same names; choose another folder, or delete it")
    read = {key for rows in replace(shards, paths=tuple(retries)).rows(0) for key in rows.keys}
    return len(shards.paths), shards.count, {key: why for key, why in shards.broken.items() if key not in read}


def _write_on_ray(
    tokenizer: Tokenizer, left: dict[Path, Sequence[int]], advance: Advance
) -> Iterator[tuple[int, list[str]]]:
    """Write shards on the cluster that RAY_ADDRESS names, else on this machine.

    Each actor holds the model, on one GPU if the cluster has GPUs. The folder, the images and the model have the same
    paths on every machine. Ray sends no usage statistics, and logs only errors.
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
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        on_gpu = tokenizer.device.type == "cuda" and resources.get("GPU", 0) > 0
        workers = tokenizer.workers if on_gpu else 0
        most = max(1, int(resources.get("GPU" if on_gpu else "CPU", 1)))
        actor = ray.remote(num_cpus=1 + workers, num_gpus=int(on_gpu))(Tokenizer)
        images, device, (model, full_size, beam) = ray.put(tokenizer.images), tokenizer.device.type, tokenizer.of
        actors = [actor.remote(model, images, full_size, workers, device, beam) for _ in range(min(most, len(left)))]
        written = ActorPool(actors).map_unordered(
            lambda worker, shard: worker.write.remote(shard[0].resolve(), shard[1]), list(left.items())
        )
        for count, losses in written:
            advance(count)
            yield count, losses
    except ray.exceptions.RayError as error:
        reason = " ".join(str(getattr(error, "cause", error)).split())[-200:]  # what went wrong is said last
        raise InputError(f"Ray stopped ({reason}); finished shards stay, and the same command goes on") from error
    finally:
        if begun:
            ray.shutdown()
