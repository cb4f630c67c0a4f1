"""Search codes with a small error and few bits: rate-distortion optimization, which does not change
the decoder.

Each position has candidates: the leaves nearest to the latent. The position takes the candidate
    with the least

    squared error of the decoded image + lmbda * bits of the codes (`choice.py`)

The change of the error is estimated as g d + 1.5 d^T J^T J d, where d is the change of the
codeword, g the gradient at the current codes, and J the Jacobian of the decoder. J^T J is estimated
by random projections and averaged over the positions of an image. Changes at neighbouring positions
overlap in the image. So one gradient serves a quarter of the positions, no two of them adjacent.
The factor 1.5, in place of 1, allows for the rest of the overlap.

Finally the sum is measured with the true error. An image keeps the codes of the plain encoder
unless the sum fell.

A large image is searched in tiles. The codes in the halo of a tile are discarded. The search takes
some 0.7 GB.

Shapes: B images, P positions, K candidates, L levels, D channels of the latents, n leaves.
"""

from __future__ import annotations

import math
from itertools import product
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.compression.choice import Choice
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.levels import Layout
from hrvqvae.config import Grid
from hrvqvae.models.base import Autoencoder, to_unit_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.models.tiles import divide_grid, index_pixels
from hrvqvae.quantize import Codes
from hrvqvae.utils.device import computes_bf16
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import tracked

_NEAREST = 16  # leaves that are candidates, beside the leaf of the plain encoder
_SWEEPS = 2
_PROJECTIONS = 2  # for the curvature
_OVERLAP = 1.5  # factor of the curvature
_SPACING = 2  # step in rows and columns between positions that share a gradient
_MOST_LEAVES = 1 << 16
_MOST_NUMBERS = 1 << 22  # distances, or elements of candidate vectors, in memory at once
_MOST_POSITIONS = 1 << 15  # of the images of one batch
_TILE_SIDE = 256  # in positions, without the halo
_HALO = 12  # in positions; twice the reach of a convolutional decoder


def explain_no_lambda(model: Autoencoder, levels: int) -> str:
    """Return why the first `levels` levels can't be searched with a lambda; "" if they can."""
    if not isinstance(model, SingleGridAutoencoder):
        return "a lambda needs a model with one latent grid"
    count = math.prod(model.config.num_symbols[:levels])
    if count > _MOST_LEAVES:
        return f"a lambda needs a model of up to {_MOST_LEAVES:,} leaves; this one has {count:,}"
    return ""


