"""The computations behind the page. Images are (C, Y, X), uint8 or float32 in [0, 1]."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.compression.entropy_model import Geometry, geometry_of
from hrvqvae.data.images import decode_image
from hrvqvae.plots import hierarchy
from hrvqvae.priors.generative import KnownCodes
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


def _unit(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image


def reconstruct(model: TrainedModel, image: Tensor, levels: int | None = None) -> tuple[Tensor, int, float]:
    """(image, bytes, PSNR in dB) of the file of codes of an image with so many levels; None is all."""
    (file,) = model.compress([image], levels)
    (decoded,) = model.decompress([file])
    return decoded, len(file), psnr(float((decoded - _unit(image)).double().square().mean()))


def geometry(model: TrainedModel) -> Geometry:
    """The geometry of the model's grids."""
    return geometry_of(model.config.model.latent_grids)


def kept_codes(painted: Tensor, where: Geometry) -> tuple[Tensor, ...]:
    """(H_l, W_l) bool of each level: where more than half of the pixels are painted, (Y, X) bool.

    The coarsest grid decides, so that no code is kept whose parent is drawn anew. The margin that an image grows by
    before it is encoded counts as the pixels of the border.
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

    Returns: the image with grey where nothing is kept, the share of the coarsest codes that is kept, the drawn images.

    Raises:
        InputError: nothing or everything is kept; as `TrainedModel.complete`.
    """
    size, where = model.config.data.size, geometry(model)
    pixels = interpolate(painted[None, None].float(), (size, size), mode="nearest-exact")[0, 0] > 0.5
    kept = kept_codes(pixels, where)
    if not kept[0].any():
        raise InputError("nothing is kept: paint the part of the image that should stay")
    if kept[0].all():
        raise InputError("everything is kept: leave a part of the image unpainted")
    codes = tuple(one.cpu() for one in model.encode(image[None]))
    how = SamplingParams(temperature=temperature, guidance=guidance)
    drawn = model.draw(count, seed=seed, class_name=class_name, params=how, known=KnownCodes(codes, kept))
    above = where.margin // 2
    shown = kept[0].repeat_interleave(where.unit, 0).repeat_interleave(where.unit, 1)
    shown = shown[above : above + size, above : above + size]
    return torch.where(shown, _unit(image), 0.5), float(kept[0].float().mean()), drawn.images


def usage(model: TrainedModel, image: Tensor) -> list[tuple[int, int, float, float | None]]:
    """(codewords, used by an image, perplexity, that of the moving averages of training or None) of each level."""
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
    return hierarchy.draw(hierarchy.tree_at(model.autoencoder, image, position, name))
