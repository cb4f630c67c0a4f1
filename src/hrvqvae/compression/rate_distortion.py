"""Search codes by their error and their bits: rate-distortion optimization, which does not change the decoder.

Among the leaves near its latent, each position takes the one of the least

    squared error of the decoded image + lmbda * bits of the codes (`choice.py`)

The error is estimated from the decoder's gradient g at the present codes, and from its curvature J^T J, the mean over
the positions of an image, by random projections: a codeword that moves by d changes the error by g d + 1.5 d^T J^T J d.
Changes at neighbouring positions overlap in the image. So one gradient serves a quarter of the positions, no two of
them adjacent, and the factor 1.5 in place of 1 allows for the rest of the overlap. Finally an image gets these codes or
those without the search, whichever have the lesser sum of true error and bits.

A large image is searched in tiles with a halo whose codes are not kept, which takes some 0.7 GB.

Shapes: B images, P positions, K candidates, L levels, D channels of the latents, n leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.compression.choice import Choice
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.config import Grid
from hrvqvae.models.base import Autoencoder, to_unit_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.models.tiles import divide_grid, index_pixels
from hrvqvae.quantize import Codes
from hrvqvae.utils.device import computes_bf16
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import tracked

_NEAR = 16  # candidates per position
_SWEEPS = 2
_PROJECTIONS = 2  # for the curvature
_OVERLAP = 1.5  # factor of the curvature
_APART = 2  # rows and columns between positions that are chosen together
_MOST_LEAVES = 1 << 16
_NUMBERS = 1 << 22  # distances, or values of candidates' vectors, that exist at once
_POSITIONS = 1 << 15  # positions of images that are searched together
_SIDE = 256  # positions of a tile
_AROUND = 12  # positions of the halo, twice the reach of a decoder of convolutions


def why_no_lambda(model: Autoencoder, levels: int) -> str:
    """Return why these levels of a model take no lambda; an empty text if they do."""
    if not isinstance(model, SingleGridAutoencoder):
        return "a lambda takes a model with one latent grid, which this one is not"
    count = math.prod(model.config.num_symbols[:levels])
    if count > _MOST_LEAVES:
        return f"a lambda takes a model of up to {_MOST_LEAVES:,} leaves; this one has {count:,}"
    return ""


class RateDistortion:
    """An encoder that weighs error against bits, both of an image of the first levels alone."""

    def __init__(self, model: Autoencoder, entropy_model: EntropyModel, levels: int | None = None) -> None:
        """Take the first levels (None: all). Raises InputError as `why_no_lambda` says."""
        self.entropy_model, self.levels = entropy_model, levels or model.prefixes[-1]
        if why := why_no_lambda(model, self.levels):
            raise InputError(why)
        self._model = cast(SingleGridAutoencoder, model)
        symbols = self._model.config.num_symbols[: self.levels]
        leaves = torch.cartesian_prod(*(torch.arange(count) for count in symbols)).view(-1, len(symbols))
        leaves = leaves.to(next(model.parameters()).device)
        vectors = self._model.quantizer.lookup(tuple(level.view(1, 1, -1) for level in leaves.T))
        self._leaves, self._vectors = leaves.int().cpu().numpy(), vectors[0, 0].detach().float()  # (n, L), (n, D)

    def encode(self, images: Tensor, lmbda: float | Tensor) -> Codes:
        """Return the codes of images (B, C, Y, X), one tensor (B, H, W) per level, as `weigh`."""
        return self.weigh(images, lmbda)[0]

    def weigh(self, images: Tensor, lmbda: float | Tensor) -> tuple[Codes, Tensor]:
        """Return the codes and the squared error of images, summed over the pixel values of an image in [0, 1].

        Args:
            images: (B, C, Y, X). Raises InputError if the model does not take them.
            lmbda: Of error + lmbda * bits; a number, or (B,).
        """
        to_unit_images(images[..., :1, :1], self._model.channels)  # a shape and a type that it takes
        count, stride = len(images), self._model.config.stride
        grid = self._model.config.latent_grids(*images.shape[-2:])[0]
        lmbdas = torch.as_tensor(lmbda, dtype=torch.float64, device="cpu").expand(count)
        chosen = torch.zeros(self.levels, count, *grid, dtype=torch.int32)
        errors = torch.zeros(count, dtype=torch.float64)
        together, tiles = max(1, _POSITIONS // math.prod(grid)), divide_grid(grid, _SIDE, _AROUND)
        parts = [*product(range(0, count, together), tiles)]
        for begin, tile in tracked(parts, "search tiles", len(parts), lambda _: 1) if len(tiles) > 1 else parts:
            batch, (core, around, inside) = slice(begin, begin + together), tile
            window = (around[0].start, around[1].start, *grid)
            codes, squares = self._weighed(images[batch][index_pixels(around, stride)], lmbdas[batch].numpy(), window)
            chosen[:, batch][index_pixels(core)] = torch.from_numpy(codes[index_pixels(inside)])
            errors[batch] += squares[index_pixels(inside, stride)].sum((1, 2), dtype=torch.float64)
        return tuple(level.long().to(images.device) for level in chosen), errors

    @torch.inference_mode(False)  # gradients are wanted
    @torch.no_grad()
    def _weighed(
        self, images: Tensor, lmbdas: NDArray[np.float64], window: tuple[int, int, int, int]
    ) -> tuple[NDArray[np.int32], Tensor]:
        """Return the codes (L, B, H, W) of images, searched in one piece, and their squared errors (B, Y, X)."""
        unit = to_unit_images(images, self._model.channels).clone()
        size = (unit.shape[-2], unit.shape[-1])
        layout = self.entropy_model.layout(size).first(self.levels)
        entropy_model = self.entropy_model if lmbdas.any() else self.entropy_model.bare
        networks = [entropy_model.network(level) for level in range(self.levels)]
        latents = self._model.latents(unit)
        usual = torch.zeros(latents.shape[:-1], dtype=torch.long, device=latents.device)
        codes = self._model.quantizer.encode(latents)[: self.levels]
        for code, symbols in zip(codes, self.entropy_model.symbols, strict=False):
            usual = usual * symbols + code
        near = self._near(latents.flatten(1, 2))
        candidates = torch.cat([usual.flatten(1).int().unsqueeze(-1), near], -1)  # (B, P, K)
        grid = (latents.shape[1], latents.shape[2])
        del latents
        choice = Choice(layout, networks, self._leaves, np.ascontiguousarray(candidates.cpu().numpy()), window)

        def now() -> Tensor:
            """Return the chosen codewords (B, H, W, D)."""
            return self._vectors[torch.from_numpy(choice.leaves).to(unit.device)].view(len(unit), *grid, -1)

        def measured() -> tuple[Tensor, NDArray[np.float64]]:
            """Return the squared errors (B, Y, X), and the sum that is minimized of each image."""
            squares = (self.decoded(now(), size).clamp(0, 1) - unit).square().sum(1).cpu()
            return squares, squares.sum((1, 2), dtype=torch.float64).numpy() + lmbdas * choice.bits

        best, (squares, least) = choice.codes.copy(), measured()
        curvature = self.curvature(now(), unit)
        for _ in range(_SWEEPS):
            for places in _quarters(grid):
                vectors = now()
                slopes = self.gradient(vectors, unit)
                errors = self._errors(candidates, places, vectors.flatten(1, 2), slopes.flatten(1, 2), curvature)
                choice.settle(places, errors, lmbdas)
        new_squares, total = measured()
        better = total < least
        best[better], squares[torch.from_numpy(better)] = choice.codes[better], new_squares[torch.from_numpy(better)]
        return best.reshape(len(unit), self.levels, *grid).swapaxes(0, 1), squares

    def decoded(self, vectors: Tensor, size: Grid) -> Tensor:
        """Return images (B, C, Y, X) on the scale [0, 1], not clamped, from codewords (B, H, W, D)."""
        fewer = self.levels < self._model.prefixes[-1]
        levels = torch.tensor(self.levels, device=vectors.device) if fewer else None
        return (self._model.pixels(vectors, size, levels) + 1) / 2

    @torch.enable_grad()
    def gradient(self, vectors: Tensor, unit: Tensor) -> Tensor:
        """Return the gradient of the squared error of images (B, C, Y, X) at their codewords (B, H, W, D)."""
        at, decoded = self._decoded(vectors, unit)
        (back,) = torch.autograd.grad((decoded.clamp(0, 1) - unit).square().sum(), at)
        return back

    @torch.enable_grad()
    def curvature(self, vectors: Tensor, unit: Tensor) -> Tensor:
        """Return the mean of J^T J over the positions of each image, (B, D, D)."""
        at, decoded = self._decoded(vectors, unit)
        total = torch.zeros((), device=vectors.device)
        generator = torch.Generator().manual_seed(0)
        for projection in range(_PROJECTIONS):
            direction = torch.randn(decoded.shape[1:], generator=generator).to(at.device).expand_as(decoded)
            (back,) = torch.autograd.grad(decoded, at, direction, retain_graph=projection < _PROJECTIONS - 1)
            rows = back.flatten(1, 2)
            total = total + rows.mT @ rows
        return total / (_PROJECTIONS * vectors.shape[1] * vectors.shape[2])

    def _decoded(self, vectors: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codewords with gradient, and the images that they decode to."""
        at = vectors.detach().requires_grad_()
        # Half of the time; an error of 2% in a gradient changes no choice that matters.
        with torch.autocast(at.device.type, torch.bfloat16, enabled=computes_bf16(at.device)):
            return at, self.decoded(at, (unit.shape[-2], unit.shape[-1]))

    def _near(self, latents: Tensor) -> Tensor:
        """Return the leaves nearest to latents (B, P, D), the nearest first: indices (B, P, K - 1) int32."""
        count = min(_NEAR, len(self._vectors))
        chunks = torch.split(latents.flatten(0, -2), max(1, _NUMBERS // len(self._vectors)))
        nearest = [torch.cdist(chunk, self._vectors).topk(count, largest=False).indices.int() for chunk in chunks]
        return torch.cat(nearest).view(*latents.shape[:-1], count)

    def _errors(
        self, candidates: Tensor, places: NDArray[np.int64], vectors: Tensor, slopes: Tensor, curvature: Tensor
    ) -> NDArray[np.float32]:
        """Return by how much the error changes with the candidates (B, P, K) at places (P',), by the gradient there."""
        count, _, most = candidates.shape
        errors = np.empty((count, len(places), most), np.float32)
        together = max(1, _NUMBERS // (count * most * vectors.shape[-1]))
        for begin in range(0, len(places), together):
            chunk = torch.from_numpy(places[begin : begin + together]).to(vectors.device)
            step = self._vectors[candidates[:, chunk]] - vectors[:, chunk].unsqueeze(2)  # (B, P'', K, D)
            bent = (step.flatten(1, 2) @ curvature).view(step.shape) * _OVERLAP
            changed = (step * (slopes[:, chunk].unsqueeze(2) + bent)).sum(-1)
            errors[:, begin : begin + together] = changed.cpu().numpy()
        return errors


def _quarters(grid: Grid) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of positions that are chosen together; every position is in one of the sets."""
    positions = np.arange(grid[0] * grid[1]).reshape(grid)
    for row in range(_APART):
        for column in range(_APART):
            yield positions[row::_APART, column::_APART].flatten()
