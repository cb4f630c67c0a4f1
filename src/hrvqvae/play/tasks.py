"""The computations behind the page. Images are (C, Y, X), uint8 or float32 in [0, 1]."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hrvqvae.compression.images import make_files
from hrvqvae.config import Grid
from hrvqvae.data.images import decode_image
from hrvqvae.model import Model
from hrvqvae.pictures import draw_completions
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize import functional as vq
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import psnr

MOST_MARKS = 64  # per side of the grid that is painted on
MOST_IMAGES = 64  # drawn at once
_CODED_PIXELS = 1 << 18  # of an image that a model encodes; a larger image is reduced


class Picture(NamedTuple):
    """An uploaded or sampled image, uint8."""

    full: Tensor  # (C, Y, X), at its full size or reduced
    square: Tensor  # (C, height, width), cropped and resized as in training
    note: str  # what was changed; may be empty


def read_upload(
    path: Path, channels: int, size: Grid, most_bytes: int, most_pixels: int
) -> Picture:
    """Read an image file for a model with this number of channels and size of images. Raises
    InputError.
    """
    length = path.stat().st_size
    if length > most_bytes:
        raise InputError(f"{path.name} has {length:,} bytes; at most {most_bytes:,} are admitted")
    try:
        decoded = decode_image(path, channels, most_pixels)
        square = torch.from_numpy(decode_image(path, channels, most_pixels, size).pixels)
    except InputError as error:  # messages name the whole path
        raise InputError(str(error).replace(str(path), path.name)) from error
    full, reduction = _reduce(torch.from_numpy(decoded.pixels), _CODED_PIXELS)
    return Picture(full, square, "; ".join(note for note in (decoded.lost, reduction) if note))


def _reduce(image: Tensor, pixels: int) -> tuple[Tensor, str]:
    """Return the image (C, Y, X) uint8 with at most so many pixels, and a note if it was
    reduced.
    """
    height, width = image.shape[-2:]
    if height * width <= pixels:
        return image, ""
    # At most `pixels`, also after the sides are rounded, and at least one pixel per side.
    share = (pixels / (height * width)) ** 0.5
    rows = min(pixels, max(1, int(height * share)))
    size = (rows, max(1, min(int(width * share), pixels // rows)))
    small = interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return (
        small.round().clamp(0, 255).to(torch.uint8),
        f"{width}x{height} pixels reduced to {size[1]}x{size[0]}",
    )


def parse_marks(text: str | None) -> Tensor:
    """Return the painter's JSON as marks (side, side) bool. Raises InputError."""
    try:
        painted = json.loads(text or "{}")
        side = painted.get("side", 1)
        marks = painted.get("marks") or "0"
        if not (
            isinstance(side, int) and 1 <= side <= MOST_MARKS and len(marks) in (1, side * side)
        ):
            raise ValueError("the marks are not those of a square")
        return torch.tensor([mark == "1" for mark in marks]).expand(side * side).view(side, side)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError("what was painted can't be read: load the page anew") from error


def reconstruct(model: Model, image: Tensor, levels: int) -> tuple[Tensor, int, float]:
    """Return what a file of codes of an image (C, Y, X) uint8 decodes to, its bytes and its PSNR in
    dB.
    """
    # `Model.compress` would keep a copy of the model, so that the file stays readable
    (file,) = make_files(model.autoencoder, model.entropy_model, [image], model.device, levels)
    (decoded,) = model.decompress([file])
    return decoded, len(file), psnr(float((decoded - image / 255).double().square().mean()))


def complete(
    model: Model, image: Tensor, marks: Tensor, **options: Any
) -> tuple[Tensor, float, Tensor]:
    """Return `draw_completions` by a mask (side, side) bool that is stretched over an image (C,
    height, width); `options` are its other arguments.
    """
    size = model.config.data.image_size
    mask = interpolate(marks[None, None].float(), size, mode="nearest-exact")[0, 0] > 0.5
    return draw_completions(model, image, mask, **options)


def measure_usage(model: Model, image: Tensor) -> list[tuple[int, int, float, float | None]]:
    """Return per level: codewords, how many an image uses, its perplexity, and that of training
    (None if unknown).
    """
    level_indices = model.autoencoder.codeword_indices(model.encode(image[None]))
    codewords = model.config.model.num_codewords
    quantizer = getattr(model.autoencoder, "quantizer", None)
    trained: list[float | None] = [None] * len(codewords)
    if isinstance(quantizer, ResidualQuantizer):
        trained = [vq.perplexity(level.count.flatten()) for level in quantizer.levels]
    rows = []
    for indices, size, in_training in zip(level_indices, codewords, trained, strict=True):
        counts = vq.counts(indices.cpu(), size)
        rows.append((size, int((counts > 0).sum()), vq.perplexity(counts), in_training))
    return rows
