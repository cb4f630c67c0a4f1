"""Encode images to a folder of shards of codes; a second call continues a stopped call.

The order of the images decides which images a shard holds, so one machine and a Ray cluster write
the same files. A finished shard is never written again; an unfinished shard is started over.
"""

import hashlib
import itertools
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from hrvqvae.checkpoints.export import without_paths
from hrvqvae.checkpoints.folder import run_folder
from hrvqvae.checkpoints.run import Run
from hrvqvae.compression.decoder_search import open_encoder
from hrvqvae.config import Grid, to_dict
from hrvqvae.data.batches import explain_worker_errors, open_loader
from hrvqvae.data.images import Pixels, decode_image
from hrvqvae.data.loading import check_labels, open_whole
from hrvqvae.data.sources import Source, decode_name, encode_names
from hrvqvae.data.sources.files import FolderSource
from hrvqvae.data.sources.parquet import ParquetSource
from hrvqvae.tokens.shards import (
    FORMAT,
    MOST_VALUES,
    PREFIX,
    SUFFIX,
    Plan,
    level_columns,
    open_shards,
    read_keys,
)
from hrvqvae.utils.errors import (
    InputError,
    expand_home,
    explain_write_errors,
    one_line,
    require,
)
from hrvqvae.utils.grouping import group_by_size, slices
from hrvqvae.utils.locks import lock_folder
from hrvqvae.utils.outputs import remove_temporaries, replace_file, write_atomic
from hrvqvae.utils.progress import Advance, note, task
from hrvqvae.version import __version__

BROKEN = "_broken.jsonl"
SHARD_SIZE = 10_000  # images
# A row group ends after so many rows, or sooner after so many codes.
_GROUP_ROWS = 1_000
_GROUP_CODES = 1 << 24
# A worker decodes at most so many images, and so many pixels, at a time.
_MAX_CHUNK = 256
_MAX_CHUNK_PIXELS = 1 << 20
# Pixels per call of the model. On a CPU they are few, so that activations stay in its cache.
_MAX_PIXELS = {"cpu": 1 << 14, "cuda": 1 << 22}
EncodedImage = dict[str, Any]
"""A row of a shard: its value in each column, by name."""


class DecodedChunk(NamedTuple):
    """Some images of a shard."""

    images: dict[int, Pixels]  # by index
    broken: dict[str, str]  # errors by key
    conversions: list[str]  # what decoding took from images, such as "colour to greyscale"


@dataclass(frozen=True)
class KeyedImages:
    """Images in the order of their keys, which are their names in the source.

    Keys are sorted, but images of Parquet files stay as they are stored.
    """

    source: Source
    keys: NDArray[np.bytes_]  # (N,) unique
    source_rows: NDArray[np.int64]  # (N,) rows of the images in the source
    # class names, or numbers where classes have no names or two have the same name; null for an
    # image without a label
    labels: pa.Array
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
        """Return `Source.digest` of images (their names and sizes, and the last bytes of some of
        their files), except images whose keys are in `broken`.
        """
        readable = [index for index in indices if self.key(index) not in broken]
        return self.source.digest(self.source_rows[readable])


def load_keyed_images(path: Path) -> KeyedImages:
    """Return all images of a path (`open_whole`), with their names as keys; bytes that are not
    UTF-8 are escaped. A note says why no image has a label, if labels are wrong or some are
    missing.

    Raises InputError if there is no image, or two images have the same key.
    """
    absolute = path.absolute()
    try:
        source = open_whole(absolute)
        check_labels(source)
    except InputError as error:
        source = open_whole(absolute, labels=False)
        note(f"encoded without labels: {error}")
    if source.unlabelled:
        note(f"encoded without labels: {source.unlabelled}")
    names = [
        source.name(row).encode(errors="backslashreplace").decode() for row in range(len(source))
    ]

    # The labels of a source are indices of its classes, numbers, or texts and None.
    classes = source.class_names
    labels: list[Any] = [None] * len(names) if source.labels is None else source.labels.tolist()
    if len(set(classes)) == len(classes) > 0:
        labels = [classes[label] for label in labels]
    elif not classes:
        classes = tuple(sorted({label for label in labels if isinstance(label, str)}))
    labels_type = pa.int64() if isinstance(labels[0], int) else pa.string()

    rows = sorted(range(len(names)), key=names.__getitem__)
    for row, next_row in itertools.pairwise(rows):
        if names[row] == names[next_row]:
            raise InputError(
                f"{path} has two images named {names[row]}; give every image a different name"
            )
    if isinstance(source, ParquetSource):  # row groups are read whole: their images stay together
        rows.sort()
    keys = encode_names(names[row] for row in rows)
    sorted_labels = pa.array([labels[row] for row in rows], labels_type)
    return KeyedImages(source, keys, np.array(rows), sorted_labels, classes)


