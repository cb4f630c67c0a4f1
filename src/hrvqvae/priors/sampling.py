"""Draw codes: temperature, top-k, top-p, guidance, and a plain sampler without a cache.

Letters: B images, m symbols, K labels per image, 1 or 2 (`expand_labels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.priors.base import Level, Prior
from hrvqvae.priors.kernels import NO_CODE, allocate_workspace, draw
from hrvqvae.utils.errors import InputError, NonFiniteError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How codes are drawn from a distribution over m symbols. Raises InputError if a value is out
    of range.
    """

    temperature: float = (
        1.0  #: divisor of the logits, from 1e-6 to 1e6; below 1, likely codes become likelier
    )
    top_k: int = 0  #: draw only from the k likeliest codes (0: all)
    #: draw only from the fewest likeliest codes that together reach this probability (1: all)
    top_p: float = 1.0
    #: w in the mixed logits u + w (c - u), from 0 to 1000; c are the logits for the class, u the
    #: logits for "no class"
    #: (1: c alone, 0: u alone).
    guidance: float = 1.0
    levels: int | None = None  #: draw and decode only this many levels, coarse first (None: all)

    def __post_init__(self) -> None:
        if not 1e-6 <= self.temperature <= 1e6:
            raise InputError(
                f"temperature is {self.temperature:g}; it must be from 1e-6 to 1e6 (1 is the"
                " model's own)"
            )
        if self.top_k < 0:
            raise InputError(f"top-k is {self.top_k}; it must be at least 0 (0 keeps all codes)")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p is {self.top_p:g}; it must be above 0 and at most 1")
        if not 0 <= self.guidance <= 1000:
            raise InputError(
                f"guidance is {self.guidance:g}; it must be from 0 to 1000 (1 is the model's own)"
            )

    def check(self, level: Level) -> None:
        """Raise InputError if a level has fewer symbols than top-k, or if its prior does not
        support guidance.
        """
        if self.top_k > (symbols := level.symbols):
            raise InputError(
                f"top-k is {self.top_k}, but a code has only {symbols} symbols; give 1 to {symbols}"
            )
        if self.guidance == 1 or level.unconditional:
            return
        subject = f"guidance is {self.guidance:g}, but the prior of level {level.index + 1}"
        if not level.classes:
            raise InputError(
                f"{subject} knows no classes: leave it at 1, or train on images with classes"
            )
        raise InputError(
            f"{subject} was trained without class dropout: train it with --prior.class_dropout 0.1,"
            " or leave it at 1"
        )

    def values(self) -> tuple[float, int, float]:
        """Return (temperature, top_k, top_p) as `kernels.draw` takes them; other types would
        compile it anew.
        """
        return float(self.temperature), int(self.top_k), float(self.top_p)


def no_distribution_error(level: Level, row: int, column: int) -> NonFiniteError:
    """Return the error to raise if a code of a level has no distribution (`NO_CODE`)."""
    return NonFiniteError(
        f"the prior of level {level.index + 1} gives logits that are NaN or infinite at row {row},"
        f" column {column}; train it again, or look at its weights"
    )


def draw_code(logits: NDArray[np.float32], uniform: float, params: SamplingParams) -> int:
    """Call `kernels.draw` with logits (m,) and sampling parameters."""
    symbols = len(logits)
    return int(draw(logits, symbols, uniform, *params.values(), allocate_workspace(symbols)))


def expand_labels(
    level: Level, label: Tensor | None, guidance: float
) -> tuple[Tensor | None, Tensor]:
    """Return the labels that guidance needs for a batch with labels (B,), and the weights that mix
    the logits.

    The mixed logits are u + w (c - u), with c for the class and u for "no class". So the network
    takes K * B inputs: the whole batch with the class labels, then the whole batch with "no class".
    A copy with weight 0 is left out. Labels are (K * B,) int64, None if the prior has no classes;
    weights (K,) float32 with the sum 1.
    """
    labels_and_weights = [(label, guidance)]
    if label is not None and level.unconditional:
        labels_and_weights.append((torch.full_like(label, level.classes), 1 - guidance))
    labels_and_weights = [(labels, weight) for labels, weight in labels_and_weights if weight]
    label_sets = [labels for labels, _ in labels_and_weights if labels is not None]
    mixing = torch.tensor([weight for _, weight in labels_and_weights], dtype=torch.float32)
    return torch.cat(label_sets) if label_sets else None, mixing


@torch.inference_mode()
def sample_plain(
    prior: Prior,
    codes: Sequence[Tensor],
    kept: Sequence[Tensor],
    coarser: Sequence[Tensor],
    label: Tensor | None,
    uniforms: Sequence[Tensor],
    mixing: Tensor,
    params: SamplingParams,
) -> None:
    """Draw the codes that are not kept: positions in raster order, and all levels of a position,
    coarse first.

    Raises NonFiniteError if a logit is NaN or infinite; the message names the position.

    Args:
        prior: in evaluation mode.
        codes: (B, H, W) int64 of each level of the prior, on its device; drawn codes are written in
            place.
        kept: (B, H, W) bool of each level, on the CPU; true where a code is kept.
        coarser: codeword indices (K * B, H_j, W_j) of each coarser level, on the prior's device.
        label: (K * B,) or None, as `expand_labels` returns it, on the prior's device.
        uniforms: (B, H, W) float64 in [0, 1) of each level, on the CPU; a draw per code.
        mixing: (K,), as `expand_labels` returns it.
    """
    batch, height, width = codes[0].shape
    for row in range(height):
        for column in range(width):
            for index, level in enumerate(prior.levels):
                expanded = [level_codes.repeat(len(mixing), 1, 1) for level_codes in codes]
                all_logits = (
                    prior.level_logits(expanded, coarser, label)[index][:, :, row, column]
                    .cpu()
                    .float()
                )
                logits = (
                    (all_logits.view(len(mixing), batch, -1) * mixing[:, None, None]).sum(0).numpy()
                )
                drawn = codes[index][:, row, column].tolist()
                for image in range(batch):
                    if not kept[index][image, row, column]:
                        uniform = float(uniforms[index][image, row, column])
                        code = draw_code(logits[image], uniform, params)
                        if code == NO_CODE:
                            raise no_distribution_error(level, row, column)
                        drawn[image] = code
                codes[index][:, row, column] = torch.tensor(drawn, device=codes[index].device)
