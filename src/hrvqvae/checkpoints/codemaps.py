"""The codes of a split: extracted once, held in small integers, memory-mapped from the run folder.

RUN/priors/codes/train-level-1.npy   (N, H_1, W_1) in the smallest unsigned type that holds the symbols of the level
                 train-labels.npy    (N,) int64
                 train.json          what they were made from, the names of the classes, and digests of the arrays

Images are coded without augmentation; each of their moved copies has a folder beside this one. Codes are used again
while the model, the configuration of the data and the images are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from hrvqvae import distributed
from hrvqvae.config import Config, to_dict
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.image_sets import make_rng
from hrvqvae.data.loading import load_images, open_images
from hrvqvae.distributed import WHOLE, RankSlice
from hrvqvae.models.base import Autoencoder, Encode
from hrvqvae.utils.errors import InputError, explain_write_errors
from hrvqvae.utils.locks import lock_folder
from hrvqvae.utils.outputs import remove_temporaries, replace_file, write_atomic
from hrvqvae.utils.progress import note, tracked

Move = Callable[[Tensor], Tensor]
_BATCH = 128


@dataclass(frozen=True)
class CodeMaps:
    """Codes of N images."""

    levels: tuple[NDArray[Any], ...]  # (N, H_l, W_l) of each level, coarse first, unsigned
    labels: NDArray[np.int64]  # (N,), zeros where there are no classes
    classes: tuple[str, ...]  # names; may be empty

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[tuple[Tensor, ...], Tensor]:
        """(codes, labels) of some images: int64 (B, H_l, W_l) of each level, and (B,)."""
        codes = tuple(torch.from_numpy(level[indices].astype(np.int64)) for level in self.levels)
        return codes, torch.from_numpy(self.labels[indices])


def moved_copies(flip: bool, shifts: int) -> Iterator[tuple[str, Move | None]]:
    """The copies of the images whose codes are learned from: the folder of its codes, and how the images move.

    The first is the images as they are. Each further one is shifted by its own number of pixels, up to an eighth of a
    side, the border mirrored; with `flip` each is there as its mirror image too.
    """

    def moved(images: Tensor, number: int, mirrored: bool) -> Tensor:
        images = images.flip(3) if mirrored else images
        if not number:
            return images
        reach = [size // 8 for size in images.shape[2:]]
        drawn = make_rng("shift", number).integers(0, [2 * most + 1 for most in reach], (100, 2)).tolist()
        down, right = next((one for one in drawn if one != reach), reach)
        padded = pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="reflect")
        return padded[:, :, down : down + images.shape[2], right : right + images.shape[3]]

    for number in range(shifts + 1):
        name = f"codes-shifted-{number}" if number else "codes"
        yield name, partial(moved, number=number, mirrored=False) if number else None
        if flip:
            yield f"{name}-flipped", partial(moved, number=number, mirrored=True)


@torch.inference_mode()
def extract(
    model: Autoencoder, config: Config, split: str, device: torch.device | None = None, limit: int | None = None,
    part: RankSlice = WHOLE, encode: Encode | None = None, move: Move | None = None,
) -> CodeMaps:  # fmt: skip
    """Codes of the images of a split, in order, in float32; the model ends on the CPU.

    Args:
        limit: so many images, spread evenly over the split.
        part: of these images, for one of several processes.
        encode: used in place of the model's.
        move: applied to the images (B, C, Y, X) before they are coded.
    """
    images = load_images(config.data, split)
    device = device or torch.device("cpu")
    model.to(device)
    encode = encode or model.encode
    kinds = [np.min_scalar_type(symbols - 1) for symbols in config.model.num_symbols]
    levels: list[list[NDArray[Any]]] = [[] for _ in kinds]
    labels = []
    batches = evaluation_batches(images, batch_size=_BATCH, limit=limit, workers=config.data.workers, part=part)
    total = len(part.of(len(images) if limit is None else min(limit, len(images))))
    for batch in tracked(batches, f"codes of the {split} split", total, lambda batch: len(batch.images)):
        labels.append(batch.labels.numpy())
        placed = batch.images.to(device)
        for level, kind, codes in zip(levels, kinds, encode(move(placed) if move else placed), strict=True):
            level.append(codes.cpu().numpy().astype(kind))
    model.cpu()
    if not labels:
        raise InputError(f"no image of the {split} split could be read")
    return CodeMaps(tuple(np.concatenate(level) for level in levels), np.concatenate(labels), images.classes)


def stored_or_extracted(
    folder: Path, model: Autoencoder, model_digest: str, config: Config, split: str,
    device: torch.device | None = None, say: Callable[[str], None] = print, move: Move | None = None,
) -> CodeMaps:  # fmt: skip
    """The codes of a split from the folder; extracted and written there first where they are missing or damaged.

    Another process that extracts them is waited for, with a line by `say`. Processes that train together extract a part
    each. Raises InputError: no image can be read, or the folder can't be written.
    """
    source = distributed.on_rank_zero(lambda: _source(folder, model_digest, config, split))

    def write() -> None:
        shares = distributed.gather_object(
            extract(model, config, split, device, part=distributed.rank_slice(), move=move)
        )
        distributed.on_rank_zero(lambda: _write(folder, split, shares, source))

    return stored_or_written(folder, split, source, config.model.num_symbols, write, say)


def stored_or_written(
    folder: Path, name: str, source: Mapping[str, Any], symbols: Sequence[int], write: Callable[[], None],
    say: Callable[[str], None],
) -> CodeMaps:  # fmt: skip
    """The code maps of that name and source in the folder, which `write`, called in every process, writes if need be.

    Another process that works in the folder is waited for, with a line by `say`.
    """
    with distributed.context_on_rank_zero(lambda: lock_folder(folder, wait=say)):
        if not distributed.on_rank_zero(lambda: read_maps(folder, name, source, symbols) is not None):
            write()
        found = read_maps(folder, name, source, symbols)
    if found is None:
        raise InputError(f"the codes in {folder} can't be read; every process has to see that folder")
    return found


def _write(folder: Path, name: str, shares: Sequence[CodeMaps], source: Mapping[str, Any]) -> None:
    """Write the code maps of several parts, one after the other."""
    arrays = [np.concatenate(parts) for parts in zip(*((*one.levels, one.labels) for one in shares), strict=True)]
    with explain_write_errors(f"the folder of codes {folder}"):
        remove_temporaries(folder)
        (folder / f"{name}.json").unlink(missing_ok=True)
        for path, array in zip(_paths(folder, name, len(arrays) - 1), arrays, strict=True):
            write_array(path, array)
        write_about(folder, name, source, len(arrays) - 1, shares[0].classes)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an .npy file, atomically. Raises OSError."""
    with replace_file(path) as temporary:
        np.save(temporary, array, allow_pickle=False)


