"""What the page shows, computed from a trained model. Nothing here knows of the page.

Images are (C, Y, X), uint8 or float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.compression.geometry import Geometry, geometry_of
from hrvqvae.models.one_grid import OneGrid
from hrvqvae.plots import hierarchy
from hrvqvae.plots.figures import tree_at
from hrvqvae.priors.generative import KnownCodes
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.quantize import functional as vq
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import psnr


@dataclass(frozen=True)
class Reconstruction:
    """An image from the file of its codes.

    Attributes:
        image: (C, Y, X) float32 in [0, 1].
        bytes: of the file.
        psnr: in dB; infinite where the image is equal.
    """

    image: Tensor
    bytes: int
    psnr: float


@dataclass(frozen=True)
class Completion:
    """Images that keep a part of one.

    Attributes:
        kept: (C, size, size) float32, the image with grey where nothing is kept.
        share: of the codes of the coarsest level that are kept.
        images: (B, C, size, size) float32 in [0, 1].
    """

    kept: Tensor
    share: float
    images: Tensor


@dataclass(frozen=True)
class LevelUsage:
    """Codewords of one level: how many there are, how many of them an image uses, and the perplexities.

    Attributes:
        trained: perplexity of the choices in training, by moving averages; None where the system keeps none.
    """

    codewords: int
    used: int
    perplexity: float
    trained: float | None


def _unit(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image


def reconstruct(model: TrainedModel, image: Tensor, levels: int | None = None) -> Reconstruction:
    """The image that is read from its file of codes with `levels` levels; None is all.

    Raises:
        InputError: levels out of range, an image outside the contract.
    """
    (file,) = model.compress([image], levels)
    (decoded,) = model.decompress([file])
    error = float((decoded - _unit(image)).double().square().mean())
    return Reconstruction(decoded, len(file), psnr(error))


def draw(
    model: TrainedModel, count: int, class_name: str | None, temperature: float, seed: int, guidance: float = 1.0
) -> Tensor:
    """New images (count, C, size, size). Raises InputError as `TrainedModel.sample`."""
    return model.sample(count, class_name=class_name, temperature=temperature, seed=seed, guidance=guidance)


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
) -> Completion:  # fmt: skip
    """Draw images that keep the codes of an image where it is painted.

    Args:
        image: (C, size, size), of the size that was trained on.
        painted: (Y, X) bool of any size, stretched over the image.

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
    return Completion(torch.where(shown, _unit(image), 0.5), float(kept[0].float().mean()), drawn.images)


def usage(model: TrainedModel, image: Tensor) -> list[LevelUsage]:
    """How the codewords of each level are used by an image. Raises InputError on images outside the contract."""
    paths = model.autoencoder.paths(model.encode(image[None]))
    averages: Sequence[Tensor] = model.autoencoder.codeword_counts if isinstance(model.autoencoder, OneGrid) else ()
    found = []
    for level, (path, codewords) in enumerate(zip(paths, model.config.model.num_codewords, strict=True)):
        counts = vq.counts(path.cpu(), codewords)
        trained = vq.perplexity(averages[level].flatten().cpu()) if averages else None
        found.append(LevelUsage(codewords, int((counts > 0).sum()), vq.perplexity(counts), trained))
    return found


def position_at(model: TrainedModel, x: int, y: int) -> tuple[int, int]:
    """(row, column) on the coarsest grid of the pixel at column x, row y of an image."""
    where = geometry(model)
    return (y + where.margin // 2) // where.unit, (x + where.margin // 2) // where.unit


def hierarchy_at(model: TrainedModel, image: Tensor, position: tuple[int, int]) -> Figure:
    """Figure 10 for a position (row, column) of an image (C, Y, X).

    Raises:
        InputError: the system has no linked codebooks, or too many codewords to draw; the position is not on the grid.
    """
    name = f"{model.config.name}, position ({position[0]}, {position[1]})"
    return hierarchy.draw(tree_at(model.autoencoder, model.config.model.system, image, position, name))
