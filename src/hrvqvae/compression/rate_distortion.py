"""Codes by what they decode to and by what they cost: rate-distortion optimization, which leaves the decoder as it is.

Each position takes, of the leaves near its latent, the one of the least

    squared error of the decoded image + lmbda * bits of the codes

The error of the decoded image is known by the decoder's gradient g at the codes so far, and by the mean of its
curvature J^T J over the positions of an image, from random projections: a codeword that moves by d changes the error by
g d + 1.5 d^T J^T J d. What neighbouring positions change overlaps in the image. So a quarter of the positions, no two
of them side by side, is chosen by one gradient, and 1.5 in place of 1 is for what still overlaps. Bits are those of the
integer models that the file is coded by (`choice.py`).

Of the codes after the sweeps and the usual ones, an image gets those of the lesser sum, by its true error and bits.

Convolutions of gradients are in bfloat16 where the processor or GPU multiplies it: an error of 2% in a gradient changes
no choice that matters, and takes half of the time.

Memory: a large image is searched in tiles of `_SIDE` positions a side, each as if it were an image with the `_AROUND`
positions around it, whose codes are not kept: what 80,000 positions take, some 0.7 GB. Small images are taken together
up to `_POSITIONS`.

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
from hrvqvae.models.base import Autoencoder, unit_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.models.tiles import areas, pixels
from hrvqvae.quantize import Codes
from hrvqvae.utils.device import computes_bf16
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import tracked

_NEAR = 16  # leaves that a position chooses from
_SWEEPS = 2
_PROJECTIONS = 2  # for the curvature
_OVERLAP = 1.5  # factor of the curvature
_APART = 2  # rows and columns between positions that are chosen together
_MOST_LEAVES = 1 << 16
_NUMBERS = 1 << 22  # of distances, or of candidates' vectors, that exist at once
_POSITIONS = 1 << 15  # of images that are encoded together
_SIDE = 256  # positions of a tile
_AROUND = 12  # twice as many as a decoder of convolutions looks at


def why_no_lambda(model: Autoencoder, levels: int) -> str:
    """Why no lambda can be given to so many levels of a model; empty where one can."""
    if not isinstance(model, SingleGridAutoencoder):
        return "a lambda takes a model with one latent grid, which this one is not"
    count = math.prod(model.config.num_symbols[:levels])
    if count > _MOST_LEAVES:
        return f"a lambda takes a model of up to {_MOST_LEAVES:,} leaves; this one has {count:,}"
    return ""


class RateDistortion:
    """An encoder that weighs error against bits, both of an image that has the first levels alone.

    Where the entropy_model has no network for a level, all its codes cost the same.
    """

    def __init__(self, model: Autoencoder, entropy_model: EntropyModel, levels: int | None = None) -> None:
        """Of the first levels, None for all. Raises InputError: not one latent grid, or too many leaves."""
        self.entropy_model, self.levels = entropy_model, levels or model.prefixes[-1]
        if why := why_no_lambda(model, self.levels):
            raise InputError(why)
        self._model = cast(SingleGridAutoencoder, model)
        symbols = self._model.config.num_symbols[: self.levels]
        leaves = torch.cartesian_prod(*(torch.arange(one) for one in symbols)).view(-1, len(symbols))
        leaves = leaves.to(next(model.parameters()).device)
        vectors = self._model.quantizer.lookup(tuple(level.view(1, 1, -1) for level in leaves.T))
        self._leaves, self._vectors = leaves.int().cpu().numpy(), vectors[0, 0].detach().float()  # (n, L), (n, D)

    def encode(self, images: Tensor, lmbda: float | Tensor) -> Codes:
        """Codes of images (B, C, Y, X), a tensor (B, H, W) for each of the levels.

        Args:
            lmbda: of the sum that is minimized: error + lmbda * bits, where the error is squared and summed over the
                pixel values of an image in [0, 1]; one for all images, or (B,).

        Raises:
            InputError: other images than the model takes.
        """
        return self.weigh(images, lmbda)[0]

    def weigh(self, images: Tensor, lmbda: float | Tensor) -> tuple[Codes, Tensor]:
        """As `encode`, and the squared error of each image (B,)."""
        unit_images(images[..., :1, :1], self._model.channels)  # a shape and a type that it takes
        count, stride = len(images), self._model.config.stride
        grid = self._model.config.latent_grids(*images.shape[-2:])[0]
        lmbdas = torch.as_tensor(lmbda, dtype=torch.float64, device="cpu").expand(count)
        chosen = torch.zeros(self.levels, count, *grid, dtype=torch.int32)
        errors = torch.zeros(count, dtype=torch.float64)
        together, tiles = max(1, _POSITIONS // math.prod(grid)), areas(grid, _SIDE, _AROUND)
        parts = [*product(range(0, count, together), tiles)]
        for begin, tile in tracked(parts, "search tiles", len(parts), lambda _: 1) if len(tiles) > 1 else parts:
            some, (core, around, inside) = slice(begin, begin + together), tile
            window = (around[0].start, around[1].start, *grid)
            codes, squares = self._weighed(images[some][pixels(around, stride)], lmbdas[some].numpy(), window)
            chosen[:, some][pixels(core)] = torch.from_numpy(codes[pixels(inside)])
            errors[some] += squares[pixels(inside, stride)].sum((1, 2), dtype=torch.float64)
        return tuple(one.long().to(images.device) for one in chosen), errors

    @torch.inference_mode(False)  # gradients are wanted
    @torch.no_grad()
    def _weighed(
        self, images: Tensor, lmbdas: NDArray[np.float64], window: tuple[int, int, int, int]
    ) -> tuple[NDArray[np.int32], Tensor]:
        """Codes (L, B, H, W) of images that are searched as a whole, and their squared errors (B, Y, X)."""
        unit = unit_images(images, self._model.channels).clone()
        size = (unit.shape[-2], unit.shape[-1])
        layout = self.entropy_model.layout(size).first(self.levels)
        entropy_model = self.entropy_model if lmbdas.any() else self.entropy_model.bare
        networks = [entropy_model.network(level) for level in range(self.levels)]
        latents = self._model.latents(unit)
        usual = torch.zeros(latents.shape[:-1], dtype=torch.long, device=latents.device)
        for code, symbols in zip(
            self._model.quantizer.encode(latents)[: self.levels], self.entropy_model.symbols, strict=False
        ):
            usual = usual * symbols + code
        numbers = torch.cat([usual.flatten(1).int().unsqueeze(-1), self._near(latents.flatten(1, 2))], -1)  # (B, P, K)
        grid = (latents.shape[1], latents.shape[2])
        del latents
        choice = Choice(layout, networks, self._leaves, np.ascontiguousarray(numbers.cpu().numpy()), window)

        def now() -> Tensor:
            """Codewords of what is chosen, (B, H, W, D)."""
            return self._vectors[torch.from_numpy(choice.leaves).to(unit.device)].view(len(unit), *grid, -1)

        def measured() -> tuple[Tensor, NDArray[np.float64]]:
            """The squared errors (B, Y, X), and what is minimized of each image."""
            squares = (self.decoded(now(), size).clamp(0, 1) - unit).square().sum(1).cpu()
            return squares, squares.sum((1, 2), dtype=torch.float64).numpy() + lmbdas * choice.bits

        best, (squares, least) = choice.codes.copy(), measured()
        curvature = self.curvature(now(), unit)
        for _ in range(_SWEEPS):
            for places in _quarters(grid):
                vectors = now()
                slopes = self.gradient(vectors, unit)
                errors = self._errors(numbers, places, vectors.flatten(1, 2), slopes.flatten(1, 2), curvature)
                choice.settle(places, errors, lmbdas)
        found, total = measured()
        better = total < least
        best[better], squares[torch.from_numpy(better)] = choice.codes[better], found[torch.from_numpy(better)]
        return best.reshape(len(unit), self.levels, *grid).swapaxes(0, 1), squares

    def decoded(self, vectors: Tensor, size: Grid) -> Tensor:
        """(B, H, W, D) codewords -> (B, C, Y, X) on the scale [0, 1], not clamped; size as for `Autoencoder.decode`."""
        fewer = self.levels < self._model.prefixes[-1]
        levels = torch.tensor(self.levels, device=vectors.device) if fewer else None
        return (self._model.pixels(vectors, size, levels) + 1) / 2

    @torch.enable_grad()
    def gradient(self, vectors: Tensor, unit: Tensor) -> Tensor:
        """Of the squared error of each image (B, C, Y, X), to its codewords (B, H, W, D)."""
        at, decoded = self._decoded(vectors, unit)
        (back,) = torch.autograd.grad((decoded.clamp(0, 1) - unit).square().sum(), at)
        return back

    @torch.enable_grad()
    def curvature(self, vectors: Tensor, unit: Tensor) -> Tensor:
        """The mean of J^T J over the positions of each image: (B, D, D). An image's does not depend on the others."""
        at, decoded = self._decoded(vectors, unit)
        total = torch.zeros((), device=vectors.device)
        generator = torch.Generator().manual_seed(0)
        for number in range(_PROJECTIONS):
            direction = torch.randn(decoded.shape[1:], generator=generator).to(at.device).expand_as(decoded)
            (back,) = torch.autograd.grad(decoded, at, direction, retain_graph=number < _PROJECTIONS - 1)
            rows = back.flatten(1, 2)
            total = total + rows.mT @ rows
        return total / (_PROJECTIONS * vectors.shape[1] * vectors.shape[2])

    def _decoded(self, vectors: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """The codewords, and what is decoded from them."""
        at = vectors.detach().requires_grad_()
        with torch.autocast(at.device.type, torch.bfloat16, enabled=computes_bf16(at.device)):
            return at, self.decoded(at, (unit.shape[-2], unit.shape[-1]))

    def _near(self, latents: Tensor) -> Tensor:
        """Numbers of the leaves nearest to (B, P, D) latents, the nearest first: (B, P, K - 1) int32."""
        number = min(_NEAR, len(self._vectors))
        chunks = torch.split(latents.flatten(0, -2), max(1, _NUMBERS // len(self._vectors)))
        found = [torch.cdist(some, self._vectors).topk(number, largest=False).indices.int() for some in chunks]
        return torch.cat(found).view(*latents.shape[:-1], number)

    def _errors(
        self, numbers: Tensor, places: NDArray[np.int64], vectors: Tensor, slopes: Tensor, curvature: Tensor
    ) -> NDArray[np.float32]:
        """By how much an image's error changes with each candidate at each place: (B, P', K).

        From numbers (B, P, K) of candidates, places (P',), vectors and slopes (B, P, D) and curvature (B, D, D).
        """
        count, _, most = numbers.shape
        found = np.empty((count, len(places), most), np.float32)
        together = max(1, _NUMBERS // (count * most * vectors.shape[-1]))
        for begin in range(0, len(places), together):
            some = torch.from_numpy(places[begin : begin + together]).to(vectors.device)
            step = self._vectors[numbers[:, some]] - vectors[:, some].unsqueeze(2)  # (B, P'', K, D)
            bent = (step.flatten(1, 2) @ curvature).view(step.shape) * _OVERLAP
            changed = (step * (slopes[:, some].unsqueeze(2) + bent)).sum(-1)
            found[:, begin : begin + together] = changed.cpu().numpy()
        return found


def _quarters(grid: Grid) -> Iterator[NDArray[np.int64]]:
    """Numbers of the positions that are chosen together; every position is in one of the sets."""
    numbers = np.arange(grid[0] * grid[1]).reshape(grid)
    for row in range(_APART):
        for column in range(_APART):
            yield numbers[row::_APART, column::_APART].flatten()
