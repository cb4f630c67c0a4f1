"""Compress images to files of codes, of a limited size if asked for, and decode such files.

A file of limited size has the level count and the lambda of the least error. Every level count is tried, the most
first: lambda 0 if the file fits, or else the least lambda with which it fits, searched among powers. With models that
take no lambda, as many levels as fit are written.
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
from hrvqvae.data.batches import group_by_size
from hrvqvae.models.base import Autoencoder, Encode
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.quantities import counted

_PIXELS = 1 << 18  # of the images that a network gets at once
_LAMBDAS = 2.0 ** (np.arange(64) / 4 - 13)
_FIRST = 20  # of these, 0.004
_SHRINKAGE = 0.1  # -d log(bytes) / d log(lambda)
_TRIES = 6
_NEARLY = 0.99  # of the limit: no smaller lambda is tried


def flat_codes(codes: Codes) -> NDArray[np.int32]:
    """Return codes as files hold them: (B, codes of all levels), level after level."""
    return np.concatenate([level.cpu().numpy().reshape(len(level), -1) for level in codes], 1).astype(np.int32)


@torch.inference_mode()
def compress(
    model: Autoencoder, entropy_model: EntropyModel, images: Tensor | Sequence[Tensor], device: torch.device,
    levels: int | None = None, max_bytes: int | None = None, encode: Encode | None = None,
    names: Sequence[str] | None = None,
) -> list[bytes]:  # fmt: skip
    """Return the file of each image; see `Model.compress`. `encode` replaces the model's own."""
    levels = model.check_levels(levels)
    encode = encode or model.encode
    if names is None:
        names = [f"image {index}" for index in range(1, len(images) + 1)]
    if len(names) != len(images):
        raise InputError(f"there are {counted(len(images), 'image')} and {counted(len(names), 'name')}; give one each")
    files: dict[int, bytes] = {}
    for indices in group_by_size([(int(image.shape[-2]), int(image.shape[-1])) for image in images], _PIXELS):
        batch = torch.stack([images[index] for index in indices]).to(device)
        if max_bytes is None:
            contents = write(entropy_model, flat_codes(encode(batch)), (batch.shape[-2], batch.shape[-1]), levels)
        else:
            batch_names = [names[index] for index in indices]
            contents = _fit_sizes(model, entropy_model, batch, levels, max_bytes, batch_names)
        files.update(zip(indices, contents, strict=True))
    return [files[index] for index in range(len(images))]


Best = list[tuple[float, bytes]]
"""Error and content of each image's best file; until one fits, the smallest file and an infinite error."""


def _keep_better(
    best: Best, indices: Sequence[int], files: Sequence[bytes], errors: Sequence[float], most: int
) -> None:
    for index, file, error in zip(indices, files, errors, strict=True):
        least, kept = best[index]
        error = error if len(file) <= most else np.inf
        if not kept or (error, len(file)) < (least, len(kept)):
            best[index] = error, file


def _fit_sizes(
    model: Autoencoder, entropy_model: EntropyModel, images: Tensor, levels: int, most: int, names: Sequence[str]
) -> list[bytes]:
    """Return the best file of each image (B, C, Y, X) with at most `most` bytes and `levels` levels, or InputError."""
    if most < 1:
        raise InputError(f"the limit of a file is {most} bytes; it must be at least 1")
    open_images, best = np.arange(len(images)), [(np.inf, b"")] * len(images)
    codes = model.encode(images) if why_no_lambda(model, levels) else None
    for rank, prefix in enumerate(prefix for prefix in reversed(model.prefixes) if prefix <= levels):
        if codes is not None:  # the error falls with the levels
            files = write(entropy_model, flat_codes(codes), (images.shape[-2], images.shape[-1]), prefix)
            _keep_better(best, range(len(images)), files, [rank] * len(images), most)
        elif len(open_images):
            encoder = RateDistortion(model, entropy_model, prefix)
            open_images = open_images[_search_lambdas(encoder, images, open_images, most, best)]
    for (error, file), name in zip(best, names, strict=True):
        if error == np.inf:
            raise InputError(f"{name} takes at least {len(file)} bytes; the limit is {most}")
    return [file for _, file in best]


def _search_lambdas(
    encoder: RateDistortion, images: Tensor, indices: NDArray[np.int64], most: int, best: Best
) -> NDArray[np.bool_]:
    """Search the best files of these images with the encoder's levels, and return which do not fit with lambda 0."""

    def try_lambdas(chosen: NDArray[np.int64], lmbdas: NDArray[np.float64]) -> NDArray[np.int64]:
        batch = images[torch.from_numpy(chosen).to(images.device)]
        codes, errors = encoder.weigh(batch, torch.from_numpy(lmbdas))
        files = write(encoder.entropy_model, flat_codes(codes), (batch.shape[-2], batch.shape[-1]), encoder.levels)
        _keep_better(best, chosen.tolist(), files, errors.tolist(), most)
        return np.array([len(file) for file in files])

    large = try_lambdas(indices, np.zeros(len(indices))) > most
    if not encoder.entropy_model.networks:
        return large  # all codes take the same bits
    rest = indices[large]
    low, high = np.full(len(rest), -1), np.full(len(rest), len(_LAMBDAS))  # what does not fit, and what does
    guess = np.full(len(rest), _FIRST)
    for attempt in range(_TRIES):
        going = np.flatnonzero(high - low > 1)
        if not len(going):
            break
        sizes = try_lambdas(rest[going], _LAMBDAS[guess[going]])
        near = (sizes <= most) & (sizes >= _NEARLY * most)  # a smaller lambda would bring next to nothing
        low[going] = np.where(sizes > most, guess[going], np.where(near, guess[going] - 1, low[going]))
        high[going] = np.where(sizes > most, high[going], guess[going])
        farther = np.rint(np.log(sizes / most) / _SHRINKAGE / np.log(_LAMBDAS[1] / _LAMBDAS[0])).astype(int)
        # until something fits, steps grow, so that the last try has the largest lambda
        farther = np.where(high[going] == len(_LAMBDAS), np.maximum(farther, 2 << attempt), farther)
        guess[going] = np.clip(guess[going] + farther, low[going] + 1, high[going] - 1)
    return large


@torch.inference_mode()
def decode_images(
    model: Autoencoder, files: Sequence[ImageCodes], device: torch.device, levels: int | None = None
) -> list[Tensor]:
    """Decode files to images (C, Y, X) float32 in [0, 1], by as many levels as each has, and at most `levels`.

    Raises InputError if the model does not decode so many, DamagedFileError if a file has fewer than the model decodes.
    """
    most, used = model.check_levels(levels), list[int]()
    for index, image_codes in enumerate(files):
        decodable = [prefix for prefix in model.prefixes if prefix <= min(most, len(image_codes.codes))]
        if not decodable:
            there_are, least = counted(len(image_codes.codes), "whole level"), model.prefixes[0]
            raise DamagedFileError(
                f"file {index + 1} has {there_are}, but this model decodes {least} or more: {image_codes.fault}"
            )
        used.append(decodable[-1])
    images: dict[int, Tensor] = {}
    for indices in group_by_size([(*file.size, prefix) for file, prefix in zip(files, used, strict=True)], _PIXELS):
        prefix, size = used[indices[0]], files[indices[0]].size
        stacks = [np.stack([files[index].codes[level] for index in indices]) for level in range(prefix)]
        codes = tuple(torch.from_numpy(stack).long().to(device) for stack in stacks)
        images.update(zip(indices, model.decode(codes, prefix, size).cpu(), strict=True))
    return [images[index] for index in range(len(files))]
