"""What the page takes in and shows, computed from a trained model. Nothing here knows of the page.

Images are (C, Y, X), uint8 or float32 in [0, 1].
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.compression.entropy_model import Geometry, geometry_of
from hrvqvae.data.images import FORMATS, decode_image
from hrvqvae.plots import hierarchy
from hrvqvae.priors.generative import KnownCodes
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize import functional as vq
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import psnr

MOST_MARKS = 64
"""A side of the grid that is painted on, at most."""


@dataclass(frozen=True)
class Limits:
    """The most that the page admits."""

    upload_bytes: int = 16 << 20  # of a file that is uploaded, and of any other request
    pixels: int = 1 << 24  # of an image, by its header; a larger one is not decoded
    coded_pixels: int = 1 << 18  # of an image that a model gets; a larger one is reduced to it
    images: int = 64  # that are drawn at once

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"the limit {name} is {value}; it must be at least 1")

    def check_count(self, count: int) -> int:
        """The number of images, if so many may be drawn at once. Raises InputError."""
        if not 1 <= count <= self.images:
            raise InputError(f"{count} images are asked for; 1 to {self.images} can be drawn at once")
        return int(count)


class Picture(NamedTuple):
    """An image that was taken in, uint8."""

    own: Tensor  # (C, Y, X), at its own size or as large as is admitted
    square: Tensor  # (C, size, size), cropped and resized to what the model was trained on
    note: str  # what was changed of it, in words; may be empty


def take(path: Path, channels: int, size: int, limits: Limits) -> Picture:
    """Read an image file for a model of so many channels and square images of that size.

    Raises:
        InputError: it is too large, has too many pixels, is no PNG, JPEG or WebP, or can't be decoded.
    """
    length = path.stat().st_size
    if length > limits.upload_bytes:
        raise InputError(f"{path.name} has {length:,} bytes; at most {limits.upload_bytes:,} are admitted")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                pixels = opened.width * opened.height
    except Image.DecompressionBombError:
        pixels = limits.pixels + 1
    except Exception as error:  # Pillow raises whatever it runs into
        raise InputError(f"{path.name} is not a PNG, JPEG or WebP image") from error
    if pixels > limits.pixels:
        raise InputError(f"{path.name} has too many pixels; at most {limits.pixels:,} are admitted: make it smaller")
    try:
        decoded = decode_image(path, channels, limits.pixels)
        square = torch.from_numpy(decode_image(path, channels, limits.pixels, size).pixels)
    except InputError as error:
        raise InputError(f"{path.name} can't be decoded: it is damaged or cut short") from error
    own, reduced = _reduced(torch.from_numpy(decoded.pixels), limits.coded_pixels)
    return Picture(own, square, "; ".join(note for note in (decoded.lost, reduced) if note))


def _reduced(image: Tensor, pixels: int) -> tuple[Tensor, str]:
    """(C, Y, X) uint8 with at most so many pixels, and what was done in words."""
    height, width = image.shape[-2:]
    if height * width <= pixels:
        return image, ""
    share = (pixels / (height * width)) ** 0.5
    rows = min(pixels, max(1, int(height * share)))
    size = (rows, max(1, min(int(width * share), pixels // rows)))
    small = interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return small.round().clamp(0, 255).to(torch.uint8), f"{width}x{height} pixels reduced to {size[1]}x{size[0]}"


def marked(text: str | None) -> Tensor:
    """What was painted, as the painter tells it in JSON: (side, side) bool. Raises InputError where it is none."""
    try:
        told = json.loads(text or "{}")
        side, marks = told.get("side", 1), told.get("marks") or "0"
        if not (isinstance(side, int) and 1 <= side <= MOST_MARKS and len(marks) in (1, side * side)):
            raise ValueError("the marks are not those of a square")
        return torch.tensor([mark == "1" for mark in marks]).expand(side * side).view(side, side)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError("what was painted can't be read: load the page anew") from error


def _unit(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image


def reconstruct(model: TrainedModel, image: Tensor, levels: int | None = None) -> tuple[Tensor, int, float]:
    """(image, bytes of the file, PSNR in dB) of the file of codes of an image, with so many levels; None is all."""
    (file,) = model.compress([image], levels)
    (decoded,) = model.decompress([file])
    return decoded, len(file), psnr(float((decoded - _unit(image)).double().square().mean()))


def geometry(model: TrainedModel) -> Geometry:
    """Where the positions of the grids lie in an image."""
    return geometry_of(model.config.model.latent_grids)


def kept_codes(painted: Tensor, where: Geometry) -> tuple[Tensor, ...]:
    """(H_l, W_l) bool of each level: positions of which more than half of the pixels are painted.

    It is decided on the coarsest grid, so that no code is kept whose parent is drawn anew. What an image grows by
    before it is encoded counts as the pixel of the border next to it.

    Args:
        painted: (Y, X) bool, of the pixels of the image.
    """
    height, width = painted.shape
    (rows, columns), *_ = Geometry(where.unit, where.margin, (1,)).grids(height, width)
    above = where.margin // 2
    sides = (above, columns * where.unit - width - above, above, rows * where.unit - height - above)
    grown = pad(painted[None, None].float(), sides, mode="replicate")
    coarse = avg_pool2d(grown, where.unit)[0, 0] > 0.5
    return tuple(coarse.repeat_interleave(times, 0).repeat_interleave(times, 1) for times in where.times)


def complete(
    model: TrainedModel, image: Tensor, painted: Tensor, count: int, class_name: str | None, temperature: float,
    seed: int, guidance: float = 1.0,
) -> tuple[Tensor, float, Tensor]:  # fmt: skip
    """Draw images that keep the codes of an image (C, size, size) where it is painted, (Y, X) bool stretched over it.

    Returns:
        The image with grey where nothing is kept, the share of the coarsest codes that are kept, and the images.

    Raises:
        InputError: nothing or everything is kept; as `TrainedModel.complete`.
    """
    size, where = model.config.data.size, geometry(model)
    pixels = interpolate(painted[None, None].float(), (size, size), mode="nearest-exact")[0, 0] > 0.5
    kept = kept_codes(pixels, where)
    if not kept[0].any():
        raise InputError("nothing is kept: paint the part of the image that should stay")
    if kept[0].all():
        raise InputError("everything is kept, so that nothing is left to draw: leave a part of the image unpainted")
    codes = tuple(one.cpu() for one in model.encode(image[None]))
    how = SamplingParams(temperature=temperature, guidance=guidance)
    drawn = model.draw(count, seed=seed, class_name=class_name, params=how, known=KnownCodes(codes, kept))
    above = where.margin // 2
    shown = kept[0].repeat_interleave(where.unit, 0).repeat_interleave(where.unit, 1)
    shown = shown[above : above + size, above : above + size]
    return torch.where(shown, _unit(image), 0.5), float(kept[0].float().mean()), drawn.images


def usage(model: TrainedModel, image: Tensor) -> list[tuple[int, int, float, float | None]]:
    """(codewords, those that an image uses, their perplexity, perplexity in training or None) of each level.

    Perplexity in training is that of the moving averages, which some systems do not keep.
    """
    paths = model.autoencoder.paths(model.encode(image[None]))
    quantizer = getattr(model.autoencoder, "quantizer", None)
    books = quantizer.levels if isinstance(quantizer, ResidualQuantizer) else ()
    found = []
    for level, (path, codewords) in enumerate(zip(paths, model.config.model.num_codewords, strict=True)):
        counts = vq.counts(path.cpu(), codewords)
        trained = vq.perplexity(books[level].count.flatten().cpu()) if books else None
        found.append((codewords, int((counts > 0).sum()), vq.perplexity(counts), trained))
    return found


def hierarchy_at(model: TrainedModel, image: Tensor, x: int, y: int) -> Figure:
    """Figure 10 for the pixel (column x, row y) of an image. Raises InputError where it can't be drawn."""
    where = geometry(model)
    position = ((y + where.margin // 2) // where.unit, (x + where.margin // 2) // where.unit)
    name = f"{model.config.name}, position ({position[0]}, {position[1]})"
    return hierarchy.draw(hierarchy.tree_at(model.autoencoder, model.config.model.system, image, position, name))
