"""Codes by what they decode to and by what they cost: rate-distortion optimization, which leaves the decoder as it is.

The usual codes of a position name the leaf nearest to its latent, or about that. Here each position takes, of the
leaves that are near, the one of the least

    squared error of the decoded image + weight * bits of the codes

The error of the decoded image is known by the decoder's gradient g at the codes so far, and by the mean of its
curvature J^T J over the positions of an image, from random projections: a codeword that moves by d changes the error by
g d + 1.5 d^T J^T J d. What neighbouring positions change overlaps in the image. So a quarter of the positions, no two
of them side by side, is chosen by one gradient, and 1.5 in place of 1 is for what still overlaps. Bits are those of the
integer models that the file is coded by (`codec/choice.py`).

Of the codes after each sweep and the usual ones, an image gets those of the least sum, by its true error and true bits.

Shapes: B images, P positions, K candidates, L levels, D channels of the latents, n leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.codec.choice import Models, choose
from hrvqvae.codec.geometry import Grid
from hrvqvae.codec.stream import Codec
from hrvqvae.errors import InputError
from hrvqvae.quantize import Codes
from hrvqvae.systems.base import Autoencoder, unit_images
from hrvqvae.systems.one_grid import OneGrid, Quantizer

_NEAR = 16  # leaves that a position chooses from
_SWEEPS = 2
_OVERLAP = 1.5  # factor of the curvature
_APART = 2  # rows and columns between positions that are chosen together
_PROJECTIONS = 2  # for the curvature
_MOST_LEAVES = 1 << 16
_DISTANCES = 1 << 24  # that exist at once


@dataclass(frozen=True)
class Leaves:
    """All that a position can be decoded from.

    Attributes:
        codes: (n, L) int64.
        vectors: (n, D).
    """

    codes: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, model: OneGrid) -> Leaves:
        """Raises InputError where they are too many."""
        symbols = model.config.num_symbols
        count = math.prod(symbols)
        if count > _MOST_LEAVES:
            raise InputError(f"a rate weight takes a model of up to {_MOST_LEAVES:,} leaves; this one has {count:,}")
        numbers = torch.cartesian_prod(*(torch.arange(one) for one in symbols)).view(count, len(symbols))
        numbers = numbers.to(next(model.parameters()).device)
        vectors = cast(Quantizer, model.quantizer).lookup(tuple(level.view(1, 1, -1) for level in numbers.T))
        return cls(numbers, vectors[0, 0].detach().float())

    def near(self, latents: Tensor, number: int) -> Tensor:
        """Numbers of the leaves nearest to (..., D) latents, the nearest first: (..., number)."""
        number = min(number, len(self.vectors))
        chunks = torch.split(latents.flatten(0, -2), max(1, _DISTANCES // len(self.vectors)))
        found = [torch.cdist(some, self.vectors).topk(number, largest=False).indices for some in chunks]
        return torch.cat(found).view(*latents.shape[:-1], number)

    def numbers(self, codes: tuple[Tensor, ...], symbols: tuple[int, ...]) -> Tensor:
        """Numbers of the leaves that codes (B, H, W) a level name: (B, P)."""
        found = torch.zeros_like(codes[0])
        for code, size in zip(codes, symbols, strict=True):
            found = found * size + code
        return found.flatten(1)


@dataclass(frozen=True)
class RateDistortion:
    """An encoder that weighs error against bits.

    Attributes:
        model: that decodes.
        codec: whose models say what codes cost; where a level has none, all its codes cost the same.
        leaves: of the model.
        weight: the squared error, summed over the pixel values of an image in [0, 1], that a bit is worth.
    """

    model: OneGrid
    codec: Codec
    leaves: Leaves
    weight: float

    @classmethod
    def of(cls, model: Autoencoder, codec: Codec, weight: float) -> RateDistortion:
        """Raises InputError: a weight below 0, a model that is no `OneGrid` or has too many leaves."""
        if not 0 <= weight < math.inf:
            raise InputError(f"the rate weight is {weight}; it must be at least 0")
        if not isinstance(model, OneGrid):
            raise InputError(f"a rate weight takes a model with one latent grid (OneGrid), which {codec.name} is not")
        return cls(model, codec, Leaves.of(model), weight)

    def encode(self, images: Tensor) -> Codes:
        """Codes of images (B, C, Y, X), a tensor (B, H, W) a level. Raises InputError as the model."""
        with torch.inference_mode(False):  # gradients are wanted
            unit = unit_images(images, self.model.channels).clone()
            chosen = torch.from_numpy(_choose(self.model, self.codec, self.leaves, unit, self.weight))
        layout = self.codec.layout((unit.shape[-2], unit.shape[-1]))
        grid = (len(unit), *layout.grids[0].tolist())
        levels = range(len(self.codec.symbols))
        return tuple(chosen[:, layout.part(level)].view(grid).long().to(images.device) for level in levels)


def _choose(model: OneGrid, codec: Codec, leaves: Leaves, unit: Tensor, weight: float) -> NDArray[np.int32]:
    """Codes of images: (B, all codes), level after level."""
    size = (unit.shape[-2], unit.shape[-1])
    layout = codec.layout(size)
    models = Models.of(layout, [codec.network(level, True) for level in range(len(codec.symbols))])
    with torch.no_grad():
        latents = model.latents(unit)
        usual = leaves.numbers(model.encode(unit), codec.symbols)
        numbers = torch.cat([usual.unsqueeze(-1), leaves.near(latents.flatten(1, 2), _NEAR)], -1)  # (B, P, K)
    grid = (latents.shape[1], latents.shape[2])
    chosen = np.zeros(usual.shape, np.int64)
    codes = leaves.codes[usual].permute(0, 2, 1).flatten(1).cpu().numpy().astype(np.int32)  # (B, all codes)
    candidates = leaves.codes[numbers].cpu().numpy().astype(np.int32)
    errors = np.zeros(numbers.shape, np.float32)
    nowhere = np.zeros(0, np.int64)

    def now() -> Tensor:
        """Codewords of what is chosen, (B, H, W, D)."""
        number = numbers.gather(2, torch.from_numpy(chosen).to(numbers.device).unsqueeze(-1))
        return leaves.vectors[number.squeeze(-1)].view(len(unit), *grid, leaves.vectors.shape[1])

    def objective() -> NDArray[np.float64]:
        with torch.no_grad():
            error = (_decoded(model, now(), size).clamp(0, 1) - unit).square().flatten(1).sum(1).double()
        bits = choose(models, codes, candidates, errors, chosen, nowhere, 0.0)
        return error.cpu().numpy() + weight * bits.astype(np.float64)

    best, least = codes.copy(), objective()
    curvature = _curvature(model, now(), size)
    for _ in range(_SWEEPS):
        for places in _quarters(grid):
            some = torch.from_numpy(places).to(unit.device)
            vectors = now()
            step = leaves.vectors[numbers[:, some]] - vectors.flatten(1, 2)[:, some].unsqueeze(2)  # (B, P', K, D)
            slope = _gradient(model, vectors, unit).flatten(1, 2)[:, some].unsqueeze(2)
            bent = (step @ curvature.unsqueeze(1)) * step
            errors[:, places] = (step * slope + _OVERLAP * bent).sum(-1).cpu().numpy()
            choose(models, codes, candidates, errors, chosen, places, weight)
        found = objective()
        better = found < least
        best[better], least[better] = codes[better], found[better]
    return best


def _decoded(model: OneGrid, vectors: Tensor, size: Grid) -> Tensor:
    """(B, H, W, D) codewords -> (B, C, Y, X) on the scale [0, 1], not clamped."""
    return (model.pixels(vectors, size) + 1) / 2


def _gradient(model: OneGrid, vectors: Tensor, unit: Tensor) -> Tensor:
    """Of the squared error of each image, to its codewords (B, H, W, D)."""
    with torch.enable_grad():
        at = vectors.detach().requires_grad_()
        decoded = _decoded(model, at, (unit.shape[-2], unit.shape[-1])).clamp(0, 1)
        return torch.autograd.grad((decoded - unit).square().sum(), at)[0]


def _curvature(model: OneGrid, vectors: Tensor, size: Grid) -> Tensor:
    """The mean of J^T J over the positions of each image: (B, D, D). An image's does not depend on the others."""
    with torch.enable_grad():
        at = vectors.detach().requires_grad_()
        decoded = _decoded(model, at, size)
        total = torch.zeros((), device=at.device)
        generator = torch.Generator().manual_seed(0)
        for _ in range(_PROJECTIONS):
            direction = torch.randn(decoded.shape[1:], generator=generator).to(at.device).expand_as(decoded)
            (back,) = torch.autograd.grad(decoded, at, direction, retain_graph=True)
            rows = back.flatten(1, 2)
            total = total + rows.mT @ rows / (_PROJECTIONS * rows.shape[1])
        return total


def _quarters(grid: Grid) -> Iterator[NDArray[np.int64]]:
    """Numbers of the positions that are chosen together; every position is in one of the sets."""
    numbers = np.arange(grid[0] * grid[1]).reshape(grid)
    for row in range(_APART):
        for column in range(_APART):
            yield numbers[row::_APART, column::_APART].flatten()
