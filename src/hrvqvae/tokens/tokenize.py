"""Encode images to a folder of shards of codes; a second call continues a stopped call.

The order of the images decides which images a shard holds, so one machine and a Ray cluster write
the same files. A finished shard is never written again; an unfinished shard is started over.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
from collections import Counter
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
from hrvqvae.checkpoints.folder import run_folder
from hrvqvae.checkpoints.run import Run
from hrvqvae.checkpoints.storage import weights_digest
from hrvqvae.compression.decoder_search import open_encoder
from hrvqvae.config import Grid, to_dict
from hrvqvae.data.batches import explain_worker_errors, open_loader
from hrvqvae.data.images import Pixels, decode_image
from hrvqvae.data.loading import check_labels, open_whole
from hrvqvae.data.sources import Source, decode_name, encode_names
from hrvqvae.data.sources.parquet import ParquetSource
from hrvqvae.tokens.shards import FORMAT, MOST_VALUES, PREFIX, SUFFIX, Plan, open_shards
from hrvqvae.utils.errors import InputError, explain_write_errors
from hrvqvae.utils.grouping import group_by_size
from hrvqvae.utils.locks import lock_folder
from hrvqvae.utils.outputs import remove_temporaries, replace_file, write_atomic
from hrvqvae.utils.progress import Advance, note, task
from hrvqvae.version import __version__

BROKEN = "_broken.jsonl"
SHARD_SIZE = 10_000
# rows of a row group at most; codes that end a row group sooner
_GROUP_ROWS = 1_000
_GROUP_CODES = 1 << 24
# images and pixels of a chunk, which a worker decodes at a time
_MAX_CHUNK = 256
_MAX_CHUNK_PIXELS = 1 << 20
_MAX_PIXELS = {
    "cpu": 1 << 14,
    "cuda": 1 << 22,
}  # per call of the model; few on a CPU: activations stay in its cache
Row = tuple[
    int, Grid, list[NDArray[np.int64]]
]  # index of an image, its height and width, its codes per level
Chunk = tuple[
    dict[int, Pixels], dict[str, str], list[str]
]  # images by index, errors by key, losses of conversions


@dataclass(frozen=True)
class KeyedImages:
    """Images by their keys, which are their names in the source: sorted, but in row order if they
    are of Parquet.
    """

    source: Source
    keys: NDArray[np.bytes_]  # (N,) unique
    rows: NDArray[np.int64]  # (N,) rows of the images in the source
    labels: (
        pa.Array
    )  # class names, or numbers where classes have no names; null for an image without a label
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
        """Return a digest of the contents of images, except images whose keys are in `broken`."""
        return self.source.digest(
            self.rows[[index for index in indices if self.key(index) not in broken]]
        )


def load_keyed_images(path: Path) -> KeyedImages:
    """Return all images of a path (`open_whole`), with their names as keys; bytes that are not
    UTF-8 are escaped.

    Raises InputError if there is no image, two images have the same key, or a label is the index of
    no class name.
    """
    source = open_whole(path.absolute())
    check_labels(source)
    names = [
        source.name(row).encode(errors="backslashreplace").decode() for row in range(len(source))
    ]
    classes = source.class_names
    stored: Sequence[Any] = [None] * len(names) if source.labels is None else source.labels.tolist()
    labels = [classes[label] if classes else label for label in stored]
    classes = classes or tuple(sorted({label for label in labels if isinstance(label, str)}))
    rows = sorted(range(len(names)), key=names.__getitem__)
    for row, next_row in itertools.pairwise(rows):
        if names[row] == names[next_row]:
            raise InputError(
                f"{path} has two images named {names[row]}; give every image a different name"
            )
    if isinstance(
        source, ParquetSource
    ):  # a row group is read as a whole, so its images stay together
        rows.sort()
    labels_type = pa.int64() if isinstance(labels[0], int) else pa.string()
    sorted_labels = pa.array([labels[row] for row in rows], labels_type)
    return KeyedImages(
        source, encode_names(names[row] for row in rows), np.array(rows), sorted_labels, classes
    )


class _ChunkReader(Dataset[Chunk]):
    """Decodes chunks of images, which are lists of indices."""

    def __init__(
        self, images: KeyedImages, channels: int, size: Grid | None, max_pixels: int
    ) -> None:
        self.images = images
        self.channels = channels
        self.size = size
        self.max_pixels = max_pixels

    def __getitem__(self, indices: Sequence[int]) -> Chunk:
        decoded = dict[int, Pixels]()
        broken = dict[str, str]()
        losses = list[str]()
        source = self.images.source
        for index in indices:
            row = int(self.images.rows[index])
            where = source.where(row)
            try:
                open_row = partial(source.open, row)
                decoded[index], lost = decode_image(
                    open_row, self.channels, self.max_pixels, self.size, name=where
                )
                losses += [lost] if lost else []
            except InputError as error:  # drop paths and addresses, which differ by machine
                broken[self.images.key(index)] = (
                    str(error).removeprefix(where).partition(" (")[0].strip(" :")
                )
        return decoded, broken, losses


class Tokenizer:
    """Encodes images with a model, and writes shards of their codes."""

    def __init__(
        self,
        model: str,
        images: KeyedImages,
        full_size: bool,
        workers: int | None,
        device: str,
        beam: int | None,
        effort: int = 0,
    ) -> None:
        """Load the model; the arguments are those of `tokenize`. Raises InputError as
        `Run.load`.
        """
        self.options = model, full_size, beam, effort
        self.run = run = Run(model)
        self.model, config = run.load(device, beam)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images = images
        self.device = next(self.model.parameters()).device
        # None: images keep their sizes
        self.size = None if full_size else config.data.image_size
        self.size_field = None if full_size else config.data.size
        self.digest = weights_digest(self.model.state_dict())
        load_entropy_model = partial(run.entropy_model.load, self.digest)
        self._encode_batch = open_encoder(self.model, load_entropy_model, effort=effort)
        self._metadata = {
            "format": FORMAT,
            "model": self.digest,
            "image_size": json.dumps(self.size_field),
            "version": __version__,
            "config": json.dumps(to_dict(without_paths(run.folder_config)), sort_keys=True),
            "classes": json.dumps(list(images.classes)),
        }
        columns = [
            ("key", pa.string()),
            ("label", images.labels.type),
            ("height", pa.int32()),
            ("width", pa.int32()),
        ]
        for level, count in enumerate(
            config.model.num_symbols, start=1
        ):  # the smallest type that fits the codes
            codes = pa.list_(pa.from_numpy_dtype(np.min_scalar_type(count - 1)))
            columns += [
                (f"height_{level}", pa.int32()),
                (f"width_{level}", pa.int32()),
                (f"codes_{level}", codes),
            ]
        self._schema = pa.schema(columns)
        self.workers = config.data.workers if workers is None else workers
        self._chunks = list[Sequence[int]]()  # the samples of the loader; `read` replaces them
        reader = _ChunkReader(images, config.data.channels, self.size, config.data.max_pixels)
        self._loader = open_loader(reader, self._chunks, self.workers, keep_workers=True)

    def _split(self, indices: Sequence[int]) -> list[Sequence[int]]:
        """Divide indices into chunks."""
        count = 1  # of images that keep their size, which may be large
        if self.size is not None:
            count = max(1, min(_MAX_CHUNK, _MAX_CHUNK_PIXELS // math.prod(self.size)))
        return [indices[start : start + count] for start in range(0, len(indices), count)]

    def read(self, shards: Iterable[Sequence[int]]) -> Iterator[Chunk]:
        """Yield the decoded chunks of shards, in order. The worker processes stay for the next
        call: where they are spawned, they would import everything anew.
        """
        self._chunks[:] = [chunk for shard in shards for chunk in self._split(shard)]
        with explain_worker_errors():
            yield from self._loader

    def write(
        self,
        path: Path,
        indices: Sequence[int],
        chunks: Iterator[Chunk] | None = None,
        advance: Advance = lambda _: None,
    ) -> tuple[int, list[str]]:
        """Write a complete shard or none; return its number of images, broken ones included, and
        conversion losses.

        `chunks` yields the decoded chunks of this shard and later shards (default: this shard is
        decoded here). `advance` is called with the number of images of each chunk. Raises OSError
        if the disk is full.
        """
        chunks = self.read([indices]) if chunks is None else chunks
        rows = list[Row]()
        broken = dict[str, str]()
        losses = list[str]()
        with (
            replace_file(path) as temporary,
            pq.ParquetWriter(
                temporary, self._schema, compression="zstd", write_page_checksum=True
            ) as file,
        ):
            for images, errors, lost in itertools.islice(chunks, len(self._split(indices))):
                rows += self._encode(images)
                broken |= errors
                losses += lost

                # Write groups of _GROUP_ROWS images, or sooner if they have many codes.
                num_codes = sum(level.size for *_, levels in rows for level in levels)
                while len(rows) >= (_GROUP_ROWS if num_codes < _GROUP_CODES else 1):
                    self._append_group(file, rows[:_GROUP_ROWS])
                    rows = rows[_GROUP_ROWS:]
                advance(len(images) + len(errors))
            if rows:
                self._append_group(file, rows)
            faults = [{"key": key, "error": error} for key, error in broken.items()]
            content = self.images.content_digest(indices, broken)
            metadata = self._metadata | {"broken": json.dumps(faults), "content": content}
            file.add_key_value_metadata(
                {f"{PREFIX}{name}": value for name, value in metadata.items()}
            )
        return len(indices), losses

    @torch.inference_mode()
    def _encode(self, images: dict[int, Pixels]) -> list[Row]:
        """Encode images, given by index; return their rows, sorted by index."""
        rows = list[Row]()
        indices = list(images)
        sizes = [(pixels.shape[1], pixels.shape[2]) for pixels in images.values()]
        for group in group_by_size(sizes, _MAX_PIXELS.get(self.device.type, _MAX_PIXELS["cpu"])):
            batch = torch.from_numpy(np.stack([images[indices[position]] for position in group]))
            codes = [level.cpu().numpy() for level in self._encode_batch(batch.to(self.device))]
            for position, *levels in zip(group, *codes, strict=True):
                rows.append((indices[position], sizes[position], levels))
        return sorted(rows, key=lambda row: row[0])

    def _append_group(self, file: pq.ParquetWriter, rows: Sequence[Row]) -> None:
        indices, sizes, codes = zip(*rows, strict=True)
        keys = [self.images.key(index) for index in indices]
        labels = self.images.labels.take(pa.array(indices))
        values = [keys, labels.to_pylist(), *(list(side) for side in zip(*sizes, strict=True))]
        for level in zip(*codes, strict=True):
            values += [list(side) for side in zip(*(grid.shape for grid in level), strict=True)]
            values.append([grid.ravel() for grid in level])
        if (most := sum(grid.size for image in codes for grid in image)) > MOST_VALUES:
            raise InputError(
                f"{keys[0]} and what is read with it have {most:,} codes, too many for a shard:"
                " shrink it"
            )
        arrays = [
            pa.array(column, field.type) for column, field in zip(values, self._schema, strict=True)
        ]
        file.write_table(
            pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=len(rows)
        )


@dataclass(frozen=True)
class Tokenized:
    """Numbers of images and shards in a folder of shards."""

    images: int  # images in shards
    broken: int  # images that could not be read; they are in no shard
    shards: int
    added: int  # images that this call encoded


def tokenize(
    model: str,
    source: Path,
    out: Path,
    *,
    shard_size: int | None = None,
    full_size: bool = False,
    workers: int | None = None,
    device: str = "cpu",
    engine: Literal["local", "ray"] = "local",
    retry_broken: bool = False,
    beam: int | None = None,
    effort: int = 0,
) -> Tokenized:
    """Write the codes of images to a folder of shards; continue if an earlier call was stopped.

    Args:
        model: a run, or the name of a model inside the package.
        source: a folder of images, a list of images, tars, Parquet files or arrays
            (`load_keyed_images`).
        shard_size: images per shard; None takes the size that the folder was begun with, or 10,000.
        full_size: encode images at their own size (default: crop to a square and resize as in
            training).
        workers: processes per model that decode images; None takes `data.workers` of the model.
        engine: "local", or "ray" to distribute the shards over a Ray cluster, whose machines all
            see the same paths.
        beam: paths that the model's search keeps at each level; None keeps as many as in training.
        effort: as for `Model.encode`.

    Raises:
        InputError: the model, source or images are missing; `out` is in use, can't be written, or
            was begun with another model, other images or other options.
        DamagedFileError: a shard of the folder is damaged.
    """
    if run_folder(model) == Path(model):
        model = str(Path(model).absolute())  # processes of Ray have another working folder
    images = load_keyed_images(source)
    tokenizer = Tokenizer(model, images, full_size, workers, device, beam, effort)
    with explain_write_errors(out, "; run the same command again to go on"), lock_folder(out):
        remove_temporaries(out)
        existing = Plan.read(out)
        plan = Plan(
            model=tokenizer.digest,
            image_size=tokenizer.size_field,
            keys=len(images.keys),
            keys_digest=images.digest(),
            shard_size=shard_size or (existing.shard_size if existing else SHARD_SIZE),
            beam=beam,
            effort=effort,
        )
        plan.write_or_compare(out)
        tokenizer.run.keep_state()  # the shards stay readable after further training
        return _write_missing(tokenizer, plan, out, engine == "ray", retry_broken)


def _write_missing(
    tokenizer: Tokenizer, plan: Plan, out: Path, ray: bool, retry: bool
) -> Tokenized:
    """Write the missing shards, and with `retry` further shards of the images that were broken
    before.
    """
    _, count_before, broken = _read_existing(out, plan, tokenizer.images)
    planned = {out / name: indices for name, indices in plan.shards.items()}
    missing: dict[Path, Sequence[int]] = {
        path: indices for path, indices in planned.items() if not path.is_file()
    }

    # Images that were broken go to further shards, retry-*.
    retried = list[int]()
    if retry:
        retried = [index for index in range(plan.keys) if tokenizer.images.key(index) in broken]
    retry_paths = (out / f"retry-{index:06d}{SUFFIX}" for index in itertools.count())
    free_paths = (path for path in retry_paths if not path.exists())
    for start in range(0, len(retried), plan.shard_size):
        missing[next(free_paths)] = retried[start : start + plan.shard_size]

    losses = Counter[str]()
    with task("tokenize", plan.keys, done=count_before + len(broken) - len(retried)) as advance:
        chunks = tokenizer.read(missing.values())
        written = (
            tokenizer.write(path, indices, chunks, advance) for path, indices in missing.items()
        )
        for _, losses_of_shard in _write_on_ray(tokenizer, missing, advance) if ray else written:
            losses.update(losses_of_shard)
    for path in missing.keys() - planned.keys():
        if not pq.read_metadata(path).num_rows:
            path.unlink()
    shards, count, broken = _read_existing(out, plan, tokenizer.images)
    if broken:
        lines = [
            json.dumps({"key": key, "error": broken[key]}, ensure_ascii=False) + "\n"
            for key in sorted(broken)
        ]
        write_atomic(out / BROKEN, "".join(lines).encode())
        note(
            f"broken images left out: {len(broken):,} of {plan.keys:,}, listed in {out / BROKEN}:"
            f" {lines[0].strip()}"
        )
    else:
        (out / BROKEN).unlink(missing_ok=True)
    if losses:
        kinds = "; ".join(f"{count:,} {loss}" for loss, count in sorted(losses.items()))
        note(f"images converted: {losses.total():,} ({kinds})")
    return Tokenized(count, len(broken), shards, count - count_before)


def _read_existing(out: Path, plan: Plan, images: KeyedImages) -> tuple[int, int, dict[str, str]]:
    """Return the number of shards in a folder, the number of their images, and the errors of broken
    images by key.
    """
    retries = sorted(out.glob(f"retry-*{SUFFIX}"))
    planned = {
        path: indices for name, indices in plan.shards.items() if (path := out / name).is_file()
    }
    if not (planned or retries):
        return 0, 0, {}
    shards = open_shards([*planned, *retries])
    if shards.model != plan.model:
        raise InputError(f"{out} holds shards of another model ({shards.model[:12]}); delete them")
    for content, (path, indices) in zip(shards.content_digests, planned.items(), strict=False):
        if content != images.content_digest(indices, shards.broken):
            raise InputError(
                f"{path} was made of other images of the same names; choose another folder, or"
                " delete the file"
            )
    repaired = {
        key for rows in replace(shards, paths=tuple(retries)).read_rows(0) for key in rows.keys
    }
    broken = {key: error for key, error in shards.broken.items() if key not in repaired}
    return len(shards.paths), shards.count, broken


def _write_on_ray(
    tokenizer: Tokenizer, shards: dict[Path, Sequence[int]], advance: Advance
) -> Iterator[tuple[int, list[str]]]:
    """Write shards on the cluster of RAY_ADDRESS, or else on this machine; yield the results of
    `Tokenizer.write`.
    """
    if not shards:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads both when it is imported
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    from ray.util import ActorPool

    logging.getLogger("ray").setLevel(logging.ERROR)
    initialized_here = not ray.is_initialized()
    if initialized_here:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus = int(resources.get("CPU", 0))
        gpus = int(resources.get("GPU", 0))

        # As many actors as work at the same time: one per GPU with its workers, or one per core.
        on_gpu = tokenizer.device.type == "cuda" and gpus > 0
        workers = 0
        max_actors = cpus
        if on_gpu:
            workers = max(0, min(tokenizer.workers, cpus // gpus - 1))
            max_actors = min(gpus, cpus // (1 + workers))
        max_actors = max(1, max_actors)
        actor = ray.remote(num_cpus=1 + workers, num_gpus=int(on_gpu))(Tokenizer)
        model, full_size, *search = tokenizer.options
        images = ray.put(tokenizer.images)
        arguments = (model, images, full_size, workers, tokenizer.device.type, *search)
        actors = [actor.remote(*arguments) for _ in range(min(max_actors, len(shards)))]
        written = ActorPool(actors).map_unordered(
            lambda worker, shard: worker.write.remote(shard[0].resolve(), shard[1]),
            list(shards.items()),
        )
        for count, losses in written:
            advance(count)
            yield count, losses
    except ray.exceptions.RayError as error:
        # The reason is at the end of the text.
        reason = " ".join(str(getattr(error, "cause", error)).split())[-200:]
        raise InputError(
            f"Ray stopped ({reason}); finished shards stay; run the same command again to go on"
        ) from error
    finally:
        if initialized_here:
            ray.shutdown()