class RateDistortion:
    """An encoder that minimizes error + lmbda * bits, where images are decoded from the first
    levels alone.
    """

    def __init__(
        self, model: Autoencoder, entropy_model: EntropyModel, levels: int | None = None
    ) -> None:
        """Prepare for the first `levels` levels (default: all). Raises InputError if
        `explain_no_lambda` objects.
        """
        self.entropy_model = entropy_model
        self.levels = levels or model.prefixes[-1]
        if why := explain_no_lambda(model, self.levels):
            raise InputError(why)
        self._model = cast(SingleGridAutoencoder, model)
        symbols = self._model.config.num_symbols[: self.levels]
        leaves = torch.cartesian_prod(*(torch.arange(count) for count in symbols)).view(
            -1, len(symbols)
        )
        leaves = leaves.to(next(model.parameters()).device)
        vectors = self._model.quantizer.lookup(tuple(level.view(1, 1, -1) for level in leaves.T))
        # (n, L), (n, D)
        self._leaves = leaves.int().cpu().numpy()
        self._vectors = vectors[0, 0].detach().float()

    def encode(self, images: Tensor, lmbda: float | Tensor) -> tuple[Codes, Tensor]:
        """Return the codes (B, H, W) per level, and the squared error of each image (B,), summed
        over values in [0, 1].

        `lmbda` is the weight of the bits; one number, or one per image (B,). Raises InputError as
        `Model.encode`.
        """
        corner = images[..., :1, :1] if images.dim() == 4 else images
        to_unit_images(corner, self._model.channels)  # raises InputError for a wrong shape or type
        count = len(images)
        stride = self._model.config.stride
        grid = self._model.config.geometry.grids(*images.shape[-2:])[0]
        lmbdas = torch.as_tensor(lmbda, dtype=torch.float64, device="cpu").expand(count)
        all_codes = torch.zeros(self.levels, count, *grid, dtype=torch.int32)
        errors = torch.zeros(count, dtype=torch.float64)
        batch_size = max(1, _MOST_POSITIONS // math.prod(grid))
        tiles = divide_grid(grid, _TILE_SIDE, _HALO)
        units = [*product(range(0, count, batch_size), tiles)]
        progress = (
            tracked(units, "search tiles", len(units), lambda _: 1) if len(tiles) > 1 else units
        )
        for begin, (core, with_halo, inside) in progress:
            batch = slice(begin, begin + batch_size)
            window = (with_halo[0].start, with_halo[1].start, *grid)
            codes, squares = self._search_tile(
                images[batch][index_pixels(with_halo, stride)], lmbdas[batch].numpy(), window
            )
            all_codes[:, batch][index_pixels(core)] = torch.from_numpy(codes[index_pixels(inside)])
            errors[batch] += squares[index_pixels(inside, stride)].sum((1, 2), dtype=torch.float64)
        return tuple(level.long().to(images.device) for level in all_codes), errors

    @torch.inference_mode(False)  # compute_gradient needs tensors made outside inference mode
    @torch.no_grad()
    def _search_tile(
        self, images: Tensor, lmbdas: NDArray[np.float64], window: tuple[int, int, int, int]
    ) -> tuple[NDArray[np.int32], Tensor]:
        """Return the codes (L, B, H, W) of images, or tiles, and the squared errors of the pixels
        (B, Y, X).
        """
        targets = to_unit_images(images, self._model.channels).clone()
        size = (targets.shape[-2], targets.shape[-1])
        all_levels = self.entropy_model.layout(size)
        layout = Layout(all_levels.grids[: self.levels], all_levels.symbols[: self.levels])
        entropy_model = self.entropy_model if lmbdas.any() else self.entropy_model.bare
        networks = [entropy_model.network(level) for level in range(self.levels)]
        latents = self._model.latents(targets)
        encoded_leaves = torch.zeros(latents.shape[:-1], dtype=torch.long, device=latents.device)
        codes = self._model.quantizer.encode(latents)[: self.levels]
        for code, symbols in zip(codes, self.entropy_model.symbols, strict=False):
            encoded_leaves = encoded_leaves * symbols + code
        nearest = self._find_nearest(latents.flatten(1, 2))
        candidates = torch.cat(
            [encoded_leaves.flatten(1).int().unsqueeze(-1), nearest], -1
        )  # (B, P, K)
        grid = (latents.shape[1], latents.shape[2])
        del latents
        choice = Choice(
            layout, networks, self._leaves, np.ascontiguousarray(candidates.cpu().numpy()), window
        )

        def look_up_vectors() -> Tensor:
            """Return the currently chosen codewords (B, H, W, D)."""
            return self._vectors[torch.from_numpy(choice.leaves).to(targets.device)].view(
                len(targets), *grid, -1
            )

        def measure() -> tuple[Tensor, NDArray[np.float64]]:
            """Return the squared errors (B, Y, X), and error + lmbda * bits of each image (B,)."""
            squares = (
                (self.decode(look_up_vectors(), size).clamp(0, 1) - targets).square().sum(1).cpu()
            )
            return squares, squares.sum((1, 2), dtype=torch.float64).numpy() + lmbdas * choice.bits

        best, (squares, sums) = choice.codes.copy(), measure()
        curvature = self.compute_curvature(look_up_vectors(), targets)
        all_positions = np.arange(math.prod(grid)).reshape(grid)
        for row, column in [*np.ndindex(_SPACING, _SPACING)] * _SWEEPS:
            positions = all_positions[row::_SPACING, column::_SPACING].flatten()
            vectors = look_up_vectors()
            gradients = self.compute_gradient(vectors, targets)
            errors = self._estimate_errors(
                candidates, positions, vectors.flatten(1, 2), gradients.flatten(1, 2), curvature
            )
            choice.update(positions, errors, lmbdas)
        new_squares, new_sums = measure()
        better = new_sums < sums
        best[better], squares[torch.from_numpy(better)] = (
            choice.codes[better],
            new_squares[torch.from_numpy(better)],
        )
        return best.reshape(len(targets), self.levels, *grid).swapaxes(0, 1), squares

    def decode(self, vectors: Tensor, size: Grid) -> Tensor:
        """Decode codewords (B, H, W, D) to images (B, C, Y, X) on the scale [0, 1], not clamped."""
        fewer = self.levels < self._model.prefixes[-1]
        levels = torch.tensor(self.levels, device=vectors.device) if fewer else None
        return (self._model.pixels(vectors, size, levels) + 1) / 2

    @torch.enable_grad()
    def compute_gradient(self, vectors: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient (B, H, W, D) of the squared error of images `targets` (B, C, Y, X) by
        the codewords.
        """
        inputs, decoded = self._decode_with_gradient(vectors, targets)
        (gradient,) = torch.autograd.grad((decoded.clamp(0, 1) - targets).square().sum(), inputs)
        return gradient

    @torch.enable_grad()
    def compute_curvature(self, vectors: Tensor, targets: Tensor) -> Tensor:
        """Return J^T J of each image (B, D, D), averaged over the positions."""
        inputs, decoded = self._decode_with_gradient(vectors, targets)
        total = torch.zeros((), device=vectors.device)
        generator = torch.Generator().manual_seed(0)
        for projection in range(_PROJECTIONS):
            direction = (
                torch.randn(decoded.shape[1:], generator=generator)
                .to(inputs.device)
                .expand_as(decoded)
            )
            (gradient,) = torch.autograd.grad(
                decoded, inputs, direction, retain_graph=projection < _PROJECTIONS - 1
            )
            rows = gradient.flatten(1, 2)
            total = total + rows.mT @ rows
        return total / (_PROJECTIONS * vectors.shape[1] * vectors.shape[2])

    def _decode_with_gradient(self, vectors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codewords, detached and requiring gradients, and the images decoded from
        them.
        """
        inputs = vectors.detach().requires_grad_()
        # bfloat16 takes half of the time; its error of 2% in a gradient changes no choice that
        # matters.
        with torch.autocast(
            inputs.device.type, torch.bfloat16, enabled=computes_bf16(inputs.device)
        ):
            return inputs, self.decode(inputs, (targets.shape[-2], targets.shape[-1]))

    def _find_nearest(self, latents: Tensor) -> Tensor:
        """Return the indices (B, P, K - 1) int32 of the leaves nearest to latents (B, P, D),
        nearest first.
        """
        count = min(_NEAREST, len(self._vectors))
        chunks = torch.split(latents.flatten(0, -2), max(1, _MOST_NUMBERS // len(self._vectors)))
        nearest = [
            torch.cdist(chunk, self._vectors).topk(count, largest=False).indices.int()
            for chunk in chunks
        ]
        return torch.cat(nearest).view(*latents.shape[:-1], count)

    def _estimate_errors(
        self,
        candidates: Tensor,
        positions: NDArray[np.int64],
        vectors: Tensor,
        gradients: Tensor,
        curvature: Tensor,
    ) -> NDArray[np.float32]:
        """Estimate the change of the error (B, P', K) for each candidate (B, P, K) at positions
        (P',).
        """
        count, _, num_candidates = candidates.shape
        errors = np.empty((count, len(positions), num_candidates), np.float32)
        chunk_size = max(1, _MOST_NUMBERS // (count * num_candidates * vectors.shape[-1]))
        for begin in range(0, len(positions), chunk_size):
            chunk = torch.from_numpy(positions[begin : begin + chunk_size]).to(vectors.device)
            step = self._vectors[candidates[:, chunk]] - vectors[:, chunk].unsqueeze(
                2
            )  # (B, P'', K, D)
            second_order = (step.flatten(1, 2) @ curvature).view(step.shape) * _OVERLAP
            changes = (step * (gradients[:, chunk].unsqueeze(2) + second_order)).sum(-1)
            errors[:, begin : begin + chunk_size] = changes.cpu().numpy()
        return errors
