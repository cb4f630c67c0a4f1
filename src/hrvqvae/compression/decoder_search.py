"""Search codes with the decoder: less error in the image, or fewer bits, from the same decoder.

The encoder takes the codewords nearest to its latents. The error of the image depends on the
decoder, and on neighbouring positions together. A turn computes the gradient g of the image's
squared error by the chosen vectors q, and moves every other position of a chessboard:

    goal = q - g / (2 w)
    q <- the leaf nearest to the goal, if it is nearer than q is

The nearest leaf minimizes g d + w |d|^2, a model of the change of the error by a step d. All levels
of a position are searched again, by the search of the encoder, so that a turn takes little more
time than its gradient. The weight w of an image begins at a multiple of the decoder's mean
curvature. It grows if the error has risen and shrinks slowly if not.

With a lambda, the least of

    squared error of the image + lmbda * bits of the codes

is wanted. Then a position chooses among the leaves nearest to its goal, for each group of levels
with the other groups fixed (`choice.py`). The beam of the search finds these leaves.

Effort 1 is two turns, effort 2 is ten. An image keeps the codes of the least error, or sum, of all
turns, the encoder's codes included.

A large image is searched in tiles. The codes in the halo of a tile are discarded.

Shapes: B images, P positions, P' positions of a turn, K options, L levels, D channels of latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.compression.choice import Choice
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.levels import Layout
from hrvqvae.compression.network import EntropyNetwork
from hrvqvae.config import Grid
from hrvqvae.models.base import Autoencoder, Encode, to_unit_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.models.tiles import divide_grid, index_pixels
from hrvqvae.quantize import Codes
from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.device import computes_bf16, exact_float32
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import tracked

EFFORTS = (0, 1, 2)
_TURNS = (0, 2, 10)  # per effort
_FIRST_WEIGHT = 1.2  # in curvatures
_GROWTH = 1.3  # factors of the weight after a turn with more error, and with less
_DECAY = 0.95
_OPTIONS = 8  # leaves of a group among which a position chooses with a lambda
_MOST_POSITIONS = 1 << 15  # of the images of one batch
_TILE_SIDE = 256  # in positions, without the halo
_HALO = 12  # in positions; twice the reach of a convolutional decoder


def explain_no_search(model: Autoencoder) -> str:
    """Return why codes of a model can't be searched with its decoder; "" if they can."""
    if not isinstance(model, SingleGridAutoencoder):
        return "an effort or a lambda needs a model with one latent grid"
    if not isinstance(model.quantizer, ResidualQuantizer):
        return "an effort or a lambda needs a model with codebooks"
    return ""


def open_encoder(
    model: Autoencoder,
    load_entropy_model: Callable[[], EntropyModel],
    lmbda: float | None = None,
    levels: int | None = None,
    effort: int | None = None,
) -> Encode:
    """Return a function that encodes images; see `Model.encode`. Raises InputError."""
    if effort is None:
        effort = 0 if lmbda is None else 2
    if effort not in EFFORTS:
        raise InputError(f"the effort is {effort!r}; it must be 0, 1 or 2")
    if lmbda is not None and effort < 2:
        raise InputError(f"a lambda needs effort 2; the effort is {effort}")
    if lmbda is not None and not 0 <= lmbda <= 1e6:
        raise InputError(f"the lambda is {lmbda!r}; it must be from 0 to 1e6")
    if effort == 0:
        return exact_float32()(model.encode)
    search = DecoderSearch(model, load_entropy_model(), model.check_levels(levels))
    return exact_float32()(lambda images: search.encode(images, lmbda or 0.0, effort))


