"""Make files of codes from images, with a limit of their size if wanted, and decode files.

A file of a limited size has all levels if they fit. Otherwise each position stops at a level of its
own, if the entropy model knows where positions stop, or all positions have the most levels that
fit. VQVAE-2 decodes only all levels, so it writes all or none.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.compression.decoder_search import Rate, encode_with_distances, open_encoder
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.hrv import ImageCodes, write
from hrvqvae.compression.levels import measure_level
from hrvqvae.config import Grid
from hrvqvae.models.base import Autoencoder, image_size
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import QUALITIES, Codes, choose_depths, stop_at
from hrvqvae.utils.device import exact_float32
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.grouping import group_by_size
from hrvqvae.utils.quantities import counted

_MOST_PIXELS = 1 << 18  # of the images of one batch
# the interval of qualities of a file of limited size, and how often it is halved
_LEAST_QUALITY = -2.0
_MOST_QUALITY = 9.0
_HALVINGS = 8


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
    effort: int = 0,
    names: Sequence[str] | None = None,
) -> list[bytes]:
    """Return the content of each image's file; see `Model.compress`."""
    levels = model.check_levels(levels)
    names = names or [f"image {index}" for index in range(1, len(images) + 1)]
    prefixes = [levels]
    most_bytes = math.inf
    if max_bytes is not None:
        prefixes = [prefix for prefix in model.prefixes if prefix <= levels]
        most_bytes = max_bytes

    # images of one batch have one shape and type, since torch.stack converts types
    shapes = [(*image_size(image), image.shape[0], image.dtype) for image in images]
    files: dict[int, bytes] = {}
    for indices in group_by_size(shapes, _MOST_PIXELS):
        batch = torch.stack([images[index] for index in indices]).to(device)
        if entropy_model.stops and isinstance(model, SingleGridAutoencoder):
            contents = _fit_files(model, entropy_model, batch, [levels], most_bytes, effort)
            if max(map(len, contents)) > most_bytes:
                stopped = _fit_depths(model, entropy_model, batch, levels, most_bytes, effort)
                pairs = zip(contents, stopped, strict=True)
                contents = [whole if len(whole) <= most_bytes else cut for whole, cut in pairs]
        else:
            contents = _fit_files(model, entropy_model, batch, prefixes, most_bytes, effort)
        files.update(zip(indices, contents, strict=True))
    for index, name in enumerate(names):
        if len(files[index]) > most_bytes:
            raise InputError(
                f"{name} takes at least {len(files[index])} bytes; the limit is {max_bytes}"
            )
    return [files[index] for index in range(len(images))]


def _fit_files(
    model: Autoencoder,
    entropy_model: EntropyModel,
    images: Tensor,
    prefixes: Sequence[int],
    most_bytes: float,
    effort: int,
) -> list[bytes]:
    """Return the file of each image with the most levels that fit, of these numbers of levels; with
    the fewest if none fits.
    """
    files = list[bytes]()
    codes = None
    for prefix in reversed(prefixes):
        # an effort makes other codes for each number of levels
        if codes is None or effort:
            codes = flat_codes(open_encoder(model, prefix, effort)(images))
        contents = write(entropy_model, codes, image_size(images), prefix)

        # a file of more levels stays if it fits
        pairs = zip(files or contents, contents, strict=True)
        files = [longer if len(longer) <= most_bytes else content for longer, content in pairs]
        if max(map(len, files)) <= most_bytes:
            break
    return files


def _fit_depths(
    model: SingleGridAutoencoder,
    entropy_model: EntropyModel,
    images: Tensor,
    levels: int,
    most_bytes: float,
    effort: int,
) -> list[bytes]:
    """Return the file of each image with the least error that fits, where each position stops at a
    level of its own; of the first level if none fits.
    """
    size = image_size(images)
    codes, distances = encode_with_distances(model, images, levels)
    bits = _measure_bits(entropy_model, codes, size)
    files, qualities = _fit_qualities(
        model, entropy_model, codes, distances, bits, size, most_bytes
    )
    if effort:
        rate = Rate(bits.mean((1, 2, 3)), qualities)
        codes, distances = encode_with_distances(model, images, levels, effort, rate)
        bits = _measure_bits(entropy_model, codes, size)
        files, _ = _fit_qualities(model, entropy_model, codes, distances, bits, size, most_bytes)
    return files


