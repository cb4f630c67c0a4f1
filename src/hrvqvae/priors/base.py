"""The contract of every prior: the distribution of the codes of one or several levels, position after position.

Shapes: codes of a level (B, H, W) int64 in [0, m); coarser levels as paths, the number of each position's codeword
among all of its level, int64 (B, H_j, W_j), coarse first; label (B,) int64.
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
    """What a prior must know of the codes of a level.

    Attributes:
        grid: (H, W) of its codes.
        symbols: m, values that a code can take; the softmax has as many entries.
        coarser: codewords in all of each coarser level, coarse first.
        codewords: in all of this level (0: as many as symbols).
        classes: class labels, 0 where there are none.
        unconditional: whether the codes without a class are known as well: the label `no_class` stands for that.
    """

    grid: Grid
    symbols: int
    coarser: tuple[int, ...] = ()
    codewords: int = 0
    classes: int = 0
    unconditional: bool = False

    @property
    def number(self) -> int:
        """1 for the coarsest level."""
        return len(self.coarser) + 1

    @property
    def linked(self) -> bool:
        """Whether each codeword of the level before owns codewords here: the path is parent * symbols + code."""
        return bool(self.coarser) and self.codewords == self.coarser[-1] * self.symbols

    @property
    def labels(self) -> int:
        """Labels that a prior tells apart: the classes, and "no class" where that is known."""
        return self.classes + self.unconditional

    @property
    def no_class(self) -> int:
        """The label of "no class", the one after the classes."""
        return self.classes

    def check(self, coarser: Sequence[Tensor], label: Tensor | None, *, training: bool = False) -> None:
        """Check coarser levels and labels; their values not in a training step on a GPU, which would wait for them.

        Raises InputError where they are missing, too many or out of range.
        """

        def outside(values: Tensor, end: int) -> bool:
            waits = training and values.device.type != "cpu"
            return not waits and values.numel() > 0 and not (int(values.min()) >= 0 and int(values.max()) < end)

        if len(coarser) != len(self.coarser):
            raise InputError(f"{len(coarser)} coarser levels are given; this prior sees {len(self.coarser)}")
        for number, (paths, codewords) in enumerate(zip(coarser, self.coarser, strict=True), start=1):
            if outside(paths, codewords):
                raise InputError(f"coarser level {number} has a path outside 0..{codewords - 1}")
        if self.classes and label is None:
            raise InputError(f"this prior is class-conditional: give a label, 0..{self.classes - 1}")
        if label is not None and not self.classes:
            raise InputError("this prior knows no classes, but a label is given")
        if label is not None and outside(label, self.labels):
            raise InputError(f"a label lies outside 0..{self.labels - 1}")


class Prior(nn.Module, ABC):
    """The distribution of the codes of one or several consecutive levels of one grid, given coarser levels and class.

    Attributes:
        levels: what it covers, coarse first.
    """

    def __init__(self, config: PriorNetworkConfig, *levels: Level) -> None:
        super().__init__()
        self.config, self.levels = config, levels

    @property
    def level(self) -> Level:
        """The coarsest level that it covers; all have its grid and its classes."""
        return self.levels[0]

    def paths(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """The path of each level that it covers, (B, H, W), from the codes of all of them."""
        paths = list[Tensor]()
        for level, own in zip(self.levels, codes, strict=True):
            paths.append(paths[-1] * level.symbols + own if paths and level.linked else own)
        return paths

    @abstractmethod
    def level_logits(
        self, codes: Sequence[Tensor], coarser: Sequence[Tensor], label: Tensor | None
    ) -> tuple[Tensor, ...]:
        """(B, m_l, H, W) of each level that it covers, from the codes of each of them, (B, H, W).

        Those of a level at a position depend on the codes of all these levels at the positions before it in raster
        order, and on those of the levels before it at the position itself; never on others.

        Args:
            coarser: paths of the levels that are coarser than the first of these.

        Raises:
            InputError: coarser levels or labels are not those of `level`.
        """


@dataclass(frozen=True)
class Priors:
    """The priors of a run.

    Attributes:
        networks: which cover its levels one after the other, coarse first; in evaluation mode, on the CPU, float32.
        classes: names of the class labels, empty where there are none.
        class_counts: training images of each class.
    """

    networks: tuple[Prior, ...]
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


def level_nats(prior: Prior, codes: Sequence[Tensor], coarser: Sequence[Tensor], label: Tensor | None) -> list[Tensor]:
    """Mean negative log-likelihood of a code of each level that a prior covers, in nats (scalars)."""
    found = prior.level_logits(codes, coarser, label)
    return [cross_entropy(logits.float(), own) for logits, own in zip(found, codes, strict=True)]


def code_loss(prior: Prior, codes: Sequence[Tensor], coarser: Sequence[Tensor], label: Tensor | None) -> Tensor:
    """The same of all the levels together (a scalar)."""
    return torch.stack(level_nats(prior, codes, coarser, label)).mean()


@torch.inference_mode()
def total_bits(prior: Prior, codes: Sequence[Tensor], coarser: Sequence[Tensor], label: Tensor | None) -> list[float]:
    """Bits that the codes of a batch take under a prior, summed, of each level that it covers."""
    found = level_nats(prior, codes, coarser, label)
    return [float(nats.double()) * own.numel() / math.log(2) for nats, own in zip(found, codes, strict=True)]


def level_of(config: Config, index: int, classes: int) -> Level:
    """What a prior must know of a level (0 is the coarsest), for images of the configured size."""
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
    """The untrained prior of these levels, on the CPU, in float32."""
    network = config.prior.network
    kind = cast(type[Prior], imported(PRIORS.get(network.kind).network))
    return kind(network, *(level_of(config, index, classes) for index in levels))
