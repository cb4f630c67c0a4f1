"""The computations behind the page. Images are (C, Y, X), uint8 or float32 in [0, 1]."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate

from hrvqvae.data.images import decode_image
from hrvqvae.model import Model
from hrvqvae.pictures import draw_completions
from hrvqvae.plots import hierarchy
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize import functional as vq
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import psnr

MOST_MARKS = 64  # a side of the grid that is painted on
MOST_IMAGES = 64  # drawn at once
_CODED_PIXELS = 1 << 18  # of an image that a model gets; a larger one is reduced


@dataclass(frozen=True)
class Limits:
    """The most that the page admits."""

    upload_bytes: int = 16 << 20  # of an upload, or of any other request
    pixels: int = 1 << 24  # of an image, by its header


class Picture(NamedTuple):
    """An uploaded or sampled image, uint8."""

    own: Tensor  # (C, Y, X), at its own size or reduced
    square: Tensor  # (C, size, size), cropped and resized as in training
    note: str  # what was changed; may be empty


def take(path: Path, channels: int, size: int, limits: Limits) -> Picture:
    """Read an image file for a model of so many channels and square images of that size. Raises InputError."""
    length = path.stat().st_size
    if length > limits.upload_bytes:
        raise InputError(f"{path.name} has {length:,} bytes; at most {limits.upload_bytes:,} are admitted")
    try:
        decoded = decode_image(path, channels, limits.pixels)
        square = torch.from_numpy(decode_image(path, channels, limits.pixels, size).pixels)
    except InputError as error:  # Pillow names the whole path
        raise InputError(str(error).replace(str(path), path.name)) from error
    own, reduced = _reduced(torch.from_numpy(decoded.pixels), _CODED_PIXELS)
    return Picture(own, square, "; ".join(note for note in (decoded.lost, reduced) if note))


def _reduced(image: Tensor, pixels: int) -> tuple[Tensor, str]:
    """(image (C, Y, X) uint8 of at most so many pixels, a note)."""
    height, width = image.shape[-2:]
    if height * width <= pixels:
        return image, ""
    share = (pixels / (height * width)) ** 0.5
    rows = min(pixels, max(1, int(height * share)))
    size = (rows, max(1, min(int(width * share), pixels // rows)))
    small = interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return small.round().clamp(0, 255).to(torch.uint8), f"{width}x{height} pixels reduced to {size[1]}x{size[0]}"


def marked(text: str | None) -> Tensor:
    """The painter's JSON as (side, side) bool. Raises InputError."""
    try:
        told = json.loads(text or "{}")
        side, marks = told.get("side", 1), told.get("marks") or "0"
        if not (isinstance(side, int) and 1 <= side <= MOST_MARKS and len(marks) in (1, side * side)):
            raise ValueError("the marks are not those of a square")
        return torch.tensor([mark == "1" for mark in marks]).expand(side * side).view(side, side)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError("what was painted can't be read: load the page anew") from error


def reconstruct(model: Model, image: Tensor, levels: int) -> tuple[Tensor, int, float]:
    """(image, bytes, PSNR in dB) of the file of codes of an image (C, Y, X) uint8 with so many levels."""
    (file,) = model.compress([image], levels)
    (decoded,) = model.decompress([file])
    return decoded, len(file), psnr(float((decoded - image / 255).double().square().mean()))


def complete(
    model: Model, image: Tensor, painted: Tensor, count: int, class_name: str | None, temperature: float,
    seed: int, guidance: float = 1.0,
) -> tuple[Tensor, float, Tensor]:  # fmt: skip
    """What `draw_completions` gives of a mask (Y, X) bool that is stretched over an image (C, size, size)."""
    size = model.config.data.size
    mask = interpolate(painted[None, None].float(), (size, size), mode="nearest-exact")[0, 0] > 0.5
    params = SamplingParams(temperature=temperature, guidance=guidance)
    return draw_completions(model, image, mask, count, seed=seed, class_name=class_name, params=params)


def usage(model: Model, image: Tensor) -> list[tuple[int, int, float, float | None]]:
    """(codewords, used by an image, perplexity, that of the moving averages of training or None) of each level."""
    paths = model.autoencoder.codeword_indices(model.encode(image[None]))
    quantizer = getattr(model.autoencoder, "quantizer", None)
    books = quantizer.levels if isinstance(quantizer, ResidualQuantizer) else ()
    found = []
    for level, (path, codewords) in enumerate(zip(paths, model.config.model.num_codewords, strict=True)):
        counts = vq.counts(path.cpu(), codewords)
        trained = vq.perplexity(books[level].count.flatten().cpu()) if books else None
        found.append((codewords, int((counts > 0).sum()), vq.perplexity(counts), trained))
    return found


def hierarchy_at(model: Model, image: Tensor, x: int, y: int) -> Figure:
    """Figure 10 for the pixel (column x, row y) of an image. Raises InputError where it can't be drawn."""
    where = model.config.model.geometry
    position = ((y + where.margin // 2) // where.unit, (x + where.margin // 2) // where.unit)
    name = f"{model.config.name}, position ({position[0]}, {position[1]})"
    return hierarchy.draw(hierarchy.tree_at(model.autoencoder, image, position, name))
