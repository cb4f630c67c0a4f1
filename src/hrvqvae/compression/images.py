"""Compress images to files of codes, with a limit of their size if wanted, and decode files.

For a limited size, the number of levels and the lambda with the least error are searched. Numbers
of levels are tried from the largest down. For each, lambda is 0 if the file fits, otherwise the
smallest of a geometric series with which the file fits. A model that takes no lambda writes as many
levels as fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.hrv import ImageCodes, write
from hrvqvae.compression.rate_distortion import RateDistortion, explain_no_lambda
from hrvqvae.data.batches import group_by_size
from hrvqvae.models.base import Autoencoder, Encode
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.quantities import counted

_MOST_PIXELS = 1 << 18  # of the images of one batch
_LAMBDAS = 2.0 ** (np.arange(132) / 4 - 13)
_USUAL_LAMBDAS = 64  # most files fit with one of the first 64
_FIRST_LAMBDA = 20  # index of the first lambda to try, 0.004
_SHRINKAGE = 0.1  # -d log(bytes) / d log(lambda)
_MOST_TRIES = 6  # twice as many for files that need a larger lambda than usual
_CLOSE = 0.99  # a file of this share of the limit ends the search


def flat_codes(codes: Codes) -> NDArray[np.int32]:
    """Return codes as files hold them: (B, codes of all levels), level after level."""
    return np.concatenate(
        [level.cpu().numpy().reshape(len(level), -1) for level in codes], 1
    ).astype(np.int32)


@torch.inference_mode()
def compress(
    model: Autoencoder,
    entropy_model: EntropyModel,
    images: Tensor | Sequence[Tensor],
    device: torch.device,
    levels: int | None = None,
    max_bytes: int | None = None,
    encode: Encode | None = None,
    names: Sequence[str] | None = None,
) -> list[bytes]:
    """Return the content of each image's file; see `Model.compress`. `encode` replaces
    `model.encode`.
    """
    levels = model.check_levels(levels)
    encode = encode or model.encode
    if names is None:
        names = [f"image {index}" for index in range(1, len(images) + 1)]
    if len(names) != len(images):
        raise InputError(
            f"there are {counted(len(images), 'image')} and {counted(len(names), 'name')}; give one"
            " each"
        )
    files: dict[int, bytes] = {}
    for image, name in zip(images, names, strict=True):
        if image.dim() != 3:
            raise InputError(f"{name} has {image.dim()} dimensions; expected 3: (C, Y, X)")
    sizes = [
        (*image.shape[-2:], image.shape[:-2], image.dtype) for image in images
    ]  # torch.stack converts types
    for indices in group_by_size(sizes, _MOST_PIXELS):
        batch = torch.stack([images[index] for index in indices]).to(device)
        if max_bytes is None:
            contents = write(
                entropy_model, flat_codes(encode(batch)), (batch.shape[-2], batch.shape[-1]), levels
            )
        else:
            batch_names = [names[index] for index in indices]
            contents = _fit_sizes(model, entropy_model, batch, levels, max_bytes, batch_names)
        files.update(zip(indices, contents, strict=True))
    return [files[index] for index in range(len(images))]


Best = list[tuple[float, bytes]]
"""Error and content of each image's best file; an infinite error and the smallest file until a file
fits.
"""


def _keep_better(
    best: Best,
    indices: Sequence[int],
    files: Sequence[bytes],
    errors: Sequence[float],
    max_bytes: int,
) -> None:
    for index, file, error in zip(indices, files, errors, strict=True):
        least, kept = best[index]
        error = error if len(file) <= max_bytes else np.inf
        if not kept or (error, len(file)) < (least, len(kept)):
            best[index] = error, file


def _fit_sizes(
    model: Autoencoder,
    entropy_model: EntropyModel,
    images: Tensor,
    levels: int,
    max_bytes: int,
    names: Sequence[str],
) -> list[bytes]:
    """Return the best file of each image within the limits. Raises InputError if a file does not
    fit.
    """
    if max_bytes < 1:
        raise InputError(f"the limit of a file is {max_bytes} bytes; it must be at least 1")
    unfitted = np.arange(len(images))
    best = [(np.inf, b"")] * len(images)
    codes = model.encode(images) if explain_no_lambda(model, levels) else None
    for rank, prefix in enumerate(
        prefix for prefix in reversed(model.prefixes) if prefix <= levels
    ):
        if codes is not None:  # the most levels that fit have the least error
            files = write(
                entropy_model, flat_codes(codes), (images.shape[-2], images.shape[-1]), prefix
            )
            _keep_better(best, range(len(images)), files, [rank] * len(images), max_bytes)
        elif len(unfitted):
            encoder = RateDistortion(model, entropy_model, prefix)
            unfitted = unfitted[_search_lambdas(encoder, images, unfitted, max_bytes, best)]
    for (error, file), name in zip(best, names, strict=True):
        if error == np.inf:
            raise InputError(f"{name} takes at least {len(file)} bytes; the limit is {max_bytes}")
    return [file for _, file in best]


def _search_lambdas(
    encoder: RateDistortion, images: Tensor, indices: NDArray[np.int64], max_bytes: int, best: Best
) -> NDArray[np.bool_]:
    """Add files with the encoder's number of levels to `best`, and return which images do not fit
    with lambda 0.
    """

    def try_lambdas(selected: NDArray[np.int64], lmbdas: NDArray[np.float64]) -> NDArray[np.int64]:
        batch = images[torch.from_numpy(selected).to(images.device)]
        codes, errors = encoder.encode(batch, torch.from_numpy(lmbdas))
        files = write(
            encoder.entropy_model,
            flat_codes(codes),
            (batch.shape[-2], batch.shape[-1]),
            encoder.levels,
        )
        _keep_better(best, selected.tolist(), files, errors.tolist(), max_bytes)
        return np.array([len(file) for file in files])

    too_large = try_lambdas(indices, np.zeros(len(indices))) > max_bytes
    if not encoder.entropy_model.networks:
        return too_large  # all codes take the same bits
    remaining = indices[too_large]
    # indices of lambdas: `low` is too small, `high` is large enough
    low = np.full(len(remaining), -1)
    high = np.full(len(remaining), len(_LAMBDAS))
    guess = np.full(len(remaining), _FIRST_LAMBDA)
    for attempt in range(2 * _MOST_TRIES):
        active = np.flatnonzero(
            (high - low > 1) & ((attempt < _MOST_TRIES) | (high > _USUAL_LAMBDAS))
        )
        if not len(active):
            break
        sizes = try_lambdas(remaining[active], _LAMBDAS[guess[active]])
        close = (sizes <= max_bytes) & (
            sizes >= _CLOSE * max_bytes
        )  # a smaller lambda would gain next to nothing
        low[active] = np.where(
            sizes > max_bytes, guess[active], np.where(close, guess[active] - 1, low[active])
        )
        high[active] = np.where(sizes > max_bytes, high[active], guess[active])
        steps = np.rint(
            np.log(sizes / max_bytes) / _SHRINKAGE / np.log(_LAMBDAS[1] / _LAMBDAS[0])
        ).astype(int)
        # until a file fits, steps grow, so that the tries reach the largest lambda
        steps = np.where(high[active] == len(_LAMBDAS), np.maximum(steps, 2 << attempt), steps)
        guess[active] = np.clip(guess[active] + steps, low[active] + 1, high[active] - 1)
    return too_large


@torch.no_grad()
def decode_images(
    model: Autoencoder,
    files: Sequence[ImageCodes],
    device: torch.device,
    levels: int | None = None,
    names: Sequence[str] = (),
) -> list[Tensor]:
    """Decode files to images (C, Y, X) float32 in [0, 1], from all whole levels of each file or the
    first `levels`.

    Raises InputError if the model does not decode `levels` levels, or a file has fewer whole levels
    than it decodes.
    """
    max_levels = model.check_levels(levels)
    prefixes = list[int]()
    names = names or [f"file {number}" for number in range(1, len(files) + 1)]
    for image_codes, name in zip(files, names, strict=True):
        decodable = [
            prefix for prefix in model.prefixes if prefix <= min(max_levels, len(image_codes.codes))
        ]
        if not decodable:
            there_are = counted(len(image_codes.codes), "whole level")
            least = model.prefixes[0]
            raise DamagedFileError(
                f"{name} has {there_are}, but this model decodes {least} or more:"
                f" {image_codes.fault}"
            )
        prefixes.append(decodable[-1])
    images = dict[int, Tensor]()
    sizes = [(*file.size, prefix) for file, prefix in zip(files, prefixes, strict=True)]
    for indices in group_by_size(sizes, _MOST_PIXELS):
        prefix = prefixes[indices[0]]
        size = files[indices[0]].size
        stacks = [
            np.stack([files[index].codes[level] for index in indices]) for level in range(prefix)
        ]
        codes = tuple(torch.from_numpy(stack).long().to(device) for stack in stacks)
        images.update(zip(indices, model.decode(codes, prefix, size).cpu(), strict=True))
    return [images[index] for index in range(len(files))]
