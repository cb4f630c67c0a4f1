"""Code maps: the codes of a split as memory-mapped arrays in the run folder.

RUN/priors/codes/train-level-1.npy   (N, H_1, W_1), the smallest unsigned type that holds the
symbols of the level
                 train-labels.npy    (N,) int64
                 train.json          source of the codes, class names, array digests

These are the codes of the images without augmentation. The codes of each augmented copy (see the
module `data.copies`) have a folder beside `codes`. Codes are extracted again if the model, the data
configuration or the images have changed.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae import distributed
from hrvqvae.config import Config, to_dict
from hrvqvae.data.batches import Batch, evaluation_batches, explain_worker_errors
from hrvqvae.data.copies import Augment
from hrvqvae.data.loading import load_images, open_images
from hrvqvae.distributed import WHOLE, RankSlice
from hrvqvae.models.base import Autoencoder, Encode
from hrvqvae.quantize import Codes
from hrvqvae.utils.device import exact_float32
from hrvqvae.utils.errors import InputError, explain_write_errors
from hrvqvae.utils.outputs import remove_temporaries, replace_file, write_atomic
from hrvqvae.utils.progress import Say, note, tracked

WriteArrays = Callable[[Sequence[Path]], Sequence[str]]
"""Writes the codes of each level, coarse first, and then the labels to these paths (.npy); returns
the names of the classes. Codes are prepared in every process and written by rank 0, so preparing
returns such a function.
"""
_BATCH_SIZE = 128


@dataclass(frozen=True)
class CodeMaps:
    """The codes of N images."""

    levels: tuple[NDArray[Any], ...]  # per level, coarse first: unsigned (N, H_l, W_l)
    labels: NDArray[np.int64]  # (N,), zeros if there are no classes
    classes: tuple[str, ...]  # names of the classes; may be empty

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the codes, int64 (B, H_l, W_l) per level, and the labels (B,) of the images with
        these indices.
        """
        codes = tuple(torch.from_numpy(level[indices].astype(np.int64)) for level in self.levels)
        return codes, torch.from_numpy(self.labels[indices])


class CodeRecorder:
    """Keeps the codes and labels of batches. A loop iterates over `watch(batches)`, and calls
    `encode` once per batch.
    """

    def __init__(self, encode: Encode, symbols: Sequence[int]) -> None:
        self._encode = encode
        self._dtypes = [np.min_scalar_type(count - 1) for count in symbols]
        self._codes = list[list[NDArray[Any]]]()  # per batch, then per level
        self._labels = list[NDArray[Any]]()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and keep their labels."""
        for batch in batches:
            self._labels.append(batch.labels.numpy())
            yield batch

    def encode(self, images: Tensor) -> Codes:
        """Return the codes of images, and keep them."""
        codes = self._encode(images)
        arrays = zip(codes, self._dtypes, strict=True)
        self._codes.append([level.cpu().numpy().astype(dtype) for level, dtype in arrays])
        return codes

    def maps(self, classes: tuple[str, ...]) -> CodeMaps:
        """Return the codes of all batches. Raises InputError if there was no batch."""
        if not self._codes:
            raise InputError("no image could be read")
        levels = tuple(np.concatenate(batches) for batches in zip(*self._codes, strict=True))
        return CodeMaps(levels, np.concatenate(self._labels), classes)


@exact_float32()
@explain_worker_errors()
@torch.inference_mode()
def extract_codes(
    model: Autoencoder,
    config: Config,
    split: str,
    device: torch.device | None = None,
    rank_slice: RankSlice = WHOLE,
    augment: Augment | None = None,
) -> CodeMaps:
    """Return the codes of the images of a split, in order, computed in float32. Moves the model to
    the CPU at the end.

    `rank_slice` is the share of the images to encode; `augment` changes images (B, C, Y, X) before
    they are encoded.
    """
    images = load_images(config.data, split)
    device = device or torch.device("cpu")
    model.to(device)
    recorder = CodeRecorder(model.encode, config.model.num_symbols)
    batches = evaluation_batches(
        images, batch_size=_BATCH_SIZE, workers=config.data.workers, rank_slice=rank_slice
    )
    total = len(rank_slice.of(len(images)))
    title = f"codes of the {split} split"
    for batch in tracked(recorder.watch(batches), title, total, lambda batch: len(batch.images)):
        inputs = batch.images.to(device)
        recorder.encode(augment(inputs) if augment else inputs)
    model.cpu()
    return recorder.maps(images.classes)


def load_or_extract(
    folder: Path,
    model: Autoencoder,
    model_digest: str,
    config: Config,
    split: str,
    device: torch.device | None = None,
    say: Say = print,
    augment: Augment | None = None,
) -> CodeMaps:
    """Load the codes of a split from a folder; extract and write them first if they are missing,
    stale or damaged.

    Processes that train together extract a share each. If any other process works in the folder,
    report this with `say` and wait for it.
    """
    source = distributed.on_rank_zero(lambda: describe_source(folder, model_digest, config, split))

    def extract() -> WriteArrays:
        share = extract_codes(model, config, split, device, distributed.rank_slice(), augment)
        shares = distributed.gather_object((*share.levels, share.labels))

        def write_arrays(paths: Sequence[Path]) -> Sequence[str]:
            for path, *arrays in zip(paths, *shares, strict=True):
                write_array(path, np.concatenate(arrays))
            return share.classes

        return write_arrays

    return load_or_write(folder, split, source, config.model.num_symbols, extract, say)


def load_or_write(
    folder: Path,
    name: str,
    source: Mapping[str, Any],
    symbols: Sequence[int],
    prepare: Callable[[], WriteArrays],
    say: Say,
) -> CodeMaps:
    """Load the code maps `name` from a folder; write them first if they are missing, damaged or of
    another source.

    `prepare` is called in every process; `say` is called before waiting for another process that
    works in the folder.
    """
    read = partial(read_maps, folder, name, source, symbols)
    with distributed.lock_on_rank_zero(folder, say):
        # rank 0 decides; then each process maps the files
        if distributed.on_rank_zero(lambda: read() is None):
            write_arrays = prepare()
            write = partial(write_maps, folder, name, source, len(symbols), write_arrays)
            distributed.on_rank_zero(write)
        maps = read()
    if maps is None:
        raise InputError(
            f"the codes in {folder} can't be read; every process has to see that folder"
        )
    return maps


def write_maps(
    folder: Path, name: str, source: Mapping[str, Any], num_levels: int, write_arrays: WriteArrays
) -> None:
    """Write code maps."""
    with explain_write_errors(f"the folder of codes {folder}"):
        remove_temporaries(folder)
        # Without their description the arrays do not count: it is removed first and written last.
        (folder / f"{name}.json").unlink(missing_ok=True)
        paths = array_paths(folder, name, num_levels)
        classes = write_arrays(paths)
        description = _describe_maps(source, _open_arrays(paths), classes)
        write_atomic(folder / f"{name}.json", json.dumps(description).encode())


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an .npy file atomically. Raises OSError."""
    with replace_file(path) as temporary:
        np.save(temporary, array, allow_pickle=False)


