"""Draw codes: temperature, top-k, top-p, guidance, and a plain sampler without a cache.

Letters: B images, m symbols, K labels per image, 1 or 2 (`expand_labels`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrvqvae.priors.base import Level, Prior
from hrvqvae.priors.guidance import Guidance, format_guidance, list_weights
from hrvqvae.utils.errors import InputError, NonFiniteError, require


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How codes are drawn from a distribution over m symbols. Raises InputError if a value is out
    of range.
    """

    #: divisor of the logits, from 1e-6 to 1e6; below 1, likely codes become likelier
    temperature: float = 1.0
    #: draw only from the k likeliest codes (0: all)
    top_k: int = 0
    #: draw only from the fewest likeliest codes that together reach this probability (1: all)
    top_p: float = 1.0
    #: w in the mixed logits u + w (c - u), from 0 to 1000, or w of the first and of the last
    #: position (`expand_labels`); c are the logits for the class, u the logits for "no class" (1:
    #: c alone, 0: u alone)
    guidance: Guidance = 1.0
    #: draw and decode only this many levels, coarse first (None: all)
    levels: int | None = None
    #: decoder of the images: "generation" (`train-decoder`) or "progressive"; None: that of
    #: sampling.json if it was trained for these levels, otherwise "generation" if this was,
    #: otherwise "progressive"
    decoder: str | None = None

    def __post_init__(self) -> None:
        temperature = self.temperature
        limits = "from 1e-6 to 1e6 (1 is the model's own)"
        require(1e-6 <= temperature <= 1e6, "temperature", temperature, limits)
        require(self.top_k >= 0, "top-k", self.top_k, "at least 0 (0 keeps all codes)")
        require(0 < self.top_p <= 1, "top-p", self.top_p, "above 0 and at most 1")
        list_weights(self.guidance)
        decoders = (None, "generation", "progressive")
        require(self.decoder in decoders, "decoder", self.decoder, "generation or progressive")

    def check(self, priors: Sequence[Prior]) -> None:
        """Raise InputError if a prior does not support guidance."""
        is_guided = any(weight != 1 for weight in list_weights(self.guidance))
        if is_guided and not all(prior.level.unconditional for prior in priors):
            raise InputError(
                f"guidance is {format_guidance(self.guidance)}, but a prior was trained without"
                " class dropout: leave it at 1, or train with classes and --prior.class_dropout 0.1"
            )


