"""Make files of codes from images, with a limit of their size if wanted, and decode files.

For a limited size, the number of levels and the lambda with the least error are searched. Numbers
of levels are tried from the largest down. For each, lambda is 0 if the file fits. Otherwise lambda
grows by larger and larger steps until the file fits, and is then searched with smaller and smaller
steps. A search begins with the codes of the largest lambda so far whose file is too large. A model
that takes no lambda writes as many levels as fit; VQVAE-2 decodes only all levels, so it writes all
or none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.compression.decoder_search import DecoderSearch, explain_no_search
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.hrv import ImageCodes, write
from hrvqvae.models.base import Autoencoder, Encode, image_size, to_unit_images
from hrvqvae.quantize import Codes
from hrvqvae.utils.device import exact_float32
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.grouping import group_by_size
from hrvqvae.utils.quantities import counted

_MOST_PIXELS = 1 << 18  # of the images of one batch
_TRIES = 7  # values of lambda
_FIRST_STEP = 2.0  # of lambda in octaves, halved or doubled before it is taken
_LEAST_ERROR = 1e-6
_SAVED_LEVELS = 2  # levels whose bytes a lambda may save

Floats = NDArray[np.float64]


def flat_codes(codes: Codes) -> NDArray[np.int32]:
    """Return codes as files hold them: (B, codes of all levels), level after level."""
    rows = [level.cpu().numpy().reshape(len(level), -1) for level in codes]
    return np.concatenate(rows, 1).astype(np.int32)


@exact_float32()
@torch.inference_mode()
def make_files(
    model: Autoencoder,
    entropy_model: EntropyModel,
    images: Tensor | Sequence[Tensor],
    device: torch.device,
    levels: int | None = None,
    max_bytes: int | None = None,
    encode: Encode | None = None,
    names: Sequence[str] | None = None,
) -> list[bytes]:
    """Return the content of each image's file; see `Model.compress`. Without `max_bytes`, `encode`
    replaces `model.encode`.
    """
    levels = model.check_levels(levels)
    encode = encode or model.encode
    if names is None:
        names = [f"image {index}" for index in range(1, len(images) + 1)]
    if len(names) != len(images):
        counts = f"{counted(len(images), 'image')} and {counted(len(names), 'name')}"
        raise InputError(f"there are {counts}; give one each")
    for image, name in zip(images, names, strict=True):
        if image.dim() != 3:
            raise InputError(f"{name} has {image.dim()} dimensions; expected 3: (C, Y, X)")

    # images of one batch have one shape and type, since torch.stack converts types
    shapes = [(*image_size(image), image.shape[0], image.dtype) for image in images]
    files: dict[int, bytes] = {}
    for indices in group_by_size(shapes, _MOST_PIXELS):
        batch = torch.stack([images[index] for index in indices]).to(device)
        if max_bytes is None:
            codes = flat_codes(encode(batch))
            contents = write(entropy_model, codes, image_size(batch), levels)
        else:
            batch_names = [names[index] for index in indices]
            contents = _fit_files(model, entropy_model, batch, levels, max_bytes, batch_names)
        files.update(zip(indices, contents, strict=True))
    return [files[index] for index in range(len(images))]


@dataclass
class _BestFile:
    """The file of an image with the least error of all that fit; the smallest while none fits."""

    max_bytes: int
    content: bytes = b""
    error: float = math.inf  # until a file fits

    def offer(self, content: bytes, error: float) -> None:
        if len(content) > self.max_bytes:
            error = math.inf
        best = self.error, len(self.content)
        if not self.content or (error, len(content)) < best:
            self.content = content
            self.error = error


def _fit_files(
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
    best = [_BestFile(max_bytes) for _ in images]
    prefixes = [prefix for prefix in reversed(model.prefixes) if prefix <= levels]
    codes = flat_codes(model.encode(images))
    plain_files = [write(entropy_model, codes, image_size(images), prefix) for prefix in prefixes]
    if explain_no_search(model):
        # the most levels that fit have the least error
        for rank, files in enumerate(plain_files):
            for image_best, file in zip(best, files, strict=True):
                image_best.offer(file, rank)
    else:
        # a lambda saves the bytes of two levels at most; an image that fits with lambda 0 gets no
        # fewer levels
        unfitted = np.ones(len(images), np.bool_)
        for rank, prefix in enumerate(prefixes):
            shorter = plain_files[min(rank + _SAVED_LEVELS, len(prefixes) - 1)]
            # from the least levels a lambda may save enough, even if no plain file fits
            always_tried = rank + _SAVED_LEVELS >= len(prefixes) - 1
            may_fit = [always_tried or len(file) <= max_bytes for file in shorter]
            tried = np.flatnonzero(unfitted & may_fit)
            if len(tried):
                encoder = DecoderSearch(model, entropy_model, prefix)
                tried_best = [best[index] for index in tried]
                unfitted[tried] = _search_lambdas(encoder, images[tried], tried_best)
    for image_best, name in zip(best, names, strict=True):
        if image_best.error == math.inf:
            least = len(image_best.content)
            raise InputError(f"{name} takes at least {least} bytes; the limit is {max_bytes}")
    return [image_best.content for image_best in best]


def _offer_files(
    encoder: DecoderSearch, images: Tensor, codes: Codes, best: Sequence[_BestFile]
) -> tuple[Floats, Floats]:
    """Offer the file of each image to its `best`, and return the bytes and squared errors (B,)."""
    size = image_size(images)
    files = write(encoder.entropy_model, flat_codes(codes), size, encoder.levels)
    decoded = encoder.model.decode(codes, len(codes), size)
    targets = to_unit_images(images, encoder.model.channels)
    errors = (decoded - targets).square().sum((1, 2, 3)).double().cpu().numpy()
    for image_best, file, error in zip(best, files, errors.tolist(), strict=True):
        image_best.offer(file, error)
    return np.array([len(file) for file in files], np.float64), errors


def _search_lambdas(
    encoder: DecoderSearch, images: Tensor, best: Sequence[_BestFile]
) -> NDArray[np.bool_]:
    """Offer files with the encoder's number of levels to `best`, and return which images (B,) do
    not fit with lambda 0.
    """
    max_bytes = best[0].max_bytes
    codes = encoder.encode(images)
    sizes, errors = _offer_files(encoder, images, codes, best)
    too_large = sizes > max_bytes
    if not too_large.any() or not encoder.entropy_model.networks:
        return too_large  # without networks all codes take the same bits

    # the images that do not fit; the first lambda weighs all bits as much as the error
    images = images[too_large]
    codes = tuple(level[too_large] for level in codes)
    best = [image_best for image_best, is_large in zip(best, too_large, strict=True) if is_large]
    exponents = np.log2(np.maximum(errors, _LEAST_ERROR) / (8 * sizes))[too_large]
    steps = np.full(len(best), _FIRST_STEP)
    has_fit = np.zeros(len(best), np.bool_)
    for _ in range(_TRIES):
        found = encoder.encode(images, torch.from_numpy(2.0**exponents), start=codes)
        fits = _offer_files(encoder, images, found, best)[0] <= max_bytes
        has_fit |= fits
        steps *= np.where(has_fit, 0.5, 2.0)
        exponents += np.where(fits, -steps, steps)
        for level, found_level in zip(codes, found, strict=True):
            level[~fits] = found_level[~fits]
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

    Raises InputError if the model does not decode `levels` levels, and DamagedFileError if a file
    has fewer whole levels than it decodes.
    """
    max_levels = model.check_levels(levels)
    names = names or [f"file {number}" for number in range(1, len(files) + 1)]
    shapes = list[tuple[int, int, int]]()  # height and width in pixels, number of levels
    for file, name in zip(files, names, strict=True):
        num_whole = len(file.codes)
        if num_whole < model.prefixes[0]:
            raise DamagedFileError(
                f"{name} has {counted(num_whole, 'whole level')}, but this model decodes"
                f" {model.prefixes[0]} or more: {file.fault or 'it ends too early'}"
            )
        most = min(max_levels, num_whole)
        shapes.append((*file.size, max(prefix for prefix in model.prefixes if prefix <= most)))
    images = dict[int, Tensor]()
    for indices in group_by_size(shapes, _MOST_PIXELS):
        *size, prefix = shapes[indices[0]]
        codes = []
        for level in range(prefix):
            stack = np.stack([files[index].codes[level] for index in indices])
            codes.append(torch.from_numpy(stack).long().to(device))
        decoded = model.decode(tuple(codes), prefix, (size[0], size[1])).cpu()
        images.update(zip(indices, decoded, strict=True))
    return [images[index] for index in range(len(files))]