def read_maps(
    folder: Path, name: str, source: Mapping[str, Any], symbols: Sequence[int]
) -> CodeMaps | None:
    """Return code maps as memory-mapped arrays; None if they are missing, damaged or of another
    source.
    """
    with suppress(Exception):  # json and numpy raise errors of many types for damaged files
        description = json.loads((folder / f"{name}.json").read_text())
        arrays = _open_arrays(array_paths(folder, name, len(symbols)))
        *levels, labels = arrays
        classes = tuple(description["classes"])
        dtypes = [*(np.min_scalar_type(count - 1) for count in symbols), np.int64]
        if (
            description["source"] == source
            and [array.dtype for array in arrays] == dtypes
            # tested last: it reads every byte
            and description == _describe_maps(source, arrays, classes)
        ):
            return CodeMaps(tuple(levels), np.array(labels), classes)
    return None


def describe_source(folder: Path, model_digest: str, config: Config, split: str) -> dict[str, Any]:
    """Return the digest of the model, the data configuration and the digest of the images, as JSON
    types.

    Without the images the codes still serve: the digest is then that in the folder's description.
    """
    fields = to_dict(config.data)
    for name in ("root", "workers", "memory_mb"):  # change no pixel
        del fields[name]
    try:
        images_digest = open_images(config.data, split).digest()
    except InputError as error:
        try:
            description = json.loads((folder / f"{split}.json").read_text())
            images_digest = str(description["source"]["images"])
        except (OSError, ValueError, LookupError, TypeError):
            raise error from None
        note(f"the codes in {folder} are used without their images: {error}")
    # as it is read back from the file: lists for tuples
    return {"model": model_digest, "data": json.loads(json.dumps(fields)), "images": images_digest}


def array_paths(folder: Path, name: str, num_levels: int) -> list[Path]:
    """Return the files of code maps: one per level, coarse first, then the labels."""
    arrays = [*(f"level-{level}" for level in range(1, num_levels + 1)), "labels"]
    return [folder / f"{name}-{array}.npy" for array in arrays]


def _open_arrays(paths: Sequence[Path]) -> list[NDArray[Any]]:
    return [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]


def _describe_maps(
    source: Mapping[str, Any], arrays: Sequence[NDArray[Any]], classes: Sequence[str]
) -> dict[str, Any]:
    """Return the content of NAME.json, with a digest per array and a digest of the class names."""
    names = np.frombuffer(json.dumps(list(classes)).encode(), np.uint8)
    contents = [np.ascontiguousarray(array).data for array in (*arrays, names)]
    return {
        "source": source,
        "classes": list(classes),
        "shapes": [list(array.shape) for array in arrays[:-1]],
        "digests": [hashlib.blake2b(data, digest_size=16).hexdigest() for data in contents],
    }
