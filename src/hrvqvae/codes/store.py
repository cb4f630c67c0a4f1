"""Codes of a set of images as Parquet files, from which priors are trained.

FOLDER/_codes.json          what the codes are of, and the number of files
       part-000000.parquet  one row per image: index, name, label, codes_1, codes_2, ...

A file is written whole or not at all, so a second call goes on after an interruption. Several
machines or processes share the work: each writes some of the files.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from hrvqvae import distributed
from hrvqvae.codes.maps import BATCH_SIZE, CodeMaps, CodeRecorder
from hrvqvae.config import Config, to_dict
from hrvqvae.data.batches import ImageSet, chunk_samples, read_batches
from hrvqvae.data.copies import Augment
from hrvqvae.data.loading import open_images
from hrvqvae.distributed import WHOLE, RankSlice
from hrvqvae.models.base import Autoencoder, Encode
from hrvqvae.utils.device import exact_float32
from hrvqvae.utils.errors import (
    DamagedFileError,
    InputError,
    explain_write_errors,
    require_made_for,
)
from hrvqvae.utils.outputs import remove_temporaries, replace_file, write_atomic
from hrvqvae.utils.progress import Say, note, tracked

FILE_SIZE = 1 << 13  # images per file, a multiple of the batch size
_MANIFEST = "_codes.json"  # readers of Parquet leave out what begins with _
_NO_PIXELS = ("root", "workers", "memory_mb", "on_error")  # fields that change no pixel


def describe_codes(
    images: ImageSet, model: str, config: Config, effort: int = 0, beam: int | None = None
) -> dict[str, Any]:
    """Return what the codes of images are of, as JSON types.

    Args:
        model: Digest of the autoencoder.
        config: Configuration of the autoencoder, with the data of the images.
        effort: As for `Model.encode`; `beam` is as for `hrvqvae.load`.
    """
    data = to_dict(config.data)
    for name in _NO_PIXELS:
        del data[name]
    grids = config.model.geometry.grids(*config.data.image_size)
    about = {
        "autoencoder": model,
        "images": images.digest(),
        "count": len(images),
        "classes": images.classes,
        "data": data,
        "effort": effort,
        "beam": beam,
        "grids": grids,
        "symbols": config.model.num_symbols,
        "files": -(-len(images) // FILE_SIZE),
    }
    return dict(json.loads(json.dumps(about)))


def begin_codes(folder: Path, about: Mapping[str, Any], *, renew: bool = False) -> None:
    """Prepare a folder of codes, new or begun.

    With `renew`, codes that are of something else are deleted. Otherwise they are refused
    (InputError).
    """
    manifest = folder / _MANIFEST
    with explain_write_errors(f"the folder of codes {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(folder)
        begun = _read_manifest(manifest) if manifest.is_file() else None
        if begun == about:
            return
        if begun is not None and not renew:
            changed = [name for name, value in about.items() if begun.get(name) != value]
            raise InputError(
                f"{folder} was begun with another value of {', '.join(changed)}; choose another"
                " folder"
            )
        for path in folder.glob("*.parquet"):
            if not renew:
                raise InputError(f"{path} is there already; choose another folder")
            path.unlink()
        write_atomic(manifest, json.dumps(about).encode())


def write_codes(
    folder: Path,
    about: Mapping[str, Any],
    encode: Encode,
    images: ImageSet,
    device: torch.device | None = None,
    *,
    share: RankSlice = WHOLE,
    augment: Augment | None = None,
) -> int:
    """Write the files that a folder of codes lacks, and return their number.

    Args:
        about: What `describe_codes` returned, as given to `begin_codes`.
        encode: The encoder of an autoencoder on `device`.
        share: Files that this process writes: every `count`-th, from number `rank` on.
        augment: Changes images (B, C, Y, X) before they are encoded.
    """
    paths = {
        folder / f"part-{number:06d}.parquet": number
        for number in range(share.rank, about["files"], share.count)
    }
    missing = [path for path in paths if not path.is_file()]
    total = len(missing) * FILE_SIZE
    for path in tracked(missing, "codes", total, lambda _: FILE_SIZE):
        first = paths[path] * FILE_SIZE
        indices = range(first, min(first + FILE_SIZE, len(images)))
        table = encode_rows(encode, images, indices, about["symbols"], device, augment)
        with explain_write_errors(path), replace_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    return len(missing)


@exact_float32()
@torch.inference_mode()
def encode_rows(
    encode: Encode,
    images: ImageSet,
    indices: Sequence[int],
    symbols: Sequence[int],
    device: torch.device | None = None,
    augment: Augment | None = None,
) -> pa.Table:
    """Return a row for each of these images that can be read, computed in float32."""
    recorder = CodeRecorder(encode, symbols)
    read = list[int]()
    samples = [*chunk_samples(indices, BATCH_SIZE)]
    batches = read_batches(images, samples, images.config.workers)
    for batch_samples, batch in zip(samples, recorder.watch(batches), strict=True):
        if len(batch.images):
            inputs = batch.images.to(device)
            recorder.encode(augment(inputs) if augment else inputs)
        if not batch.broken:
            read += [index for index, _ in batch_samples]
            continue

        # A batch does not say which images are broken: read them again one by one.
        note(f"broken images are left out: {len(batch.broken)}, such as {batch.broken[0]}")
        for sample in batch_samples:
            (single,) = read_batches(images, [[sample]], 0)
            if not single.broken:
                read.append(sample[0])
    if not read:
        raise InputError(f"none of {len(indices)} images can be read, such as {batch.broken[0]}")
    maps = recorder.maps(images.classes)
    columns: dict[str, Any] = {
        "index": np.array(read),
        "name": [_name_image(images, index) for index in read],
        "label": maps.labels,
    }
    for number, grid in enumerate(maps.levels, start=1):
        size = grid.shape[1] * grid.shape[2]
        flat = pa.array(grid.reshape(-1))
        columns[f"codes_{number}"] = pa.FixedSizeListArray.from_arrays(flat, size)
    return pa.table(columns)


def _name_image(images: ImageSet, index: int) -> str:
    """Return the path of an image in its folder; its number in a published set."""
    if images.source is None:
        return str(index)
    return images.source.name(int(images.rows[index]))


def read_codes(folder: Path, model: str) -> CodeMaps:
    """Return the codes in a folder, in the order of the images.

    Raises InputError if the folder is unfinished, damaged, or of another autoencoder than that of
    the digest `model`.
    """
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        raise InputError(f"{folder} is no folder of codes; write one with hrvqvae tokenize")
    about = _read_manifest(manifest)
    require_made_for(folder, about, {"autoencoder": model})
    paths = sorted(folder.glob("*.parquet"))
    if len(paths) != about["files"]:
        raise InputError(
            f"{folder} has {len(paths)} of {about['files']} files: finish it with the same command"
        )
    table = pa.concat_tables(map(_read_table, paths)).sort_by("index")
    levels = []
    for number, (grid, symbols) in enumerate(
        zip(about["grids"], about["symbols"], strict=True), start=1
    ):
        column = table[f"codes_{number}"].combine_chunks()
        codes: NDArray[Any] = column.flatten().to_numpy().reshape(-1, *grid)
        levels.append(codes.astype(np.min_scalar_type(symbols - 1), copy=False))
    labels = table["label"].to_numpy().astype(np.int64)
    return CodeMaps(tuple(levels), labels, tuple(about["classes"]))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise DamagedFileError(
            f"{path} is damaged; delete the folder, and make it again"
        ) from error


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DamagedFileError(f"{path} is damaged; delete it, and make it again") from error


def load_or_make(
    folder: Path,
    model: Autoencoder,
    digest: str,
    config: Config,
    split: str,
    device: torch.device | None = None,
    say: Say = print,
    augment: Augment | None = None,
) -> CodeMaps:
    """Return the codes of the images of a split. They are kept in a folder: those that are missing
    or of something else are made.

    Processes that train together write some of the files each. If any other process works in the
    folder, report this with `say` and wait for it.

    Args:
        digest: Digest of the autoencoder `model`.
        config: Configuration of the autoencoder, with the data of the images.
    """
    images = open_images(config.data, split)
    about = describe_codes(images, digest, config)
    with distributed.lock_on_rank_zero(folder, say):
        distributed.on_rank_zero(partial(begin_codes, folder, about, renew=True))
        share = distributed.rank_slice()
        failure = None
        try:
            model.to(device or "cpu")
            write_codes(folder, about, model.encode, images, device, share=share, augment=augment)
        except InputError as error:
            failure = error
        finally:
            model.cpu()
        distributed.raise_first(failure)  # also waits for the other processes
    return read_codes(folder, digest)


def write_on_ray(
    folder: Path,
    about: Mapping[str, Any],
    open_encoder: Callable[[str], Encode],
    images: ImageSet,
    *,
    gpus: int = 0,
) -> None:
    """Write the codes of images with Ray Data, on the cluster of RAY_ADDRESS or on this machine.

    Every machine must see the images and the folder. An interrupted call does not go on:
    the next one needs another folder (InputError).

    Args:
        open_encoder: Returns an encoder on a device, "cpu" or "cuda".
        gpus: GPUs of an encoder, 0 or 1.
    """
    if any(folder.glob("*.parquet")):
        raise InputError(f"{folder} has files of codes already; choose another folder")
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    arguments = (open_encoder, images, about["symbols"], "cuda" if gpus else "cpu")
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    data = ray.data.range(len(images)).map_batches(
        _RayEncoder,
        fn_constructor_args=arguments,
        batch_size=1024,
        num_gpus=gpus,
        concurrency=(1, max(1, int(resources.get("GPU" if gpus else "CPU", 1)))),
    )
    begin_codes(folder, about)
    data.write_parquet(str(folder.absolute()))
    files = len([*folder.glob("*.parquet")])
    write_atomic(folder / _MANIFEST, json.dumps({**about, "files": files}).encode())


class _RayEncoder:
    """A copy of the encoder in a worker of Ray."""

    def __init__(
        self,
        open_encoder: Callable[[str], Encode],
        images: ImageSet,
        symbols: Sequence[int],
        device: str,
    ) -> None:
        self.encode = open_encoder(device)
        self.images = images
        self.symbols = symbols
        self.device = torch.device(device)

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> pa.Table:
        indices = batch["id"].tolist()
        return encode_rows(self.encode, self.images, indices, self.symbols, self.device)
