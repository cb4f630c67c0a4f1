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
codes of the least error, the first codes included. A large image is searched in tiles.

Where positions may stop, a leaf or an inner node of the tree is chosen, by its distance and the
price of its bits, and the last codes are kept.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hrvqvae.models import tiles
from hrvqvae.models.base import Autoencoder, Encode, image_size, to_unit_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import Codes, choose_depths, stop_at
from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.utils.device import computes_bf16, exact_float32
from hrvqvae.utils.errors import InputError

EFFORTS = (0, 1, 2)
_TURNS = (0, 1, 4)  # per effort
_WHOLE_TURNS = 2  # first turns of effort 2 that move all positions
_FIRST_WEIGHT = 2.4  # in curvatures
_CARRY = 0.7  # share of the last goal in the next one
_GROWTH = 1.3  # factors of the weight after a turn with more error, and with less
_DECAY = 0.98
_MOST_PIXELS = 1 << 18  # of the images of one batch


def open_encoder(model: Autoencoder, levels: int | None = None, effort: int = 0) -> Encode:
    """Return a function that encodes images; see `Model.encode`. Raises InputError."""
    if effort not in EFFORTS:
        raise InputError(f"the effort is {effort!r}; it must be 0, 1 or 2")
    if effort == 0:
        return exact_float32()(model.encode)
    quantizer = getattr(model, "quantizer", None)
    if not (isinstance(model, SingleGridAutoencoder) and isinstance(quantizer, ResidualQuantizer)):
        raise InputError("an effort needs a model with codebooks and one latent grid")
    num_levels = model.check_levels(levels)
    networks = nn.ModuleList([model.encoder, model.decoder])

    def search(images: Tensor) -> Codes:
        return _search_codes(model, images, num_levels, effort)[0]

    def encode(images: Tensor) -> Codes:
        batch_size = max(1, _MOST_PIXELS // max(1, images.shape[-2:].numel()))
        batches = torch.split(images, batch_size)
        codes = [tiles.encode(search, batch, model.config, networks) for batch in batches]
        return tuple(map(torch.cat, zip(*codes, strict=True)))

    return exact_float32()(encode)


class Rate(NamedTuple):
    """The rate of images (B, C, Y, X) whose positions may stop."""

    bits: Tensor  # mean bits per code of each level (levels,)
    qualities: Tensor  # of the files (B,) float32


def encode_with_distances(
    model: SingleGridAutoencoder,
    images: Tensor,
    levels: int,
    effort: int = 0,
    rate: Rate | None = None,
) -> tuple[Codes, Tensor]:
    """Return the codes of the first levels of images (B, C, Y, X), before positions stop, and the
    squared distances (levels, B, H, W) that remain after each level.

    With an effort the distances are those of goals that the decoder has moved, and the rate must be
    given.
    """
    networks = nn.ModuleList([model.encoder, model.decoder] if effort else [model.encoder])

    def encode_tile(tile: Tensor) -> tuple[Tensor, ...]:
        codes, goals = _search_codes(model, tile, levels, effort, rate)
        return *codes, *model.quantizer.prefix_distances(goals, codes)

    maps = tiles.encode(encode_tile, images, model.config, networks)
    return maps[:levels], torch.stack(maps[levels:])


@torch.inference_mode(False)  # gradients need tensors made outside inference mode
@torch.no_grad()
def _search_codes(
    model: SingleGridAutoencoder,
    images: Tensor,
    levels: int,
    effort: int,
    rate: Rate | None = None,
) -> tuple[Codes, Tensor]:
    """Return the codes of the first levels of images (B, C, Y, X), before positions stop, and the
    last goals (B, H, W, D).
    """
    quantizer = model.quantizer
    targets = to_unit_images(images, model.channels)
    goals = model.latents(targets)

    def choose_nodes(goals: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the nodes nearest to goals (B, H, W, D): codes (levels, B, H, W), numbers of
        levels and prices (B, H, W), and vectors.
        """
        codes = quantizer.encode(goals, levels)
        depths = torch.full_like(codes[0], levels)
        prices = torch.zeros_like(goals[..., 0])
        if rate is not None:
            bits = rate.bits.view(-1, 1, 1, 1)
            level_prices = quantizer.price_bits(bits, rate.qualities).expand(-1, *depths.shape)
            depths = choose_depths(quantizer.prefix_distances(goals, codes), level_prices)
            prices = level_prices.gather(0, depths[None] - 1)[0]
        vectors = quantizer.lookup(stop_at(codes, depths))
        return torch.stack(codes), depths, prices, vectors

    codes, depths, prices, vectors = choose_nodes(goals)
    rows, columns = (torch.arange(side, device=goals.device) for side in goals.shape[1:3])
    colours = (rows[:, None] + columns) % 2

    best = codes
    best_errors = errors_before = torch.full((len(targets),), torch.inf, device=goals.device)
    for turn in range(_TURNS[effort]):
        inputs = vectors.detach().requires_grad_()
        with torch.enable_grad():
            errors = _measure_errors(model, inputs, targets, depths)
            (gradients,) = torch.autograd.grad(errors.sum(), inputs)
        errors = errors.detach()

        # keep the best codes of each image; adapt the weights to the change of the error
        best = torch.where((errors < best_errors)[:, None, None], codes, best)
        best_errors = torch.minimum(errors, best_errors)
        if turn == 0:
            weights = _FIRST_WEIGHT * _estimate_curvatures(gradients, errors, targets)
        else:
            factors = torch.where(errors > errors_before, _GROWTH, _DECAY)
            weights = weights * factors[:, None, None, None]
        errors_before = errors

        # move all positions, or those of one colour of the chessboard
        moves = colours == turn % 2
        if effort == 2 and turn < _WHOLE_TURNS:
            moves = torch.ones_like(moves)
        new_goals = vectors + _CARRY * (goals - vectors) - gradients / (2 * weights)
        goals = torch.where(moves[..., None], new_goals, goals)
        new_codes, new_depths, new_prices, new_vectors = choose_nodes(goals)
        new_costs = _distances(new_vectors, goals) + new_prices
        moves = moves & (new_costs < _distances(vectors, goals) + prices)
        codes = torch.where(moves, new_codes, codes)
        depths = torch.where(moves, new_depths, depths)
        prices = torch.where(moves, new_prices, prices)
        vectors = torch.where(moves[..., None], new_vectors, vectors)

    if effort < 2 or rate is not None:
        return tuple(codes), goals
    errors = _measure_errors(model, vectors, targets, depths)
    best = torch.where((errors < best_errors)[:, None, None], codes, best)
    return tuple(best), goals


def _measure_errors(
    model: SingleGridAutoencoder, vectors: Tensor, targets: Tensor, depths: Tensor
) -> Tensor:
    """Return the squared errors (B,) of the images that are decoded from vectors (B, H, W, D) with
    `depths` (B, H, W) levels.
    """
    is_whole = bool((depths == model.prefixes[-1]).all())
    # bfloat16 takes half of the time; its error of 2% changes no choice that matters
    use_bf16 = computes_bf16(vectors.device)
    with torch.autocast(vectors.device.type, torch.bfloat16, enabled=use_bf16):
        # `pixels` are in [-1, 1], unlike the inputs of `latents`
        counts = None if is_whole else depths
        decoded = (model.pixels(vectors, image_size(targets), counts) + 1) / 2
    return (decoded.float().clamp(0, 1) - targets).square().sum((1, 2, 3))


def _distances(vectors: Tensor, goals: Tensor) -> Tensor:
    return (vectors - goals).square().sum(-1)


def _estimate_curvatures(gradients: Tensor, errors: Tensor, targets: Tensor) -> Tensor:
    """Return the mean curvature of each image's error (B, 1, 1, 1).

    Let J be the decoder's derivative, r the error of the pixels, e = |r|^2 and g = 2 J^T r. Were r
    white noise, |g|^2 would be 4 e tr(J^T J) / image values. The mean curvature is tr(J^T J) /
    latent values.
    """
    squares = gradients.square().sum((1, 2, 3))
    value_ratio = targets.shape[1:].numel() / gradients.shape[1:].numel()
    curvatures = squares / (4 * errors) * value_ratio
    return curvatures.nan_to_num(1.0).clamp(min=1e-12)[:, None, None, None]