def write_about(folder: Path, name: str, source: Mapping[str, Any], levels: int, classes: Sequence[str]) -> None:
    """Write the JSON that makes code maps of arrays that are written. Raises OSError."""
    arrays = _arrays(folder, name, levels)
    about = {
        "source": source, "classes": list(classes), "shapes": [list(array.shape) for array in arrays[:-1]],
        "digests": _digests(arrays, classes),
    }  # fmt: skip
    write_atomic(folder / f"{name}.json", json.dumps(about).encode())


def stored(folder: Path, model_digest: str, config: Config, split: str) -> CodeMaps | None:
    """The codes of a split in the folder, if they are of that model and that data and are whole."""
    return read_maps(folder, split, _source(folder, model_digest, config, split), config.model.num_symbols)


def read_maps(folder: Path, name: str, source: Mapping[str, Any], symbols: Sequence[int]) -> CodeMaps | None:
    """The code maps of that name in a folder, mapped into memory, if they are of that source and are whole."""
    try:
        about = json.loads((folder / f"{name}.json").read_text())
        *levels, labels = arrays = _arrays(folder, name, len(symbols))
        fits = (
            about["source"] == source
            and about["shapes"] == [list(level.shape) for level in levels]
            and [array.dtype for array in arrays] == [*(np.min_scalar_type(number - 1) for number in symbols), np.int64]
        )
        digests = _digests(arrays, about["classes"]) if fits else []  # all is read for them
        whole = fits and about["digests"] in (digests, digests[:-1])  # earlier versions have none of the names
        return CodeMaps(tuple(levels), np.array(labels), tuple(about["classes"])) if whole else None
    except Exception:  # what is damaged raises whatever its reader runs into
        return None


def _source(folder: Path, model_digest: str, config: Config, split: str) -> dict[str, Any]:
    """Return what codes depend on, as it stands in their JSON; of images that are gone, what it says in the folder."""
    ignored = ("root", "workers", "memory_mb")
    fields = {name: value for name, value in to_dict(config.data).items() if name not in ignored}
    try:
        images = open_images(config.data, split).digest()
    except InputError as error:
        try:
            images = str(json.loads((folder / f"{split}.json").read_text())["source"]["images"])
        except (OSError, ValueError, LookupError, TypeError):
            raise error from None
        note(f"the codes in {folder} are used without their images: {error}")
    return {"model": model_digest, "data": json.loads(json.dumps(fields)), "images": images}


def _paths(folder: Path, name: str, levels: int) -> list[Path]:
    return [*(folder / f"{name}-level-{level}.npy" for level in range(1, levels + 1)), folder / f"{name}-labels.npy"]


def _arrays(folder: Path, name: str, levels: int) -> list[NDArray[Any]]:
    return [np.load(path, mmap_mode="r", allow_pickle=False) for path in _paths(folder, name, levels)]


def _digests(arrays: Sequence[NDArray[Any]], classes: Sequence[str]) -> list[str]:
    """Of each array, and of the names of the classes."""
    names = np.frombuffer(json.dumps(list(classes)).encode(), np.uint8)
    contents = [np.ascontiguousarray(array).data for array in (*arrays, names)]
    return [hashlib.blake2b(content, digest_size=16).hexdigest() for content in contents]