def _fit_qualities(
    model: SingleGridAutoencoder,
    entropy_model: EntropyModel,
    codes: Codes,
    distances: Tensor,
    bits: Tensor,
    size: Grid,
    most_bytes: float,
) -> tuple[list[bytes], Tensor]:
    """Find the highest quality of each image whose file fits, by halving an interval.

    Arguments after the models are codes before positions stop, and the distances that remain and
    the bits of each code, both (levels, B, H, W). Returns the files and the qualities (B,).
    """
    files = write(entropy_model, flat_codes(codes), size, 1)
    absent = [torch.full_like(codes[0], -1)] * (len(entropy_model.symbols) - len(codes))
    low = torch.full((len(files),), _LEAST_QUALITY, device=bits.device)
    high = torch.full_like(low, _MOST_QUALITY)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        depths = choose_depths(distances, model.quantizer.price_bits(bits, middle))
        stopped = flat_codes((*stop_at(codes, depths), *absent))
        qualities = middle.round().long().clamp(0, QUALITIES - 1).tolist()
        contents = write(entropy_model, stopped, size, qualities=qualities)
        fits = [len(content) <= most_bytes for content in contents]
        files = [
            content if fit else file
            for content, fit, file in zip(contents, fits, files, strict=True)
        ]
        is_within = torch.tensor(fits, device=bits.device)
        low = torch.where(is_within, middle, low)
        high = torch.where(is_within, high, middle)
    return files, low


def _measure_bits(entropy_model: EntropyModel, codes: Codes, size: Grid) -> Tensor:
    """Return the ideal bits of each code (levels, B, H, W), where no position stops."""
    layout = entropy_model.layout(size)
    networks = entropy_model.networks
    rows = flat_codes(codes)
    bits = [
        np.stack([measure_level(row, layout, level, networks[level]) for row in rows])
        for level in range(len(codes))
    ]
    shape = len(codes), *codes[0].shape
    return torch.from_numpy(np.stack(bits)).view(shape).to(codes[0].device)


@torch.no_grad()
def decode_images(
    model: Autoencoder,
    files: Sequence[ImageCodes],
    device: torch.device,
    levels: int | None = None,
) -> list[Tensor]:
    """Decode files to images (C, Y, X) float32 in [0, 1], from all whole levels of each file or the
    first `levels`.

    Raises InputError if the model does not decode `levels` levels, and DamagedFileError if a file
    has fewer whole levels than it decodes.
    """
    max_levels = model.check_levels(levels)
    # height and width in pixels, number of levels, and whether positions have stopped
    shapes = list[tuple[int, int, int, bool]]()
    for file in files:
        most = min(max_levels, len(file.codes))
        prefixes = [prefix for prefix in model.prefixes if prefix <= most]
        if not prefixes:
            whole = counted(len(file.codes), "whole level")
            raise DamagedFileError(f"{file.name} has {whole}: {file.fault or 'it ends too early'}")
        has_stops = bool((file.codes[prefixes[-1] - 1] < 0).any())
        shapes.append((*file.size, prefixes[-1], has_stops))
    images = dict[int, Tensor]()
    for indices in group_by_size(shapes, _MOST_PIXELS):
        *size, prefix, _ = shapes[indices[0]]
        codes = []
        for level in range(prefix):
            stack = np.stack([files[index].codes[level] for index in indices])
            codes.append(torch.from_numpy(stack).long().to(device))
        decoded = model.decode(tuple(codes), prefix, (size[0], size[1])).cpu()
        images.update(zip(indices, decoded, strict=True))
    return [images[index] for index in range(len(files))]
