"""The interface of every prior: the distribution of the codes of one or several levels, position by position.

Shapes: codes of a level (B, H, W) int64 in [0, m); coarser levels as indices of each position's codeword in its level,
int64 (B, H_j, W_j), coarse first; label (B,) int64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hrvqvae.config import Config, Grid, Levels, PriorNetworkConfig
from hrvqvae.config.registry import PRIORS, imported
from hrvqvae.utils.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Level:
    """A level, as its prior sees it.

    Attributes:
        grid: (H, W) of its codes.
        symbols: m, the values that a code can take, and the entries of the softmax.
        coarser: codewords of each coarser level, coarse first.
        codewords: of this level (0: as many as symbols).
        classes: number of class labels, 0 if there are none.
        unconditional: whether the prior was also trained without classes, under the label `no_class`.
    """

    grid: Grid
    symbols: int
    coarser: tuple[int, ...] = ()
    codewords: int = 0
    classes: int = 0
    unconditional: bool = False

    @property
    def number(self) -> int:
        """The number of the level; 1 is the coarsest."""
        return len(self.coarser) + 1

    @property
    def linked(self) -> bool:
        """Whether each codeword of the next coarser level has codewords here: the index is parent * symbols + code."""
        return bool(self.coarser) and self.codewords == self.coarser[-1] * self.symbols

    @property
    def labels(self) -> int:
        """The number of labels: the classes, and "no class" if the prior was trained without classes too."""
        return self.classes + self.unconditional

    @property
    def no_class(self) -> int:
        """The label of "no class", which follows the classes."""
        return self.classes

    def check(self, coarser: Sequence[Tensor], label: Tensor | None, *, training: bool = False) -> None:
        """Check coarser levels and labels. In training on a GPU, values are not checked: that would wait for them.

        Raises:
            InputError: Levels or labels are missing, superfluous or out of range.
        """

        def outside(values: Tensor, end: int) -> bool:
            waits = training and values.device.type != "cpu"
            return not waits and values.numel() > 0 and not (int(values.min()) >= 0 and int(values.max()) < end)

        if len(coarser) != len(self.coarser):
            raise InputError(f"{len(coarser)} coarser levels are given; this prior sees {len(self.coarser)}")
        for level, (indices, codewords) in enumerate(zip(coarser, self.coarser, strict=True), start=1):
            if outside(indices, codewords):
                raise InputError(f"coarser level {level} has an index outside 0..{codewords - 1}")
        if self.classes and label is None:
            raise InputError(f"this prior is class-conditional: give a label, 0..{self.classes - 1}")
        if label is not None and not self.classes:
            raise InputError("this prior knows no classes, but a label is given")
        if label is not None and outside(label, self.labels):
            raise InputError(f"a label lies outside 0..{self.labels - 1}")


class Prior(nn.Module, ABC):
    """The distribution of the codes of one or several consecutive levels of one grid, given coarser levels and class.

    Attributes:
        levels: the levels that the prior covers, coarse first.
    """

    def __init__(self, config: PriorNetworkConfig, *levels: Level) -> None:
        super().__init__()
        self.config, self.levels = config, levels

    @property
    def level(self) -> Level:
        """The coarsest level of the prior; all its levels have the same grid and classes."""
        return self.levels[0]

    def codeword_indices(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Return the codeword indices (B, H, W) of each of its levels, from the codes of all of them."""
        indices = list[Tensor]()
        for level, level_codes in zip(self.levels, codes, strict=True):
            indices.append(indices[-1] * level.symbols + level_codes if indices and level.linked else level_codes)
        return indices

    @abstractmethod
    def level_logits(
        self, codes: Sequence[Tensor], coarser: Sequence[Tensor], label: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the logits (B, m_l, H, W) of each of its levels.

        The logits of a level at a position depend on the codes of all these levels at earlier positions in raster
        order, and on the codes of coarser levels at the position itself; on no other codes.

        Args:
            codes: (B, H, W) of each of its levels.
            coarser: codeword indices of the levels that are coarser than these.

        Raises:
            InputError: The coarser levels or labels do not match `level`.
        """


@dataclass(frozen=True)
class Priors:
    """The priors of a run.

    Attributes:
        networks: priors that together cover all levels, coarse first; in evaluation mode, on the CPU, in float32.
        classes: names of the class labels, empty if there are none.
        class_counts: number of training images of each class.
    """

    networks: tuple[Prior, ...]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]

    def class_number(self, name: str | int) -> int:
        """Return the index of a class, given its name or index. Raises InputError if there is no such class."""
        if not self.classes:
            raise InputError("the priors know no classes; leave the class out")
        name = str(name)
        if name in self.classes:
            return self.classes.index(name)
        if name.isdecimal() and int(name) < len(self.classes):
            return int(name)
        raise InputError(f"class {name!r} is not one of {', '.join(self.classes)} (or 0..{len(self.classes) - 1})")


def mean_nats(prior: Prior, codes: Sequence[Tensor], coarser: Sequence[Tensor], label: Tensor | None) -> list[Tensor]:
    """Return the mean negative log-likelihood per code of each of a prior's levels, in nats (scalars)."""
    all_logits = prior.level_logits(codes, coarser, label)
    return [cross_entropy(logits.float(), level_codes) for logits, level_codes in zip(all_logits, codes, strict=True)]


def code_loss(prior: Prior, codes: Sequence[Tensor], coarser: Sequence[Tensor], label: Tensor | None) -> Tensor:
    """Return the mean of `mean_nats` over the levels (a scalar)."""
    return torch.stack(mean_nats(prior, codes, coarser, label)).mean()


@torch.inference_mode()
def total_bits(prior: Prior, codes: Sequence[Tensor], coarser: Sequence[Tensor], label: Tensor | None) -> list[float]:
    """Return the bits of a batch's codes under a prior, summed over the batch, for each of its levels."""
    all_nats = mean_nats(prior, codes, coarser, label)
    return [
        float(nats.double()) * level_codes.numel() / math.log(2)
        for nats, level_codes in zip(all_nats, codes, strict=True)
    ]


def level_of(config: Config, index: int, classes: int) -> Level:
    """Return a level (index 0 is the coarsest) of a configuration, for images of the configured size."""
    model, size = config.model, config.data.size
    return Level(
        grid=model.latent_grids(size, size)[index],
        symbols=model.num_symbols[index],
        coarser=model.num_codewords[:index],
        codewords=model.num_codewords[index],
        classes=classes,
        unconditional=classes > 0 and config.prior.class_dropout > 0,
    )


def build_prior(config: Config, levels: Levels, classes: int) -> Prior:
    """Build the untrained prior of these levels, on the CPU, in float32."""
    network = config.prior.network
    kind = cast(type[Prior], imported(PRIORS.get(network.kind).network))
    return kind(network, *(level_of(config, index, classes) for index in levels))
