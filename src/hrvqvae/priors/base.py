"""The interface of the priors. A prior gives the distribution of the codes of its levels, position
by position.

Shapes, all int64: codes of a level (B, H, W), values 0..m - 1; codeword indices of coarser level j
(B, H_j, W_j); labels of classes and of copies (B,). Lists of levels begin with the coarsest.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hrvqvae.config import Config, Grid, Levels, PriorNetworkConfig
from hrvqvae.config.registry import PRIORS
from hrvqvae.utils.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Level:
    """The sizes of a level, as its prior needs them."""

    grid: Grid  #: (H, W) of the codes
    symbols: int  #: m, the number of values of a code
    #: number of codewords of each coarser level of the model, coarse first
    coarser: tuple[int, ...] = ()
    codewords: int = 0  #: number of codewords of this level (0: as many as symbols)
    classes: int = 0  #: number of class labels, 0 if there are none
    #: whether the prior also learns a label for "no class", which is the number `classes`
    unconditional: bool = False
    #: number of labels of augmented copies: 1 to `copies`; label 0 is for the images themselves
    copies: int = 0

    @property
    def index(self) -> int:
        """The index of the level; 0 is the coarsest."""
        return len(self.coarser)


@dataclass
class LogitSteps:
    """Computes the logits of a prior position by position, to draw codes.

    This class runs the whole network at every position. A subclass that keeps the features of
    earlier positions is faster.
    """

    prior: Any  #: in evaluation mode
    codes: Sequence[Tensor]  #: (B, H, W) of each level of the prior; the caller writes drawn codes
    coarser: Sequence[Tensor]  #: codeword indices (K * B, H_j, W_j) of each coarser level
    label: Tensor | None  #: (K * B,), or None without classes
    mixing: Tensor  #: (H, W, K) weights of each image's labels (`sampling.expand_labels`)

    @property
    def num_labels(self) -> int:
        """K, the number of labels per image."""
        return self.mixing.shape[-1]

    def mix(self, values: Tensor) -> Tensor:
        """Return the weighted sum (B, n) over the labels of values (K, B, n) at this position."""
        if len(values) > 1:  # a single label has the weight 1
            values = values * self.mixing[*self.place, :, None, None]
        return values.sum(0)

    def __post_init__(self) -> None:
        """Prepare what does not depend on the codes."""

    def start(self, row: int, column: int) -> None:
        """Go to the next position in raster order. The codes of earlier positions are complete."""
        self.place = (row, column)

    def logits(self, level: int) -> Tensor:
        """Return the logits (B, n) of the draw that begins with a level of the prior, mixed over
        the labels.

        The codes of its coarser levels at this position are complete; later calls are for finer
        levels.
        """
        expanded = [level_codes.repeat(self.num_labels, 1, 1) for level_codes in self.codes]
        all_logits = self.prior.level_logits(expanded, self.coarser, self.label)[level]
        logits = all_logits[:, :, *self.place].float()
        return self.mix(logits.view(self.num_labels, -1, logits.shape[1]))


class Prior(nn.Module, ABC):
    """A network for the codes of consecutive `levels` of one grid, conditioned on the coarser
    levels and the class.
    """

    steps: type[LogitSteps] = LogitSteps  # computes the logits of samples

    def __init__(self, config: PriorNetworkConfig, *levels: Level) -> None:
        super().__init__()
        self.config = config
        self.levels = levels
        self.level = levels[0]  # the coarsest; all have the same grid and classes
        self.num_codes = len(levels) * math.prod(self.level.grid)  # of an image
        # the levels that a sampler draws together, coarse first: here each level alone
        self.draws = [range(level, level + 1) for level in range(len(levels))]
        self.classes: nn.Embedding | None = None
        self.copies: nn.Embedding | None = None

    def codeword_indices(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Return the codeword indices (B, H, W) of each level of the prior. They begin anew at its
        first level, since the coarser levels are conditions.
        """
        indices: list[Tensor] = []
        for level, level_codes in zip(self.levels, codes, strict=True):
            parent = indices[-1] if indices else 0
            indices.append(parent * level.symbols + level_codes)
        return indices

    def make_embeddings(self, hidden: int) -> None:
        """Add the embeddings of positions, classes and copies. Those of copies begin at 0."""
        height, width = self.level.grid
        self.rows = nn.Parameter(torch.randn(height, hidden) * 0.1)
        self.columns = nn.Parameter(torch.randn(width, hidden) * 0.1)
        if self.level.classes:
            labels = self.level.classes + self.level.unconditional  # the last is "no class"
            self.classes = nn.Embedding(labels, hidden)
        if self.level.copies:
            self.copies = nn.Embedding(self.level.copies + 1, hidden, padding_idx=0)
            nn.init.zeros_(self.copies.weight)

    def compute_base(
        self,
        coarser: Sequence[Tensor],
        label: Tensor | None,
        batch: int,
        copies: Tensor | None = None,
    ) -> Tensor:
        """Return the features (B, C, H, W) of position, class, copy and coarser levels: all that
        does not depend on the codes.
        """
        positions = self.rows[:, None] + self.columns[None]
        features = positions.permute(2, 0, 1).expand(batch, -1, -1, -1)
        labels: list[Tensor] = []
        if self.classes is not None:
            labels.append(self.classes(label))
        if self.copies is not None and copies is not None:
            labels.append(self.copies(copies))
        if labels:
            features = features + torch.stack(labels).sum(0)[:, :, None, None]
        return features + self.embed_coarser(coarser) if coarser else features

    def embed_coarser(self, coarser: Sequence[Tensor]) -> Tensor:
        """Return the features (B, C, H, W) of coarser levels, for `compute_base`."""
        raise NotImplementedError

    def image_nats(self, codes: Sequence[Tensor], *conditions: Any) -> Tensor:
        """Return the negative log-likelihood (B,) of each image's codes of all levels, in nats, for
        a training step. `conditions` are the further arguments of `level_logits`.
        """
        return torch.stack(compute_nats(self, codes, *conditions)).sum(0)

    @abstractmethod
    def level_logits(
        self,
        codes: Sequence[Tensor],
        coarser: Sequence[Tensor],
        label: Tensor | None,
        copies: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the logits (B, m_l, H, W) of each level of the prior.

        The logits of a level at a position depend on these codes (B, H, W), and on no others: all
        levels of the prior at earlier positions in raster order, and its coarser levels at the same
        position. `coarser` are the codeword indices of the levels of earlier priors; `label` is
        None without classes. `copies` are the labels of augmented copies, None for images without
        augmentation. Only a network that calls `make_embeddings` has to take them.
        """


@dataclass(frozen=True)
class Priors:
    """The priors of a run."""

    #: priors of all levels, coarse first; in evaluation mode, in float32
    networks: tuple[Prior, ...]
    classes: tuple[str, ...]  #: names of the class labels, empty if there are none
    class_counts: tuple[int, ...]  #: number of training images of each class

    def class_index(self, name: str | int) -> int:
        """Return the index of a class from its name or index. A text of digits is an index if no
        class has this name. Raises InputError if there is no such class.
        """
        if not self.classes:
            raise InputError("the priors know no classes; leave the class out")
        text = str(name)
        if name in self.classes:
            return self.classes.index(text)
        if text.isdecimal() and int(text) < len(self.classes):
            return int(text)
        raise InputError(
            f"class {name!r} is not one of {', '.join(self.classes)} (or"
            f" 0..{len(self.classes) - 1})"
        )


def compute_nats(prior: Prior, codes: Sequence[Tensor], *conditions: Any) -> list[Tensor]:
    """Return the negative log-likelihood (B,) of each image's codes of each level, in nats.

    `conditions` are the further arguments of `Prior.level_logits`.
    """
    level_logits = prior.level_logits(codes, *conditions)
    return [
        cross_entropy(logits.float(), level_codes, reduction="none").sum((1, 2))
        for logits, level_codes in zip(level_logits, codes, strict=True)
    ]


@torch.inference_mode()
def measure_bits(
    prior: Prior, codes: Sequence[Tensor], coarser: Sequence[Tensor], label: Tensor | None
) -> list[float]:
    """Return the total bits of a batch's codes under a prior, for each level of the prior."""
    return [
        float(nats.double().sum()) / math.log(2)
        for nats in compute_nats(prior, codes, coarser, label)
    ]


def build_prior(config: Config, levels: Levels, classes: int) -> Prior:
    """Build the untrained prior of the given levels for images of the configured size, on the CPU,
    in float32.
    """
    model = config.model
    network = config.prior.network
    # without variants, shifted copies have no labels either (docs/method.md)
    copies = config.prior.shifts + config.prior.variants if config.prior.variants else 0
    prior_class = resolve_name(PRIORS.get(network.kind).network)
    unconditional = classes > 0 and config.prior.class_dropout > 0
    return prior_class(
        network,
        *(
            Level(
                grid=model.geometry.grids(*config.data.image_size)[index],
                symbols=model.num_symbols[index],
                coarser=model.num_codewords[:index],
                codewords=model.num_codewords[index],
                classes=classes,
                unconditional=unconditional,
                copies=copies,
            )
            for index in levels
        ),
    )
