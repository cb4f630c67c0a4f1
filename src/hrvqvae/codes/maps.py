"""Codes of a set of images in memory, and how they are made."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.data.batches import Batch, ImageSet, evaluation_batches
from hrvqvae.data.copies import Augment
from hrvqvae.models.base import Encode
from hrvqvae.quantize import Codes
from hrvqvae.utils.device import exact_float32
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import tracked

BATCH_SIZE = 128


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


def join_maps(maps: Sequence[CodeMaps]) -> CodeMaps:
    """Return the codes of several sets of images of the same classes, set after set."""
    levels = zip(*(part.levels for part in maps), strict=True)
    labels = np.concatenate([part.labels for part in maps])
    return CodeMaps(tuple(map(np.concatenate, levels)), labels, maps[0].classes)


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
@torch.inference_mode()
def encode_images(
    encode: Encode,
    images: ImageSet,
    symbols: Sequence[int],
    device: torch.device | None = None,
    augment: Augment | None = None,
) -> CodeMaps:
    """Return the codes of images, in order, computed in float32.

    Args:
        encode: The encoder of an autoencoder on `device`.
        symbols: Number of symbols of each level.
        augment: Changes images (B, C, Y, X) before they are encoded.
    """
    recorder = CodeRecorder(encode, symbols)
    batches = evaluation_batches(images, batch_size=BATCH_SIZE, workers=images.config.workers)
    watched = recorder.watch(batches)
    for batch in tracked(watched, "codes", len(images), lambda batch: len(batch.images)):
        inputs = batch.images.to(device)
        recorder.encode(augment(inputs) if augment else inputs)
    return recorder.maps(images.classes)
