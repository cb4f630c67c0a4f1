"""Search codes with the decoder: for less error in the image, or for fewer bits.

The encoder takes the codewords nearest to its latents. The error of the image depends on the
decoder, and on neighbouring positions together. A turn computes the gradient g of the image's
squared error by the chosen vectors q, and moves the positions of one colour of a chessboard. The
first two turns of effort 2 move all positions:

    goal <- q + c (goal - q) - g / (2 w)
    q <- the leaf nearest to the goal, if it is nearer than q is

The first goals are the latents z. With c = u / w, the goal of the first turn is the least of

    g d + (w - u) |d|^2 + u |q + d - z|^2

in the step d: the gradient, a curvature, and the distance from what the encoder wants. A later goal
keeps the share c of the distance between the last goal and its leaf. All levels of a position are
searched again, by the search of the encoder, so a turn takes little more time than its gradient.
The weight w of an image begins at a multiple of the decoder's mean curvature. It grows if the error
has risen and shrinks slowly if not.

With a lambda, the codes minimize

    squared error of the image + lmbda * bits of the codes

A position then chooses among the leaves nearest to its goal (`choice.py`). Levels that one beam
searches together are chosen together, while the other levels are fixed.

Effort 1 is one turn, and its image is not decoded again. Effort 2 is four turns, or eight with a
lambda. An image keeps the best codes of all turns, the first codes included: those of the least
error, or with a lambda of the least sum above.

A large image is searched in tiles. The codes in the halo of a tile are discarded.

Shapes: B images, P positions, P' positions of a turn, K options, L levels, D channels of latents.
"""

import math
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.compression.choice import Choice
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.levels import Layout
from hrvqvae.compression.network import EntropyNetwork
from hrvqvae.config import Grid
from hrvqvae.models.base import Autoencoder, Encode, image_size, to_unit_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.models.tiles import divide_grid, index_area
from hrvqvae.quantize import Codes
from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.device import computes_bf16, exact_float32
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import tracked

