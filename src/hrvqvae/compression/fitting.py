"""Files of at most so many bytes: for each image the number of levels and the lambda of the least error.

A model that takes a lambda is asked for every number of levels, the most first: the weight 0 where that fits, or
else the least weight that does, which is looked for among powers. Files shrink by about a tenth where the weight grows
by e, which is where the search begins. Of other models the most levels that fit are written.

Shapes: B images, k of them that are still looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.checkpoints.codemaps import flat_codes
from hrvqvae.compression.rate_distortion import RateDistortion, takes_weight
from hrvqvae.compression.stream import Codec, write
from hrvqvae.models.base import Autoencoder
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError

_WEIGHTS = 2.0 ** (np.arange(64) / 4 - 13)
_FIRST = 20  # of these, 0.004
_SHRINKAGE = 0.1  # of the logarithm of a file's bytes, by that of the weight
_TRIES = 6
_NEARLY = 0.99  # of the bytes


@dataclass
class _Found:
    """The best files so far.

    Attributes:
        files: of each image; None where none fits.
        errors: of each image, infinite where none fits.
        smallest: bytes of the smallest file that was tried.
    """

    files: list[bytes | None]
    errors: NDArray[np.float64]
    smallest: NDArray[np.int64]

    def take(self, numbers: NDArray[np.int64], files: list[bytes], errors: NDArray[np.float64], most: int) -> None:
        """Keep the files of these images that fit and are better."""
        for number, file, error in zip(numbers.tolist(), files, errors, strict=True):
            self.smallest[number] = min(self.smallest[number], len(file))
            if len(file) <= most and error < self.errors[number]:
                self.files[number], self.errors[number] = file, error


def fit(model: Autoencoder, codec: Codec, images: Tensor, levels: int, most: int, names: Sequence[str]) -> list[bytes]:
    """The best file of each image (B, C, Y, X) that has at most `most` bytes and so many levels.

    Args:
        names: of the images, for messages.

    Raises:
        InputError: none was found that fits, or `most` is below 1.
    """
    if most < 1:
        raise InputError(f"files of {most} bytes are asked for; at least 1 must be admitted")
    count = len(images)
    found = _Found([None] * count, np.full(count, np.inf), np.full(count, np.iinfo(np.int64).max))
    admitted = [one for one in reversed(model.prefixes) if one <= levels]
    if takes_weight(model, levels):
        going = np.arange(count)
        for number in admitted:
            if len(going):
                going = going[_weighed(RateDistortion.of(model, codec, number), images, going, most, found)]
    else:
        codes = model.encode(images)
        for place, number in enumerate(admitted):  # an error that falls with the levels
            files = files_of(codec, codes, images, number)
            found.take(np.arange(count), files, np.full(count, float(place)), most)
    files = [file for file in found.files if file is not None]
    if len(files) < count:
        image = found.files.index(None)
        raise InputError(f"{names[image]} takes {found.smallest[image]} bytes at the least; {most} are admitted")
    return files


def files_of(codec: Codec, codes: Codes, images: Tensor, levels: int) -> list[bytes]:
    """The file of each image (B, C, Y, X), with the first levels of its codes, a tensor (B, H, W) a level."""
    return [b"".join(parts) for parts in write(codec, flat_codes(codes), (images.shape[-2], images.shape[-1]), levels)]


def _weighed(
    encoder: RateDistortion, images: Tensor, numbers: NDArray[np.int64], most: int, found: _Found
) -> NDArray[np.bool_]:
    """Look for the best files of these images with the encoder's levels; -> which do not fit without a weight."""

    def sizes(some: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.int64]:
        batch = images[torch.from_numpy(some).to(images.device)]
        codes, errors = encoder.weigh(batch, torch.from_numpy(weights))
        files = files_of(encoder.codec, codes, batch, encoder.levels)
        found.take(some, files, errors.numpy(), most)
        return np.array([len(file) for file in files])

    large = sizes(numbers, np.zeros(len(numbers))) > most
    if encoder.codec.tables is None:
        return large  # all codes take the same bits
    rest = numbers[large]
    low, high = np.full(len(rest), -1), np.full(len(rest), len(_WEIGHTS))  # what does not fit, and what does
    guess = np.full(len(rest), _FIRST)
    for number in range(_TRIES):
        going = np.flatnonzero(high - low > 1)
        if not len(going):
            break
        now = sizes(rest[going], _WEIGHTS[guess[going]])
        near = (now <= most) & (now >= _NEARLY * most)  # a smaller weight would bring next to nothing
        low[going] = np.where(now > most, guess[going], np.where(near, guess[going] - 1, low[going]))
        high[going] = np.where(now > most, high[going], guess[going])
        farther = np.rint(np.log(now / most) / _SHRINKAGE / np.log(_WEIGHTS[1] / _WEIGHTS[0])).astype(int)
        # until something fits, steps grow, so that the last try has the largest weight
        farther = np.where(high[going] == len(_WEIGHTS), np.maximum(farther, 2 << number), farther)
        guess[going] = np.clip(guess[going] + farther, low[going] + 1, high[going] - 1)
    return large
