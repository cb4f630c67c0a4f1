"""Make files of codes from images, with a limit of their size if wanted, and decode files.

A file of a limited size has all levels if they fit. Otherwise each position stops at a level of its
own (stops.py), or, if the entropy model does not know where positions stop, all positions have the
most levels that fit. VQVAE-2 decodes only all levels, so it writes all or none.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hrvqvae.compression.decoder_search import open_encoder
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.hrv import ImageCodes, write
from hrvqvae.compression.levels import flat_codes
from hrvqvae.compression.stops import fit_stopped_files
from hrvqvae.models.base import Autoencoder, image_size
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.utils.device import exact_float32
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.grouping import group_by_size
from hrvqvae.utils.quantities import counted

_MOST_PIXELS = 1 << 18  # of the images of one batch


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
                stopped = fit_stopped_files(model, entropy_model, batch, levels, most_bytes, effort)
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