EFFORTS = (0, 1, 2)
_TURNS = (0, 1, 4)  # per effort
_WHOLE_TURNS = 2  # first turns of effort 2 that move all positions
_FIRST_WEIGHT = 2.4  # in curvatures
_CARRY = 0.7  # share of the last goal in the next one
_LAMBDA_TURNS = 8  # these three with a lambda
_LAMBDA_WEIGHT = 1.2
_LAMBDA_CARRY = 0.4
_GROWTH = 1.3  # factors of the weight after a turn with more error, and with less
_DECAY = 0.98
_OPTIONS = 16  # leaves among which a position chooses with a lambda
_MIN_BEAM = 4  # to find these leaves; a narrower beam misses those of few bits
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
        self.model = cast(SingleGridAutoencoder, model)
        self._quantizer = cast(ResidualQuantizer, self.model.quantizer)
        self._search, self._parts = self._quantizer.plan_search(self.levels)

    def encode(
        self,
        images: Tensor,
        lmbda: float | Tensor = 0.0,
        effort: int = 2,
        start: Codes | None = None,
    ) -> Codes:
        """Search the codes of images (B, C, Y, X), uint8 or float32 in [0, 1].

        Args:
            images: The images.
            lmbda: Weight of a bit, in squared errors of values in [0, 1]: a number, or a positive
                number per image (B,). Effort 1 needs 0.
            effort: 1 or 2.
            start: Codes (B, H, W) per level at which the search begins (default: the encoder's).
                With a lambda, it then takes half the turns.

        Returns:
            The codes (B, H, W) per level.

        Raises:
            InputError: As `Model.encode`.
        """
        corner = images[..., :1, :1] if images.dim() == 4 else images
        to_unit_images(corner, self.model.channels)  # raises InputError for a wrong shape or type
        count = len(images)
        grid = self.model.config.geometry.grids(*images.shape[-2:])[0]
        lmbdas = torch.as_tensor(lmbda, dtype=torch.float32, device="cpu").expand(count)

        all_codes = torch.zeros(self.levels, count, *grid, dtype=torch.int32)
        batch_size = max(1, _MOST_POSITIONS // math.prod(grid))
        tiles = divide_grid(grid, _TILE_SIDE, _HALO)
        pairs = [*product(range(0, count, batch_size), tiles)]
        units: Iterable[Any] = pairs
        if len(tiles) > 1:
            units = tracked(pairs, "search tiles", len(pairs), lambda _: 1)
        stride = self.model.config.stride
        margin = self.model.config.geometry.margin
        for begin, (core, with_halo, inside) in units:
            batch = slice(begin, begin + batch_size)

            # a tile is padded as an image is, which adds the margin again
            rows, columns = (
                slice(stride * part.start, stride * part.stop - margin) for part in with_halo
            )
            pixels = images[batch][..., rows, columns]
            targets = to_unit_images(pixels, self.model.channels)
            tile_start = None
            if start is not None:
                tile_start = torch.stack(start)[:, batch][index_area(with_halo)].flatten(2)
            codes = self._search_tile(targets, lmbdas[batch].numpy(), effort, tile_start)

            # keep the core of the tile, discard the halo
            all_codes[:, batch][index_area(core)] = codes.int().cpu()[index_area(inside)]
        return tuple(level.long().to(images.device) for level in all_codes)

    @torch.inference_mode(False)  # gradients need tensors made outside inference mode
    @torch.no_grad()
    def _search_tile(
        self,
        targets: Tensor,
        lmbdas: NDArray[np.float32],
        effort: int,
        start: Tensor | None,
    ) -> Tensor:
        """Return the codes (L, B, H, W) of images or tiles on the scale [0, 1], from first codes
        (L, B, P).
        """
        size = image_size(targets)
        latents = self.model.latents(targets)
        grid = (latents.shape[1], latents.shape[2])
        goals = latents.flatten(1, 2).clone()  # (B, P, D)
        if start is None:
            codes, vectors = self._find_leaves(goals)
        else:
            codes = start
            vectors = self._quantizer.lookup(tuple(start))

        # Without networks all codes cost the same. Each network knows its level.
        networks = [self.entropy_model.network(level) for level in range(self.levels)]
        present = [network for network in networks if network is not None]
        counts_bits = bool(present) and lmbdas.any()
        choice = self._open_choice(present, codes, size) if counts_bits else None

        turns, first_weight, carry = _TURNS[effort], _FIRST_WEIGHT, _CARRY
        if choice is not None:
            turns, first_weight, carry = _LAMBDA_TURNS, _LAMBDA_WEIGHT, _LAMBDA_CARRY
            turns = turns if start is None else turns // 2
        chessboard = (torch.arange(grid[0])[:, None] + torch.arange(grid[1])).flatten() % 2
        costs = best_costs = torch.full((len(targets),), torch.inf, dtype=torch.float64)
        best = codes

        # the last pass only compares the codes of the last turn; effort 1 does without
        for turn in range(turns + 1):
            if effort == 1 and turn == turns:
                best = codes
                break
            gradients, errors = self._differentiate(
                vectors.view_as(latents), targets, with_gradient=turn < turns
            )
            if turn == 0:
                weights = first_weight * _estimate_curvatures(gradients, errors, targets)

            # keep the best codes of each image; adapt the weights to the error of the last turn
            costs_before = costs
            costs = errors.double().cpu()
            if choice is not None:
                costs = costs + torch.from_numpy(lmbdas * choice.bits)
            best = torch.where((costs < best_costs)[:, None].to(codes.device), codes, best)
            best_costs = torch.minimum(costs, best_costs)
            if turn == turns:
                break
            if turn > 0:
                factors = torch.where(costs > costs_before, _GROWTH, _DECAY)
                weights = weights * factors[:, None, None].to(weights)

            # move all positions, or those of one colour of the chessboard
            is_whole = choice is None and effort == 2 and turn < _WHOLE_TURNS
            moves = torch.ones_like(chessboard) if is_whole else chessboard == turn % 2
            positions = torch.nonzero(moves)[:, 0].to(codes.device)
            if not len(positions):
                continue  # a grid of one position has one colour
            here = vectors[:, positions]
            steps = gradients.flatten(1, 2)[:, positions] / (2 * weights)
            new_goals = here + carry * (goals[:, positions] - here) - steps
            goals[:, positions] = new_goals
            if choice is None:
                leaves, moved = self._find_leaves(new_goals)
                is_nearer = _distances(moved, new_goals) < _distances(here, new_goals)
                codes = codes.clone()
                codes[:, :, positions] = torch.where(is_nearer, leaves, codes[:, :, positions])
                vectors[:, positions] = torch.where(is_nearer[..., None], moved, here)
            else:
                codes = self._choose(choice, positions, new_goals, weights, lmbdas)
                vectors = self._quantizer.lookup(tuple(codes))

        return best.view(self.levels, len(targets), *grid)

    def _differentiate(
        self, vectors: Tensor, targets: Tensor, *, with_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient (B, H, W, D) of the images' squared errors, and the errors (B,).

        Without the gradient, `vectors` stand in its place.
        """
        size = image_size(targets)
        is_prefix = self.levels < self.model.prefixes[-1]
        levels = torch.tensor(self.levels, device=vectors.device) if is_prefix else None
        inputs = vectors.detach().requires_grad_(with_gradient)
        # bfloat16 takes half of the time; its error of 2% changes no choice that matters
        use_bf16 = computes_bf16(inputs.device)
        with torch.set_grad_enabled(with_gradient):
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=use_bf16):
                # `pixels` are in [-1, 1], unlike the inputs of `latents`
                decoded = (self.model.pixels(inputs, size, levels) + 1) / 2
            errors = (decoded.float().clamp(0, 1) - targets).square().sum((1, 2, 3))
            if not with_gradient:
                return vectors, errors
            (gradients,) = torch.autograd.grad(errors.sum(), inputs)
        return gradients, errors.detach()

    def _codewords(self, levels: range) -> list[Tensor]:
        """Return all codewords (num_books, m, D) of each level."""
        return [self._quantizer.levels[level].codewords.detach() for level in levels]

    def _find_leaves(self, goals: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes (L, B, P) and vectors (B, P, D) of the leaves nearest to goals
        (B, P, D), by the encoder's search.
        """
        residuals = goals.flatten(0, 1)
        codes = []
        for levels in self._parts:
            codewords = self._codewords(levels)
            indices = self._search(residuals, codewords)
            for table, index in zip(codewords, indices, strict=True):
                residuals = residuals - table.flatten(0, 1)[index]
                codes.append(index % table.shape[1])
        return torch.stack(codes).view(-1, *goals.shape[:2]), goals - residuals.view_as(goals)

    def _open_choice(self, networks: list[EntropyNetwork], codes: Tensor, size: Grid) -> Choice:
        all_levels = self.entropy_model.layout(size)
        layout = Layout(all_levels.grids[: self.levels], all_levels.symbols[: self.levels])
        array = np.ascontiguousarray(codes.transpose(0, 1).int().cpu().numpy())
        return Choice(layout, networks, array)

    def _choose(
        self,
        choice: Choice,
        positions: Tensor,
        goals: Tensor,
        weights: Tensor,
        lmbdas: NDArray[np.float32],
    ) -> Tensor:
        """Let positions (P',) choose among the leaves nearest to their goals (B, P', D).

        Returns:
            The codes (L, B, P) of all positions.
        """
        for levels in self._parts:
            # the vectors that these levels add, and their goals: what the other levels leave
            codes = torch.from_numpy(choice.codes).to(goals.device)
            codes = codes[:, :, positions].long()  # (B, L, P')
            indices = self._quantizer.codeword_indices(tuple(codes.transpose(0, 1)))
            by_level = [
                level.lookup(index)
                for level, index in zip(self._quantizer.levels, indices, strict=False)
            ]
            current = torch.stack(by_level[levels.start : levels.stop]).sum(0)
            search_goals = goals - (torch.stack(by_level).sum(0) - current)

            # the nearest leaves, their vectors (B, P', K, D), and the modelled change of the error
            codewords = self._codewords(levels)
            config = self._quantizer.config
            beam = max(config.encoding_beam or config.beam, _MIN_BEAM)
            leaves = search_tensors(search_goals.flatten(0, 1), codewords, beam, leaves=_OPTIONS)
            leaves = leaves.view(len(levels), *goals.shape[:2], -1)
            pairs = [*zip(codewords, leaves, strict=True)]
            vectors = torch.stack([table.flatten(0, 1)[leaf] for table, leaf in pairs]).sum(0)
            before = _distances(current, search_goals)[..., None]
            changes = _distances(vectors, search_goals[:, :, None]) - before

            # options (B, P', L, K): the current codes; in the searched levels, those of the leaves
            options = codes.transpose(1, 2)[..., None].repeat(1, 1, 1, leaves.shape[-1])
            for level, (table, leaf) in zip(levels, pairs, strict=True):
                options[:, :, level] = leaf % table.shape[1]
            choice.update(
                positions.cpu().numpy(),
                np.ascontiguousarray(options.int().cpu().numpy()),
                (weights * changes).cpu().numpy(),
                lmbdas,
            )
        return torch.from_numpy(choice.codes).transpose(0, 1).long().to(goals.device)


def _distances(vectors: Tensor, goals: Tensor) -> Tensor:
    return (vectors - goals).square().sum(-1)


def _estimate_curvatures(gradients: Tensor, errors: Tensor, targets: Tensor) -> Tensor:
    """Return the mean curvature of each image's error (B, 1, 1).

    Let J be the decoder's derivative, r the error of the pixels, e = |r|^2 and g = 2 J^T r. Were r
    white noise, |g|^2 would be 4 e tr(J^T J) / image values. The mean curvature is tr(J^T J) /
    latent values.
    """
    squares = gradients.square().sum((1, 2, 3))
    value_ratio = targets[0].numel() / gradients[0].numel()
    curvatures = squares / (4 * errors) * value_ratio
    return curvatures.nan_to_num(1.0).clamp(min=1e-12)[:, None, None]