def draw(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Return the codes (B,) at which the cumulative distributions exceed the uniform numbers, and
    the totals (B, 1) of the distributions.

    Of equally likely codes, top-k and top-p prefer the smaller. A total is NaN if there is no
    distribution: a logit is NaN or +inf, or all logits are -inf.

    Args:
        logits: (B, m).
        uniforms: (B, 1) float64 in [0, 1).
    """
    if params.temperature != 1:
        logits = logits / params.temperature
    shares = logits.softmax(-1)
    symbols = shares.shape[-1]
    if 0 < params.top_k < symbols or params.top_p < 1:
        shares = _keep_likeliest(shares, params)
    cumulative = shares.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    codes = torch.searchsorted(cumulative, uniforms * total, right=True)[:, 0]
    return codes.clamp_(max=symbols - 1), total


def _keep_likeliest(shares: Tensor, params: SamplingParams) -> Tensor:
    """Return the shares (B, m) with 0 for the codes that top-k and top-p exclude."""
    ordered, order = shares.sort(dim=-1, descending=True, stable=True)
    if params.top_k:
        ordered[:, params.top_k :] = 0
    cumulative = ordered.cumsum(-1, dtype=torch.float64)

    # a code is excluded if the likelier ones reach top_p without it
    excluded = cumulative[:, :-1] >= params.top_p * cumulative[:, -1:]
    ordered[:, 1:].masked_fill_(excluded, 0)
    return torch.zeros_like(shares).scatter_(-1, order, ordered)


def expand_labels(
    level: Level, label: Tensor | None, guidance: Guidance
) -> tuple[Tensor | None, Tensor]:
    """Return the labels that guidance needs for a batch with labels (B,), and the factors that mix
    the logits.

    The mixed logits are w c + (1 - w) u, with c for the class and u for "no class". From the first
    to the last position in raster order, w changes with the square root of the position. So the
    network takes K * B inputs: the whole batch with the class labels, then the whole batch with "no
    class". Inputs whose factor is 0 at every position are left out.

    Labels are (K * B,) int64, None if the prior has no classes; factors (H, W, K) float32 of sum 1.
    A prior without "no class" is not guided (`SamplingParams.check`): w is 1.
    """
    device = None if label is None else label.device
    ends = list_weights(guidance)  # of the first and the last position, or one for all
    height, width = level.grid
    share = torch.linspace(0, 1, height * width, dtype=torch.float64, device="cpu").sqrt()
    weights = (ends[0] + (ends[-1] - ends[0]) * share).view(height, width)
    mixing = torch.stack([weights, 1 - weights], dim=-1).float()
    if label is None or not level.unconditional:
        return label, mixing[..., :1].to(device)
    labels = torch.stack([label, torch.full_like(label, level.classes)])
    needed = mixing.flatten(0, 1).any(0)
    return labels[needed.to(device)].flatten(), mixing[..., needed].to(device)


@torch.inference_mode()
def draw_positions(
    prior: Prior,
    codes: Sequence[Tensor],
    kept: Sequence[Tensor],
    coarser: Sequence[Tensor],
    label: Tensor | None,
    uniforms: Sequence[Tensor],
    params: SamplingParams,
) -> None:
    """Draw the codes that are not kept: positions in raster order, and all levels of a position,
    coarse first.

    All tensors are on the prior's device. Raises NonFiniteError if a logit is NaN or infinite; the
    message names the position.

    Args:
        prior: in evaluation mode.
        codes: (B, H, W) int64 of each level of the prior; drawn codes are written in place.
        kept: masks (B, H, W) bool of each level; true where a code is kept.
        coarser: codeword indices (B, H_j, W_j) of each coarser level.
        label: (B,), None if the prior has no classes.
        uniforms: (B, H, W) float64 in [0, 1) of each level. A draw of several levels takes that of
            its first level.
    """
    labels, mixing = expand_labels(prior.level, label, params.guidance)
    expanded = [indices.repeat(mixing.shape[-1], 1, 1) for indices in coarser]
    network = prior.steps(prior, codes, expanded, labels, mixing)
    levels = prior.levels
    symbols = [level.symbols for level in levels]
    height, width = prior.level.grid
    some_are_kept = any(mask.any() for mask in kept)
    failed = torch.zeros_like(codes[0][:, 0, 0], dtype=torch.bool)

    # A draw chooses one of n leaves, and so a code of each level of the draw: per draw and level,
    # the codes (n,) of the leaves.
    codes_of_leaves = []
    for drawn_levels in prior.draws:
        sizes = symbols[drawn_levels.start : drawn_levels.stop]
        leaves = torch.arange(math.prod(sizes), device=failed.device)
        codes_of_leaves.append(torch.unravel_index(leaves, tuple(sizes)))
    for row in range(height):
        for column in range(width):
            network.start(row, column)
            for drawn_levels, leaf_codes in zip(prior.draws, codes_of_leaves, strict=True):
                logits = network.logits(drawn_levels.start)

                # only leaves that agree with the kept codes can be drawn
                if some_are_kept:
                    for level, level_codes in zip(drawn_levels, leaf_codes, strict=True):
                        differs = level_codes != codes[level][:, row, column, None]
                        is_kept = kept[level][:, row, column, None]
                        logits = logits.masked_fill(differs & is_kept, -torch.inf)
                uniform = uniforms[drawn_levels.start][:, row, column, None]
                leaf, total = draw(logits, uniform, params)
                for level, level_codes in zip(drawn_levels, leaf_codes, strict=True):
                    codes[level][:, row, column] = level_codes[leaf]
                failed |= total[:, 0].isnan()

    # checked once at the end, because each check waits for a GPU
    if failed.any():
        raise NonFiniteError(
            f"the prior of level {levels[0].index + 1} gives logits that are NaN or infinite;"
            " train it again, or look at its weights"
        )
