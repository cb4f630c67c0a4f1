"""Search codes with the decoder, for less error in the image.

The encoder takes the codewords nearest to its latents. The error of the image depends on the
decoder, and on neighbouring positions together. A turn computes the gradient g of the image's
squared error by the chosen vectors q, and moves the positions of one colour of a chessboard. The
first two turns of effort 2 move all positions:

    goal <- q + c (goal - q) - g / (2 w)
    q <- the leaf nearest to the goal, if it is nearer than q is

The first goals are the latents. All levels of a position are searched again, by the search of the
encoder. The weight w of an image begins at a multiple of the decoder's mean curvature. It grows if
the error has risen and shrinks slowly if not.

Effort 1 is one turn, and its image is not decoded again. Effort 2 is four turns. An image keeps the
codes of the least error, the first codes included.

A large image is searched in tiles. The codes in the halo of a tile are discarded.

Shapes: B images, P positions, P' positions of a turn, L levels, D channels of latents.
"""

import math
from collections.abc import Iterable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from hrvqvae.models.base import Autoencoder, Encode, image_size, to_unit_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.models.tiles import divide_grid, index_area
from hrvqvae.quantize import Codes
from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.utils.device import computes_bf16, exact_float32
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import tracked

EFFORTS = (0, 1, 2)
_TURNS = (0, 1, 4)  # per effort
_WHOLE_TURNS = 2  # first turns of effort 2 that move all positions
_FIRST_WEIGHT = 2.4  # in curvatures
_CARRY = 0.7  # share of the last goal in the next one
_GROWTH = 1.3  # factors of the weight after a turn with more error, and with less
_DECAY = 0.98
_MOST_POSITIONS = 1 << 15  # of the images of one batch
_TILE_SIDE = 256  # in positions, without the halo
_HALO = 12  # in positions; twice the reach of a convolutional decoder


def open_encoder(model: Autoencoder, levels: int | None = None, effort: int = 0) -> Encode:
    """Return a function that encodes images; see `Model.encode`. Raises InputError."""
    if effort not in EFFORTS:
        raise InputError(f"the effort is {effort!r}; it must be 0, 1 or 2")
    if effort == 0:
        return exact_float32()(model.encode)
    search = DecoderSearch(model, model.check_levels(levels))
    return exact_float32()(lambda images: search.encode(images, effort))


class DecoderSearch:
    """An encoder that looks at the images decoded from the first levels.

    Raises InputError if the model has several latent grids, or no codebooks.
    """

    def __init__(self, model: Autoencoder, levels: int | None = None) -> None:
        quantizer = getattr(model, "quantizer", None)
        if not isinstance(model, SingleGridAutoencoder) or (
            not isinstance(quantizer, ResidualQuantizer)
        ):
            raise InputError("an effort needs a model with codebooks and one latent grid")
        self.levels = levels or model.prefixes[-1]
        self.model = model
        self._quantizer = quantizer
        self._search, self._parts = self._quantizer.plan_search(self.levels)

    def encode(self, images: Tensor, effort: int = 2) -> Codes:
        """Search the codes of images (B, C, Y, X), uint8 or float32 in [0, 1].

        Args:
            images: The images.
            effort: 1 or 2.

        Returns:
            The codes (B, H, W) per level.

        Raises:
            InputError: As `Model.encode`.
        """
        corner = images[..., :1, :1] if images.dim() == 4 else images
        to_unit_images(corner, self.model.channels)  # raises InputError for a wrong shape or type
        count = len(images)
        grid = self.model.config.geometry.grids(*images.shape[-2:])[0]

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
            codes = self._search_tile(targets, effort)

            # keep the core of the tile, discard the halo
            all_codes[:, batch][index_area(core)] = codes.int().cpu()[index_area(inside)]
        return tuple(level.long().to(images.device) for level in all_codes)

    @torch.inference_mode(False)  # gradients need tensors made outside inference mode
    @torch.no_grad()
    def _search_tile(self, targets: Tensor, effort: int) -> Tensor:
        """Return the codes (L, B, H, W) of images or tiles on the scale [0, 1]."""
        latents = self.model.latents(targets)
        grid = (latents.shape[1], latents.shape[2])
        goals = latents.flatten(1, 2).clone()  # (B, P, D)
        codes, vectors = self._find_leaves(goals)

        turns = _TURNS[effort]
        chessboard = (torch.arange(grid[0])[:, None] + torch.arange(grid[1])).flatten() % 2
        costs = best_costs = torch.full((len(targets),), torch.inf, device=targets.device)
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
                weights = _FIRST_WEIGHT * _estimate_curvatures(gradients, errors, targets)

            # keep the best codes of each image; adapt the weights to the error of the last turn
            costs_before = costs
            costs = errors
            best = torch.where((costs < best_costs)[:, None], codes, best)
            best_costs = torch.minimum(costs, best_costs)
            if turn == turns:
                break
            if turn > 0:
                factors = torch.where(costs > costs_before, _GROWTH, _DECAY)
                weights = weights * factors[:, None, None]

            # move all positions, or those of one colour of the chessboard
            is_whole = effort == 2 and turn < _WHOLE_TURNS
            moves = torch.ones_like(chessboard) if is_whole else chessboard == turn % 2
            positions = torch.nonzero(moves)[:, 0].to(codes.device)
            if not len(positions):
                continue  # a grid of one position has one colour
            here = vectors[:, positions]
            steps = gradients.flatten(1, 2)[:, positions] / (2 * weights)
            new_goals = here + _CARRY * (goals[:, positions] - here) - steps
            goals[:, positions] = new_goals
            leaves, moved = self._find_leaves(new_goals)
            is_nearer = _distances(moved, new_goals) < _distances(here, new_goals)
            codes = codes.clone()
            codes[:, :, positions] = torch.where(is_nearer, leaves, codes[:, :, positions])
            vectors[:, positions] = torch.where(is_nearer[..., None], moved, here)

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
