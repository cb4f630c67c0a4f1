"""Images to files of codes and back; files of at most so many bytes.

A file of at most so many bytes has the number of levels and the lambda of the least error. A model that takes a lambda
is asked for every number of levels, the most first: lambda 0 where that fits, or else the least lambda that does, which
is looked for among powers. Files shrink by about a tenth where lambda grows by e, which is where the search begins. Of
other models the most levels that fit are written.

Shapes: B images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.hrv import ImageCodes, write
from hrvqvae.compression.rate_distortion import RateDistortion, why_no_lambda
from hrvqvae.data.batches import same_size
from hrvqvae.models.base import Autoencoder, Encode
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.quantities import counted

_PIXELS = 1 << 18  # of the images that a network gets at once
_LAMBDAS = 2.0 ** (np.arange(64) / 4 - 13)
_FIRST = 20  # of these, 0.004
_SHRINKAGE = 0.1  # of the logarithm of a file's bytes, by that of lambda
_TRIES = 6
_NEARLY = 0.99  # of the bytes


def flat_codes(codes: Codes) -> NDArray[np.int32]:
    """Codes as files hold them: (B, all codes), level after level."""
    return np.concatenate([one.cpu().numpy().reshape(len(one), -1) for one in codes], 1).astype(np.int32)


@torch.inference_mode()
def compress(
    model: Autoencoder, entropy_model: EntropyModel, images: Tensor | Sequence[Tensor], device: torch.device,
    levels: int | None = None, max_bytes: int | None = None, encode: Encode | None = None,
    names: Sequence[str] | None = None,
) -> list[bytes]:  # fmt: skip
    """The file of each image; see `Model.compress`. `encode` gives the codes in place of the model."""
    levels = model.check_levels(levels)
    encode = encode or model.encode
    if names is None:
        names = [f"image {number}" for number in range(1, len(images) + 1)]
    if len(names) != len(images):
        raise InputError(f"there are {counted(len(images), 'image')} and {counted(len(names), 'name')}; give one each")
    files: dict[int, bytes] = {}
    for numbers in same_size([(int(image.shape[-2]), int(image.shape[-1])) for image in images], _PIXELS):
        batch = torch.stack([images[number] for number in numbers]).to(device)
        if max_bytes is None:
            made = _files_of(entropy_model, encode(batch), batch, levels)
        else:
            made = _fitted(model, entropy_model, batch, levels, max_bytes, [names[number] for number in numbers])
        files.update(zip(numbers, made, strict=True))
    return [files[number] for number in range(len(images))]


def _files_of(entropy_model: EntropyModel, codes: Codes, images: Tensor, levels: int) -> list[bytes]:
    """The file of each image (B, C, Y, X), with the first levels of its codes, a tensor (B, H, W) a level."""
    return write(entropy_model, flat_codes(codes), (images.shape[-2], images.shape[-1]), levels)


Best = list[tuple[float, bytes]]
"""Error and content of the best file of each image: the smallest so far, at an infinite error, until one fits."""


def _take(best: Best, numbers: Sequence[int], files: Sequence[bytes], errors: Sequence[float], most: int) -> None:
    """Keep the files of these images that are better."""
    for number, file, error in zip(numbers, files, errors, strict=True):
        least, kept = best[number]
        error = error if len(file) <= most else np.inf
        if not kept or (error, len(file)) < (least, len(kept)):
            best[number] = error, file


def _fitted(
    model: Autoencoder, entropy_model: EntropyModel, images: Tensor, levels: int, most: int, names: Sequence[str]
) -> list[bytes]:
    """The best file of each image (B, C, Y, X) of at most `most` bytes and so many levels. Raises InputError."""
    if most < 1:
        raise InputError(f"files of {most} bytes are asked for; at least 1 must be admitted")
    going, best = np.arange(len(images)), [(np.inf, b"")] * len(images)
    codes = model.encode(images) if why_no_lambda(model, levels) else None
    for place, number in enumerate(one for one in reversed(model.prefixes) if one <= levels):
        if codes is not None:  # the error falls with the levels
            _take(
                best, range(len(images)), _files_of(entropy_model, codes, images, number), [place] * len(images), most
            )
        elif len(going):
            going = going[_weighed(RateDistortion(model, entropy_model, number), images, going, most, best)]
    for (error, file), name in zip(best, names, strict=True):
        if error == np.inf:
            raise InputError(f"{name} takes {len(file)} bytes at the least; {most} are admitted")
    return [file for _, file in best]


def _weighed(
    encoder: RateDistortion, images: Tensor, numbers: NDArray[np.int64], most: int, best: Best
) -> NDArray[np.bool_]:
    """Look for the best files of these images with the encoder's levels; -> which do not fit with lambda 0."""

    def sizes(some: NDArray[np.int64], lmbdas: NDArray[np.float64]) -> NDArray[np.int64]:
        batch = images[torch.from_numpy(some).to(images.device)]
        codes, errors = encoder.weigh(batch, torch.from_numpy(lmbdas))
        files = _files_of(encoder.entropy_model, codes, batch, encoder.levels)
        _take(best, some.tolist(), files, errors.tolist(), most)
        return np.array([len(file) for file in files])

    large = sizes(numbers, np.zeros(len(numbers))) > most
    if not encoder.entropy_model.networks:
        return large  # all codes take the same bits
    rest = numbers[large]
    low, high = np.full(len(rest), -1), np.full(len(rest), len(_LAMBDAS))  # what does not fit, and what does
    guess = np.full(len(rest), _FIRST)
    for number in range(_TRIES):
        going = np.flatnonzero(high - low > 1)
        if not len(going):
            break
        now = sizes(rest[going], _LAMBDAS[guess[going]])
        near = (now <= most) & (now >= _NEARLY * most)  # a smaller lambda would bring next to nothing
        low[going] = np.where(now > most, guess[going], np.where(near, guess[going] - 1, low[going]))
        high[going] = np.where(now > most, high[going], guess[going])
        farther = np.rint(np.log(now / most) / _SHRINKAGE / np.log(_LAMBDAS[1] / _LAMBDAS[0])).astype(int)
        # until something fits, steps grow, so that the last try has the largest lambda
        farther = np.where(high[going] == len(_LAMBDAS), np.maximum(farther, 2 << number), farther)
        guess[going] = np.clip(guess[going] + farther, low[going] + 1, high[going] - 1)
    return large