class DecoderSearch:
    """An encoder that looks at the images decoded from the first levels.

    Raises InputError if `explain_no_search` objects.
    """

    def __init__(
        self, model: Autoencoder, entropy_model: EntropyModel, levels: int | None = None
    ) -> None:
        if why := explain_no_search(model):
            raise InputError(why)
        self.entropy_model = entropy_model
        self.levels = levels or model.prefixes[-1]
        self._model = cast(SingleGridAutoencoder, model)
        self._quantizer = cast(ResidualQuantizer, self._model.quantizer)
        config = self._quantizer.config
        step = config.levels if config.joint_beam else config.group_size
        self._groups = [
            range(self.levels)[first : first + step] for first in range(0, self.levels, step)
        ]

    def encode(self, images: Tensor, lmbda: float = 0.0, effort: int = 2) -> Codes:
        """Return the codes (B, H, W) per level of images; see `encode_and_measure`."""
        return self._search(images, lmbda, effort, measure=False)[0]

    def encode_and_measure(
        self, images: Tensor, lmbda: float | Tensor = 0.0, effort: int = 2
    ) -> tuple[Codes, Tensor]:
        """Search the codes of images (B, C, Y, X), uint8 or float32 in [0, 1].

        Args:
            images: The images.
            lmbda: Weight of a bit, in squared errors of values in [0, 1]: a number, or one per
                image (B,). Not 0 only with effort 2.
            effort: 1 or 2.

        Returns:
            The codes (B, H, W) per level, and the squared error of each image (B,), summed over
            values in [0, 1].

        Raises:
            InputError: As `Model.encode`.
        """
        return self._search(images, lmbda, effort, measure=True)

    def _search(
        self, images: Tensor, lmbda: float | Tensor, effort: int, measure: bool
    ) -> tuple[Codes, Tensor]:
        corner = images[..., :1, :1] if images.dim() == 4 else images
        to_unit_images(corner, self._model.channels)  # raises InputError for a wrong shape or type
        count = len(images)
        stride = self._model.config.stride
        grid = self._model.config.geometry.grids(*images.shape[-2:])[0]
        lmbdas = torch.as_tensor(lmbda, dtype=torch.float32, device="cpu").expand(count)
        all_codes = torch.zeros(self.levels, count, *grid, dtype=torch.int32)
        errors = torch.zeros(count, dtype=torch.float64)
        batch_size = max(1, _MOST_POSITIONS // math.prod(grid))
        tiles = divide_grid(grid, _TILE_SIDE, _HALO)
        units = [*product(range(0, count, batch_size), tiles)]
        progress = tracked(units, "search tiles", len(units), lambda _: 1)
        for begin, (core, with_halo, inside) in progress if len(tiles) > 1 else units:
            batch = slice(begin, begin + batch_size)
            window = (with_halo[0].start, with_halo[1].start, *grid)
            pixels = images[batch][index_pixels(with_halo, stride)]
            targets = to_unit_images(pixels, self._model.channels).clone()
            codes = self._search_tile(targets, lmbdas[batch].numpy(), effort, window)
            all_codes[:, batch][index_pixels(core)] = codes.int().cpu()[index_pixels(inside)]
            if measure:
                squares = self._measure(codes, targets)
                errors[batch] += squares[index_pixels(inside, stride)].sum((1, 2)).double().cpu()
        return tuple(level.long().to(images.device) for level in all_codes), errors

    @torch.inference_mode(False)  # gradients need tensors made outside inference mode
    @torch.no_grad()
    def _search_tile(
        self,
        targets: Tensor,
        lmbdas: NDArray[np.float32],
        effort: int,
        window: tuple[int, int, int, int],
    ) -> Tensor:
        """Return the codes (L, B, H, W) of images or tiles on the scale [0, 1]."""
        size = (targets.shape[-2], targets.shape[-1])
        latents = self._model.latents(targets)
        grid = (latents.shape[1], latents.shape[2])
        codes = self._find_leaves(latents.flatten(1, 2))  # (L, B, P)
        networks = [self.entropy_model.network(level) for level in range(self.levels)]
        present = [network for network in networks if network is not None]
        counts_bits = bool(present) and lmbdas.any()
        choice = self._open_choice(present, codes, size, window) if counts_bits else None

        turns = _TURNS[effort]
        chessboard = torch.arange(grid[0])[:, None] + torch.arange(grid[1])
        costs = best_costs = torch.full((len(targets),), torch.inf, dtype=torch.float64)
        best = codes
        for turn in range(turns + 1):
            vectors = self._quantizer.lookup(tuple(codes)).view_as(latents)
            gradients, errors = self._differentiate(vectors, targets, with_gradient=turn < turns)
            if turn == 0:
                # |g|^2 / 4 e would be the curvature along the error, were the error noise
                squares = gradients.square().sum((1, 2, 3))
                pixels_per_value = targets[0].numel() / latents[0].numel()
                weights = _FIRST_WEIGHT * squares / (4 * errors) * pixels_per_value
                weights = weights.nan_to_num(1.0).clamp(min=1e-12)[:, None, None]

            # keep the best codes of each image; adapt the weights
            costs_before = costs
            costs = errors.double().cpu()
            if choice is not None:
                costs = costs + torch.from_numpy(lmbdas * choice.bits)
            best = torch.where((costs < best_costs)[:, None].to(codes.device), codes, best)
            best_costs = torch.minimum(costs, best_costs)
            factors = torch.where(costs > costs_before, _GROWTH, _DECAY if turn else 1.0)
            weights = weights * factors[:, None, None].to(weights)
            if turn == turns:
                break

            # move the positions of one colour of the chessboard
            positions = torch.nonzero((chessboard % 2 == turn % 2).flatten())[:, 0].to(codes.device)
            here = vectors.flatten(1, 2)[:, positions]
            goals = here - gradients.flatten(1, 2)[:, positions] / (2 * weights)
            codes = codes.clone()
            if choice is None:
                leaves = self._find_leaves(goals)
                moved = self._quantizer.lookup(tuple(leaves))
                nearer = (moved - goals).square().sum(-1) < (here - goals).square().sum(-1)
                codes[:, :, positions] = torch.where(nearer, leaves, codes[:, :, positions])
            else:
                self._choose(choice, codes, positions, goals, weights, lmbdas)
                codes = torch.from_numpy(choice.codes).transpose(0, 1).long().to(codes.device)

        return best.view(self.levels, len(targets), *grid)

    @torch.no_grad()
    def _measure(self, codes: Tensor, targets: Tensor) -> Tensor:
        """Return the squared errors of the pixels (B, Y, X), summed over channels."""
        size = (targets.shape[-2], targets.shape[-1])
        decoded = self._decode(self._quantizer.lookup(tuple(codes)), size)
        return (decoded.clamp(0, 1) - targets).square().sum(1)

    def _decode(self, vectors: Tensor, size: Grid | None) -> Tensor:
        """Decode vectors (B, H, W, D) to images (B, C, Y, X) on the scale [0, 1], not clamped."""
        is_prefix = self.levels < self._model.prefixes[-1]
        levels = torch.tensor(self.levels, device=vectors.device) if is_prefix else None
        return (self._model.pixels(vectors, size, levels) + 1) / 2

    def _differentiate(
        self, vectors: Tensor, targets: Tensor, *, with_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient (B, H, W, D) of the images' squared errors, and the errors (B,).

        Without the gradient, `vectors` stand in its place.
        """
        inputs = vectors.detach().requires_grad_(with_gradient)
        # bfloat16 takes half of the time; its error of 2% changes no choice that matters
        use_bf16 = computes_bf16(inputs.device)
        with torch.set_grad_enabled(with_gradient):
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=use_bf16):
                decoded = self._decode(inputs, (targets.shape[-2], targets.shape[-1]))
            errors = (decoded.float().clamp(0, 1) - targets).square().sum((1, 2, 3))
            if not with_gradient:
                return vectors, errors
            (gradients,) = torch.autograd.grad(errors.sum(), inputs)
        return gradients, errors.detach()

    def _codebooks(self, levels: range) -> list[Tensor]:
        return [self._quantizer.levels[level].codewords.detach() for level in levels]

    def _find_leaves(self, goals: Tensor) -> Tensor:
        """Return the codes (L, B, P) nearest to vectors (B, P, D), by the encoder's search."""
        residuals = goals.flatten(0, 1)
        codes = []
        for levels in self._groups:
            books = self._codebooks(levels)
            indices = self._quantizer.search(residuals, books)
            for book, index in zip(books, indices, strict=True):
                residuals = residuals - book.flatten(0, 1)[index]
                codes.append(index % book.shape[1])
        return torch.stack(codes).view(-1, *goals.shape[:2])

    def _open_choice(
        self,
        networks: list[EntropyNetwork],
        codes: Tensor,
        size: Grid,
        window: tuple[int, int, int, int],
    ) -> Choice:
        all_levels = self.entropy_model.layout(size)
        layout = Layout(all_levels.grids[: self.levels], all_levels.symbols[: self.levels])
        array = np.ascontiguousarray(codes.transpose(0, 1).int().cpu().numpy())
        return Choice(layout, networks, array, window)

    def _choose(
        self,
        choice: Choice,
        codes: Tensor,
        positions: Tensor,
        goals: Tensor,
        weights: Tensor,
        lmbdas: NDArray[np.float32],
    ) -> None:
        """Let positions (P',) choose among the leaves nearest to their goals (B, P', D)."""
        for levels in self._groups:
            books = self._codebooks(levels)
            here = torch.from_numpy(choice.codes).to(goals.device)[:, :, positions].long()
            by_level = here.transpose(0, 1)
            vectors = self._quantizer.lookup(tuple(by_level))
            in_group = self._look_up_group(books, by_level[levels.start : levels.stop])
            group_goals = goals - (vectors - in_group)

            # the leaves (l, B, P', K), and how much nearer to the goal they are
            flat = group_goals.flatten(0, 1)
            width = self._quantizer.config.beam
            indices = search_tensors(flat, books, width, leaves=_OPTIONS)
            indices = indices.view(len(books), *goals.shape[:2], -1)
            sums = sum(
                book.flatten(0, 1)[index] for book, index in zip(books, indices, strict=True)
            )
            distances = (sums - group_goals[:, :, None]).square().sum(-1)
            changes = distances - (in_group - group_goals).square().sum(-1, keepdim=True)

            options = here.transpose(1, 2)[..., None].repeat(1, 1, 1, indices.shape[-1])
            for level, book, index in zip(levels, books, indices, strict=True):
                options[:, :, level] = index % book.shape[1]
            choice.update(
                positions.cpu().numpy(),
                np.ascontiguousarray(options.int().cpu().numpy()),
                (weights * changes).cpu().numpy(),
                lmbdas,
            )

    def _look_up_group(self, books: list[Tensor], codes: Tensor) -> Tensor:
        """Return the sum of a group's codewords (B, P', D) for codes (l, B, P')."""
        index = torch.zeros_like(codes[0])
        total = torch.zeros((), device=codes.device)
        for book, code in zip(books, codes, strict=True):
            index = code + (index * book.shape[1] if len(book) > 1 else 0)
            total = total + book.flatten(0, 1)[index]
        return total
