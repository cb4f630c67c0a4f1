"""Encode images to a folder of shards of codes; a stopped command goes on when called again.

The sorted keys of the images decide what each shard holds, so one machine and a cluster of Ray write the same files. A
finished shard is never written again; an unfinished shard is made anew.
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
from hrvqvae.data.batches import explain_worker_errors, group_by_size, open_loader
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
_READ_FULL_SIZE = 8  # most images at a time if their sizes differ
_PIXELS = {"cpu": 1 << 14, "cuda": 1 << 22}  # per call of the model: on a CPU its activations stay in the cache
Row = tuple[int, Grid, list[NDArray[np.int64]]]  # index of an image, its height and width, its codes per level
Read = tuple[dict[int, Pixels], dict[str, str], list[str]]  # images by index, errors by key, lossy conversions


@dataclass(frozen=True)
class KeyedImages:
    """Images in the order of their keys."""

    source: Source
    keys: NDArray[np.bytes_]  # sorted, each once
    rows: NDArray[np.int64]  # (N,) in the source
    labels: pa.Array  # class names, or numbers where classes have no names; null for an image without a label
    classes: tuple[str, ...]  # names of the classes, in order

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
        """Return a digest of the content of images, without those whose keys are `broken`."""
        return self.source.digest(self.rows[[index for index in indices if self.key(index) not in broken]])


def load_keyed_images(path: Path) -> KeyedImages:
    """Return the images of a folder, a list, tars, Parquet files or arrays (`open_whole`), with their names as keys.

    Raises InputError if there is no image, or two images have the same key.
    """
    source = open_whole(path.absolute())
    names, classes = [source.name(row) for row in range(len(source))], source.class_names
    stored: Sequence[Any] = [None] * len(names) if source.labels is None else source.labels.tolist()
    labels = [classes[label] if classes else label for label in stored]
    classes = classes or tuple(sorted({label for label in labels if isinstance(label, str)}))
    rows = sorted(range(len(names)), key=names.__getitem__)
    for row, next_row in itertools.pairwise(rows):
        if names[row] == names[next_row]:
            raise InputError(f"{path} has two images named {names[row]}; every image needs a name of its own")
    labels_type = pa.int64() if isinstance(labels[0], int) else pa.string()
    sorted_labels = pa.array([labels[row] for row in rows], labels_type)
    return KeyedImages(source, encode_names(names[row] for row in rows), np.array(rows), sorted_labels, classes)


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
        self.options = model, full_size, beam
        run = Run(model)
        self.model, config = run.load(device, beam)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images, self.device = images, next(self.model.parameters()).device
        self.size = None if full_size else config.data.size
        self.digest = weights_digest(self.model.state_dict())
        self._config, self._symbols = to_dict(without_paths(run.described_config)), config.model.num_symbols
        self.workers = config.data.workers if workers is None else workers
        self._chunks = list[Sequence[int]]()  # what the loader reads when it is iterated
        reader = _Reader(images, config.data.channels, self.size, config.data.max_pixels)
        self._loader = open_loader(reader, self._chunks, self.workers, keep=True)

    def _split(self, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield the indices in lists of as many images as a worker decodes at a time."""
        count = _READ_FULL_SIZE if self.size is None else max(1, min(_READ, _READ_PIXELS // self.size**2))
        return (indices[start : start + count] for start in range(0, len(indices), count))

    def read(self, shards: Iterable[Sequence[int]]) -> Iterator[Read]:
        """Decode the images of shards, shard after shard, in worker processes that stay for the next call."""
        self._chunks[:] = [chunk for shard in shards for chunk in self._split(shard)]
        with explain_worker_errors():
            yield from self._loader

    def write(
        self, path: Path, indices: Sequence[int], reads: Iterator[Read] | None = None,
        advance: Advance = lambda _: None,
    ) -> tuple[int, list[str]]:  # fmt: skip
        """Write a shard whole, or nothing of it; return the number of images, and what conversions lost.

        `reads` has the decoded images of this shard and the next shards; None decodes those of this shard. `advance` is
        called with the number of images that were read. Raises OSError if the disk is full.
        """
        reads = self.read([indices]) if reads is None else reads
        columns = make_schema(self._symbols, self.images.labels.type)
        rows, broken, losses = list[Row](), dict[str, str](), list[str]()
        with (
            replace_file(path) as temporary,
            pq.ParquetWriter(temporary, columns, compression="zstd", write_page_checksum=True) as file,
        ):
            for images, errors, lost in itertools.islice(reads, sum(1 for _ in self._split(indices))):
                rows += self._encode(images)
                broken |= errors
                losses += lost
                while len(rows) >= ROWS:
                    self._append_group(file, rows[:ROWS], columns)
                    rows = rows[ROWS:]
                advance(len(images) + len(errors))
            if rows:
                self._append_group(file, rows, columns)
            content = self.images.content_digest(indices, broken)
            metadata = make_metadata(self.digest, self._config, self.size, self.images.classes, broken, content)
            file.add_key_value_metadata(metadata)
        return len(indices), losses

    @torch.inference_mode()
    def _encode(self, images: dict[int, Pixels]) -> list[Row]:
        """Encode images by index; return their rows in the order of the indices."""
        rows, indices = list[Row](), list(images)
        sizes = [(pixels.shape[1], pixels.shape[2]) for pixels in images.values()]
        for group in group_by_size(sizes, _PIXELS.get(self.device.type, _PIXELS["cpu"])):
            batch = torch.from_numpy(np.stack([images[indices[place]] for place in group]))
            codes = [level.cpu().numpy() for level in self.model.encode(batch.to(self.device))]
            rows += [(indices[place], sizes[place], [*levels]) for place, *levels in zip(group, *codes, strict=True)]
        return sorted(rows, key=lambda row: row[0])

    def _append_group(self, file: pq.ParquetWriter, rows: Sequence[Row], columns: pa.Schema) -> None:
        indices, sizes, codes = zip(*rows, strict=True)
        keys, labels = [self.images.key(index) for index in indices], self.images.labels.take(pa.array(indices))
        values = [keys, labels.to_pylist(), *(list(side) for side in zip(*sizes, strict=True))]
        for level in zip(*codes, strict=True):
            values += [list(side) for side in zip(*(grid.shape for grid in level), strict=True)]
            values.append([grid.ravel() for grid in level])
        arrays = [pa.array(column, field.type) for column, field in zip(values, columns, strict=True)]
        file.write_table(pa.Table.from_arrays(arrays, schema=columns), row_group_size=len(rows))


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
        shard_size: images per shard; None takes that of the folder, or 10,000.
        full_size: encode images at their full size; else crop each to a square and resize it as in training.
        workers: processes that decode images beside each model; None takes `data.workers` of the model.
        engine: "local", or "ray" for Ray, which distributes the shards over its machines.
        retry_broken: try again the images that were broken before.
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
            existing = Plan.read(out)
            plan = Plan(
                model=tokenizer.digest, image_size=tokenizer.size, keys=len(images.keys), keys_digest=images.digest(),
                shard_size=shard_size or (existing.shard_size if existing else SHARD_SIZE), beam=beam,
            )  # fmt: skip
            plan.write_or_compare(out)
            return _write_missing(tokenizer, plan, out, engine == "ray", retry_broken)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{out} can't be written ({reason}); run the same command again to go on") from error


def _write_missing(tokenizer: Tokenizer, plan: Plan, out: Path, ray: bool, retry: bool) -> Tokenized:
    """Write the shards that are missing, and with `retry` shards of the images that were broken before."""
    _, count_before, broken = _read_existing(out, plan, tokenizer.images)
    planned = {out / name: indices for name, indices in plan.shards.items()}
    missing: dict[Path, Sequence[int]] = {path: indices for path, indices in planned.items() if not path.is_file()}
    again = [index for index in range(plan.keys) if tokenizer.images.key(index) in broken] if retry else []
    retries = (out / f"retry-{index:06d}{SUFFIX}" for index in itertools.count())
    free = (path for path in retries if not path.exists())
    missing |= {next(free): again[start : start + plan.shard_size] for start in range(0, len(again), plan.shard_size)}
    lost = list[str]()
    with task("tokenize", plan.keys, done=count_before + len(broken) - len(again)) as advance:
        reads = tokenizer.read(missing.values())
        in_turn = (tokenizer.write(path, indices, reads, advance) for path, indices in missing.items())
        for _, losses in _write_on_ray(tokenizer, missing, advance) if ray else in_turn:
            lost += losses
    for path in missing.keys() - planned.keys():
        if not pq.read_metadata(path).num_rows:
            path.unlink()
    shards, count, broken = _read_existing(out, plan, tokenizer.images)
    if broken:
        lines = [json.dumps({"key": key, "error": broken[key]}, ensure_ascii=False) + "\n" for key in sorted(broken)]
        write_atomic(out / BROKEN, "".join(lines).encode())
        note(f"broken images left out: {len(broken):,} of {plan.keys:,}, listed in {out / BROKEN}: {lines[0].strip()}")
    else:
        (out / BROKEN).unlink(missing_ok=True)
    if lost:
        note(f"images converted: {len(lost):,} ({lost[0]})")
    return Tokenized(count, len(broken), shards, count - count_before)


def _read_existing(out: Path, plan: Plan, images: KeyedImages) -> tuple[int, int, dict[str, str]]:
    """Return the number of shards in a folder, of images in them, and errors of the images that could not be read.

    Raises InputError if a shard is of another model, or of other images.
    """
    retries = sorted(out.glob(f"retry-*{SUFFIX}"))
    planned = {path: indices for name, indices in plan.shards.items() if (path := out / name).is_file()}
    if not (planned or retries):
        return 0, 0, {}
    shards = open_shards([*planned, *retries])
    if shards.model != plan.model:
        raise InputError(f"{out} holds shards of another model ({shards.model[:12]}); delete them")
    for content, (path, indices) in zip(shards.contents, planned.items(), strict=False):
        if content != images.content_digest(indices, shards.broken):
            raise InputError(f"{path} was made of other images of the same names; choose another folder, or delete it")
    mended = {key for rows in replace(shards, paths=tuple(retries)).read_rows(0) for key in rows.keys}
    broken = {key: error for key, error in shards.broken.items() if key not in mended}
    return len(shards.paths), shards.count, broken


def _write_on_ray(
    tokenizer: Tokenizer, shards: dict[Path, Sequence[int]], advance: Advance
) -> Iterator[tuple[int, list[str]]]:
    """Write shards on the cluster that RAY_ADDRESS names, else on this machine.

    Each actor holds the model, on a GPU if the cluster has GPUs. The folder, the images and the model have the same
    paths on every machine. Ray sends no usage statistics, and logs only errors.
    """
    if not shards:
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
        images, device, (model, full_size, beam) = ray.put(tokenizer.images), tokenizer.device.type, tokenizer.options
        actors = [actor.remote(model, images, full_size, workers, device, beam) for _ in range(min(most, len(shards)))]
        written = ActorPool(actors).map_unordered(
            lambda worker, shard: worker.write.remote(shard[0].resolve(), shard[1]), list(shards.items())
        )
        for count, losses in written:
            advance(count)
            yield count, losses
    except ray.exceptions.RayError as error:
        reason = " ".join(str(getattr(error, "cause", error)).split())[-200:]  # the reason is at the end
        raise InputError(f"Ray stopped ({reason}); finished shards stay, and the same command goes on") from error
    finally:
        if begun:
            ray.shutdown()