@torch.inference_mode()
def decode_images(
    model: Autoencoder, files: Sequence[ImageCodes], device: torch.device, levels: int | None = None
) -> list[Tensor]:
    """The image (C, Y, X) float32 in [0, 1] of each of these codes, by so many levels as far as they are there.

    Raises:
        InputError: the model does not decode so many levels.
        DamagedFileError: it decodes no prefix as short as what there is of a file.
    """
    most, used = model.check_levels(levels), list[int]()
    for number, one in enumerate(files):
        there = [prefix for prefix in model.prefixes if prefix <= min(most, len(one.codes))]
        if not there:
            there_are, least = counted(len(one.codes), "whole level"), model.prefixes[0]
            raise DamagedFileError(
                f"file {number + 1} has {there_are}, and this model decodes {least} or more together: {one.fault}"
            )
        used.append(there[-1])
    images: dict[int, Tensor] = {}
    for numbers in same_size([(*one.size, prefix) for one, prefix in zip(files, used, strict=True)], _PIXELS):
        prefix, size = used[numbers[0]], files[numbers[0]].size
        codes = tuple(
            torch.from_numpy(np.stack([files[number].codes[level] for number in numbers])).long().to(device)
            for level in range(prefix)
        )
        images.update(zip(numbers, model.decode(codes, prefix, size).cpu(), strict=True))
    return [images[number] for number in range(len(files))]