@dataclass(frozen=True)
class _ChunkReader(Dataset[DecodedChunk]):
    """Decodes chunks of images, which are lists of indices."""

    images: KeyedImages
    channels: int
    size: Grid | None
    max_pixels: int

    def __getitem__(self, indices: Sequence[int]) -> DecodedChunk:
        chunk = DecodedChunk({}, {}, [])
        source = self.images.source
        for index in indices:
            row = int(self.images.source_rows[index])
            where = source.where(row)
            open_row = partial(source.open, row)
            try:
                image = decode_image(
                    open_row, self.channels, self.max_pixels, self.size, name=where
                )
            except InputError as error:
                # Drop what differs by machine: the path in front of the reason, and the brackets
                # behind it, which hold Pillow's text with an address in memory.
                reason = str(error).removeprefix(where).partition(" (")[0].strip(" :")
                chunk.broken[self.images.key(index)] = reason
            else:
                chunk.images[index] = image.pixels
                if image.lost:
                    chunk.conversions.append(image.lost)
        return chunk


class Tokenizer:
    """Encodes images with a model, and writes shards of their codes."""

    def __init__(
        self,
        model: str,
        images: KeyedImages,
        *,
        workers: int | None,
        device: str,
        full_size: bool,
        beam: int | None,
        effort: int,
    ) -> None:
        """Load the model; the arguments are those of `tokenize`. Raises InputError as
        `Run.load`.
        """
        # for Ray, whose actors make tokenizers of their own
        self.options = {"model": model, "full_size": full_size, "beam": beam, "effort": effort}
        self.run = run = Run(model)
        self.autoencoder, config = run.load(device, beam)
        # whether version 1.0.0 searched each group of levels alone
        self.beam_changed = False
        if beam is not None:
            quantizer: Any = getattr(config.model, "quantizer", None)  # `load` requires it
            has_groups = quantizer.group_size < quantizer.levels
            self.beam_changed = has_groups and not quantizer.joint_beam
        self.autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images = images
        self.device = next(self.autoencoder.parameters()).device
        # None: images keep their sizes
        self.size = None if full_size else config.data.image_size
        self.size_field = None if full_size else config.data.size  # as plan and metadata have it
        self._encode_batch = open_encoder(self.autoencoder, effort=effort)
        self._metadata = {
            "format": FORMAT,
            "model": run.weights_digest,
            "image_size": json.dumps(self.size_field),
            "version": __version__,
            # config.yaml, because it describes the data and the priors too
            "config": json.dumps(to_dict(without_paths(run.folder_config)), sort_keys=True),
            "classes": json.dumps(list(images.classes)),
        }
        side = pa.int32()
        types = {"key": pa.string(), "label": images.labels.type, "height": side, "width": side}
        for level, count in enumerate(config.model.num_symbols):
            code = pa.from_numpy_dtype(np.min_scalar_type(count - 1))  # the smallest that fits
            types |= level_columns(level, (side, side), pa.list_(code))  # types in place of values
        self._schema = pa.schema(types)
        self.workers = config.data.workers if workers is None else workers
        # The loader iterates over this list. `read` fills it in place, so that the loader and its
        # worker processes stay for the next call: spawned anew, they would import everything anew.
        self._chunks = list[Sequence[int]]()
        reader = _ChunkReader(images, config.data.channels, self.size, config.data.max_pixels)
        self._loader = open_loader(reader, self._chunks, self.workers, keep_workers=True)

    def _split(self, indices: Sequence[int]) -> list[Sequence[int]]:
        """Divide indices into chunks. Images that keep their size may be large: each is alone."""
        count = 1
        if self.size is not None:
            count = max(1, min(_MAX_CHUNK, _MAX_CHUNK_PIXELS // math.prod(self.size)))
        return slices(indices, count)

    def read(self, shards: Iterable[Sequence[int]]) -> Iterator[DecodedChunk]:
        """Yield the decoded chunks of shards, in order."""
        self._chunks[:] = [chunk for shard in shards for chunk in self._split(shard)]
        yield from self._loader

    def write(
        self,
        path: Path,
        indices: Sequence[int],
        chunks: Iterator[DecodedChunk] | None = None,
        advance: Advance = lambda _: None,
    ) -> list[str]:
        """Write a complete shard or none; return the conversions of its images.

        `chunks` yields the decoded chunks of this shard and later shards (default: this shard is
        decoded here). `advance` is called with the number of images of each chunk. Raises OSError
        if the disk is full.
        """
        chunks = self.read([indices]) if chunks is None else chunks
        rows = list[EncodedImage]()
        broken = dict[str, str]()
        conversions = list[str]()
        with (
            replace_file(path) as temporary,
            pq.ParquetWriter(
                temporary, self._schema, compression="zstd", write_page_checksum=True
            ) as file,
        ):
            for chunk in itertools.islice(chunks, len(self._split(indices))):
                rows += self._encode(chunk.images)
                broken |= chunk.broken
                conversions += chunk.conversions
                values = (value for row in rows for value in row.values())
                num_codes = sum(value.size for value in values if isinstance(value, np.ndarray))
                if num_codes > MOST_VALUES:
                    raise InputError(
                        f"{rows[0]['key']} and what is read with it have {num_codes:,} codes, too"
                        " many for a shard: shrink it"
                    )

                # Write full groups, or all rows if they have many codes.
                least = _GROUP_ROWS if num_codes < _GROUP_CODES else 1
                while len(rows) >= least:
                    file.write_table(pa.Table.from_pylist(rows[:_GROUP_ROWS], self._schema))
                    rows = rows[_GROUP_ROWS:]
                advance(len(chunk.images) + len(chunk.broken))
            if rows:
                file.write_table(pa.Table.from_pylist(rows, self._schema))
            faults = [{"key": key, "error": error} for key, error in broken.items()]
            content = self.images.content_digest(indices, broken)
            metadata = self._metadata | {"broken": json.dumps(faults), "content": content}
            file.add_key_value_metadata(
                {f"{PREFIX}{name}": value for name, value in metadata.items()}
            )
        return conversions

    @torch.inference_mode()
    def _encode(self, images: dict[int, Pixels]) -> list[EncodedImage]:
        """Encode images, given by index; return their values by column, sorted by index."""
        rows = {}
        indices = list(images)
        sizes = [(pixels.shape[1], pixels.shape[2]) for pixels in images.values()]
        for group in group_by_size(sizes, _MAX_PIXELS.get(self.device.type, _MAX_PIXELS["cpu"])):
            batch = torch.from_numpy(np.stack([images[indices[place]] for place in group]))
            codes = [level.cpu().numpy() for level in self._encode_batch(batch.to(self.device))]
            for place, *grids in zip(group, *codes, strict=True):
                index = indices[place]
                key = self.images.key(index)
                label = self.images.labels[index].as_py()
                height, width = sizes[place]
                row = {"key": key, "label": label, "height": height, "width": width}
                for level, grid in enumerate(grids):
                    row |= level_columns(level, grid.shape, grid.ravel())
                rows[index] = row
        return [rows[index] for index in sorted(rows)]


@dataclass(frozen=True)
class Tokenized:
    """Numbers of images and shards in a folder of shards."""

    images: int  # images in shards
    broken: int  # images that could not be read; they are in no shard
    shards: int
    added: int  # images that this call encoded


def tokenize(
    model: str,
    source: str | Path,
    out: str | Path,
    *,
    shard_size: int | None,
    full_size: bool,
    workers: int | None,
    device: str,
    engine: Literal["local", "ray"],
    retry_broken: bool,
    beam: int | None,
    effort: int,
) -> Tokenized:
    """Write the codes of images to a folder of shards; continue if an earlier call was stopped.

    Args:
        model: a run, or the name of a model inside the package.
        source: a folder of images, a list of images, tars, Parquet files or arrays
            (`load_keyed_images`).
        out: folder of the shards.
        shard_size: images per shard; None takes the size that the folder was begun with, or 10,000.
        full_size: encode images at their own size (default: crop to a square and resize as in
            training).
        workers: processes per model that decode images; None takes `data.workers` of the model.
        device: as for `hrvqvae.load`.
        engine: "local", or "ray" to distribute the shards over a Ray cluster, whose machines all
            see the same paths.
        retry_broken: try the images again that were broken in earlier calls.
        beam: as for `hrvqvae.load`.
        effort: as for `Model.encode`.

    Raises:
        InputError: the model, source or images are missing; `out` is in use, can't be written, lies
            in a folder of tars, Parquet files or arrays, or was begun with another model, other
            images or other options, or by version 1.0.0 with a beam that searched otherwise; a
            number is out of range.
        DamagedFileError: a shard of the folder is damaged.
    """
    require(shard_size is None or shard_size >= 1, "shard_size", shard_size, "at least 1")
    require(workers is None or workers >= 0, "workers", workers, "at least 0")
    require(engine in ("local", "ray"), "engine", engine, "local or ray")
    out = Path(out)
    if run_folder(model) == Path(model):  # not a model of the package
        # processes of Ray have another working folder
        model = str(expand_home(model).absolute())
    images = load_keyed_images(Path(source))
    if not isinstance(images.source, FolderSource) and _is_read_by(source, out):
        raise InputError(
            f"{out} lies in {source}, where its shards would be read as images; name a folder"
            " outside"
        )
    tokenizer = Tokenizer(
        model,
        images,
        workers=workers,
        device=device,
        full_size=full_size,
        beam=beam,
        effort=effort,
    )
    again = "; run the same command again to go on"
    with (
        explain_worker_errors("--workers"),  # also of a worker that is killed while codes are made
        explain_write_errors(out, again),
        lock_folder(out),
    ):
        remove_temporaries(out)
        existing = Plan.read(out)
        plan = Plan(
            model=tokenizer.run.weights_digest,
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


def _is_read_by(source: str | Path, out: Path) -> bool:
    """Return whether shards in `out` would be among those that a folder or a pattern names."""
    place = Path(source).resolve()
    shard = out.resolve() / f"part-000000{SUFFIX}"
    if not shard.is_relative_to(place):
        is_as_deep = "**" in place.parts or len(shard.parts) == len(place.parts)
        return is_as_deep and fnmatch(str(shard), str(place))
    return not any(part.startswith(".") for part in shard.relative_to(place).parts)


def _write_missing(
    tokenizer: Tokenizer, plan: Plan, out: Path, ray: bool, retry: bool
) -> Tokenized:
    """Write the missing shards, and with `retry` further shards of the images that were broken
    before.
    """
    keys = tokenizer.images.key
    existing = _read_existing(out, plan, tokenizer.images)
    broken = existing.broken
    planned = [(out / name, indices) for name, indices in plan.shards()]
    missing = {
        path: [index for index in indices if keys(index) not in existing.retried]
        for path, indices in planned
        if not path.is_file()
    }

    # Images that were broken go to further shards, retry-*, which take the free numbers.
    retried = []
    if retry:
        finished = [indices for path, indices in planned if path not in missing]
        retried = [index for index in itertools.chain(*finished) if keys(index) in broken]
    retry_paths = (out / f"retry-{index:06d}{SUFFIX}" for index in itertools.count())
    free_paths = (path for path in retry_paths if not path.exists())
    retries = {next(free_paths): indices for indices in slices(retried, plan.shard_size)}

    if (missing or retries) and "1.0.0" in existing.versions and tokenizer.beam_changed:
        raise InputError(
            f"{out} was begun by hrvqvae 1.0.0, whose --beam searched other paths of this model;"
            " choose another folder, or finish this one with version 1.0.0"
        )

    conversions = Counter[str]()
    still_broken = len(broken) - len(retried)  # counted as done
    write = _write_on_ray if ray else _write_here
    with task("tokenize", plan.keys, done=existing.images + still_broken) as advance:
        for shard_conversions in write(tokenizer, missing | retries, advance):
            conversions.update(shard_conversions)
    for path in retries:
        if not pq.read_metadata(path).num_rows:  # all its images are still broken
            path.unlink()

    result = _read_existing(out, plan, tokenizer.images)
    broken = result.broken
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
    if conversions:
        kinds = "; ".join(f"{count:,} {kind}" for kind, count in sorted(conversions.items()))
        note(f"images converted: {conversions.total():,} ({kinds})")
    return Tokenized(result.images, len(broken), result.shards, result.images - existing.images)


class _Existing(NamedTuple):
    """What a folder of shards holds: numbers of shards and images, and more."""

    shards: int = 0
    images: int = 0
    broken: Mapping[str, str] = MappingProxyType({})  # errors by key
    retried: Collection[str] = ()  # keys of the images in retry shards
    versions: Collection[str] = ()  # that wrote the shards


def _read_existing(out: Path, plan: Plan, images: KeyedImages) -> _Existing:
    """Return what a folder of shards holds. Raises InputError if its shards are of another model or
    of other images.
    """
    retries = sorted(out.glob(f"retry-*{SUFFIX}"))
    planned = {out / name: indices for name, indices in plan.shards()}
    finished = {path: indices for path, indices in planned.items() if path.is_file()}
    if not (finished or retries):
        return _Existing()
    shards = open_shards([*finished, *retries])
    if shards.model_digest != plan.model:
        raise InputError(
            f"{out} holds shards of another model ({shards.model_digest[:12]}); delete them"
        )

    # the images of each shard now; a retry shard has a row for each image that was readable, and a
    # shard that was made anew after it leaves these images out. Which images are broken is known
    # from the other shards: a retry shard may name some that a shard made anew has read.
    repaired = dict[str, Path]()
    for path in retries:
        repaired |= dict.fromkeys(read_keys([path]), path)
    unreadable = open_shards([*finished]).broken if finished else {}
    elsewhere = {*unreadable, *repaired}
    contents = {
        path: images.content_digest(indices, elsewhere) for path, indices in finished.items()
    }
    retried = [index for index in range(plan.keys) if images.key(index) in repaired]
    for path in retries:
        indices = [index for index in retried if repaired[images.key(index)] == path]
        contents[path] = images.content_digest(indices, ())
    for path, content in contents.items():
        if shards.content_digests[path] != content:
            raise InputError(
                f"{path} was made of other images of the same names; choose another folder, or"
                " delete the file"
            )
    broken = {key: error for key, error in unreadable.items() if key not in repaired}
    return _Existing(len(shards.paths), shards.count, broken, repaired.keys(), shards.versions)


def _write_here(
    tokenizer: Tokenizer, shards: dict[Path, Sequence[int]], advance: Advance
) -> Iterator[list[str]]:
    """Write shards in this process; yield the results of `Tokenizer.write`."""
    chunks = tokenizer.read(shards.values())
    for path, indices in shards.items():
        yield tokenizer.write(path, indices, chunks, advance)


def _write_on_ray(
    tokenizer: Tokenizer, shards: dict[Path, Sequence[int]], advance: Advance
) -> Iterator[list[str]]:
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
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            cluster = os.environ.get("RAY_ADDRESS", "this machine")
            raise InputError(
                f"Ray can't be started on {cluster} ({one_line(error)}): correct RAY_ADDRESS"
            ) from error
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
        actor = ray.remote(num_cpus=1 + workers, num_gpus=int(on_gpu))(Tokenizer)
        arguments = {
            "images": ray.put(tokenizer.images),
            "workers": workers,
            "device": tokenizer.device.type,
            **tokenizer.options,
        }
        num_actors = min(max(1, max_actors), len(shards))
        actors = [actor.remote(**arguments) for _ in range(num_actors)]
        results = ActorPool(actors).map(
            lambda worker, shard: worker.write.remote(shard[0].resolve(), shard[1]),
            list(shards.items()),
        )
        for indices, conversions in zip(shards.values(), results, strict=True):
            advance(len(indices))
            yield conversions
    except ray.exceptions.RayError as error:
        # The reason is at the end of the text.
        reason = " ".join(str(getattr(error, "cause", error)).split())[-200:]
        raise InputError(
            f"Ray stopped ({reason}); finished shards stay; run the same command again to go on"
        ) from error
    finally:
        if initialized_here:
            ray.shutdown()
