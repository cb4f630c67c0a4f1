"""The contract of every prior: the distribution of one level's codes, position after position.

Shapes: codes (B, H, W) int64 in [0, m); coarser levels as paths, the number of each position's codeword among all of
its level, int64 (B, H_j, W_j), coarse first; label (B,) int64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hrvqvae.config import Grid, PriorNetworkConfig
from hrvqvae.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Level:
    """What a prior of one level must know of the codes.

    Attributes:
        grid: (H, W) of its codes.
        symbols: m, values that a code can take; the softmax has as many entries.
        coarser: codewords in all of each coarser level, coarse first.
        classes: class labels, 0 where there are none.
    """

    grid: Grid
    symbols: int
    coarser: tuple[int, ...] = ()
    classes: int = 0

    @property
    def number(self) -> int:
        """1 for the coarsest level."""
        return len(self.coarser) + 1

    def check(self, coarser: Sequence[Tensor], label: Tensor | None) -> None:
        """Raises InputError where coarser levels or labels are missing, too many or out of range."""
        if len(coarser) != len(self.coarser):
            raise InputError(f"{len(coarser)} coarser levels are given; this prior sees {len(self.coarser)}")
        for number, (paths, codewords) in enumerate(zip(coarser, self.coarser, strict=True), start=1):
            if paths.numel() and not (int(paths.min()) >= 0 and int(paths.max()) < codewords):
                raise InputError(f"coarser level {number} has a path outside 0..{codewords - 1}")
        if self.classes and label is None:
            raise InputError(f"this prior is class-conditional: give a label, 0..{self.classes - 1}")
        if label is not None and not self.classes:
            raise InputError("this prior knows no classes, but a label is given")
        if label is not None and label.numel() and not (int(label.min()) >= 0 and int(label.max()) < self.classes):
            raise InputError(f"a label lies outside 0..{self.classes - 1}")


class Prior(nn.Module, ABC):
    """The distribution of one level's codes given the coarser levels and the class."""

    def __init__(self, config: PriorNetworkConfig, level: Level) -> None:
        super().__init__()
        self.config, self.level = config, level

    @abstractmethod
    def logits(self, codes: Tensor, coarser: Sequence[Tensor], label: Tensor | None) -> Tensor:
        """(B, m, H, W); those of a position depend on the codes before it in raster order, never on later ones.

        Raises InputError where coarser levels or labels are not those of `level`.
        """


@dataclass(frozen=True)
class Priors:
    """The priors of a run, one a level, coarse first.

    Attributes:
        levels: in evaluation mode, on the CPU, float32.
        classes: names of the class labels, empty where there are none.
        class_counts: training images of each class.
    """

    levels: tuple[Prior, ...]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]

    def class_number(self, name: str | int) -> int:
        """Number of the class of that name, or of that number. Raises InputError with the names there are."""
        if not self.classes:
            raise InputError("the priors know no classes; leave the class out")
        name = str(name)
        if name in self.classes:
            return self.classes.index(name)
        if name.isdecimal() and int(name) < len(self.classes):
            return int(name)
        raise InputError(f"class {name!r} is not one of {', '.join(self.classes)} (or 0..{len(self.classes) - 1})")


def code_loss(prior: Prior, codes: Tensor, coarser: Sequence[Tensor], label: Tensor | None) -> Tensor:
    """Mean negative log-likelihood of a code, in nats (a scalar)."""
    return cross_entropy(prior.logits(codes, coarser, label).float(), codes)


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)


@torch.inference_mode()
def total_bits(prior: Prior, codes: Tensor, coarser: Sequence[Tensor], label: Tensor | None) -> float:
    """Bits that the codes of a batch take under a prior, summed."""
    return bits(float(code_loss(prior, codes, coarser, label).double()) * codes.numel())
