"""One prior for all levels of a grid (docs/method.md; Lee et al. 2022, section 3.2, with PixelSNAIL's trunk).

Shapes: (B, C, H, W) features, C hidden units; D levels, of codes (B, H, W) each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from hrvqvae.config import PriorNetworkConfig
from hrvqvae.priors.base import Level, Prior
from hrvqvae.priors.causal import cheap_dropout
from hrvqvae.priors.configs import DepthConfig
from hrvqvae.priors.pixelsnail import Trunk


class DepthHead(nn.Module):
    """The distribution of one level's code at a position, from the trunk there and the paths of the levels before it.

        features + embeddings of the paths -> x
        x + a * sigmoid(b), (a, b) = conv1x1(dropout(elu(conv1x1(elu(x))))) -> elu -> conv1x1 -> logits (B, m, H, W)

    Args:
        before: codewords of each level before it.
    """

    def __init__(self, config: DepthConfig, before: Sequence[int], symbols: int) -> None:
        super().__init__()
        hidden, inner = config.hidden_units, config.head_units
        self.paths = nn.ModuleList(nn.Embedding(codewords, hidden) for codewords in before)
        self.narrow, self.widen = nn.Conv2d(hidden, inner, 1), nn.Conv2d(inner, 2 * hidden, 1)
        self.output = nn.Conv2d(hidden, symbols, 1)
        self.dropped = config.dropout

    @property
    def embeddings(self) -> list[nn.Embedding]:
        """Of the paths of each level before it."""
        return [one for one in self.paths if isinstance(one, nn.Embedding)]

    def forward(self, features: Tensor, paths: Sequence[Tensor]) -> Tensor:
        """(B, C, H, W) and the paths (B, H, W) of the levels before -> (B, m, H, W)."""
        for embedding, path in zip(self.embeddings, paths, strict=True):
            features = features + embedding(path).permute(0, 3, 1, 2)
        inner = cheap_dropout(elu(self.narrow(elu(features))), self.dropped, self.training)
        value, gate = self.widen(inner).chunk(2, dim=1)
        logits: Tensor = self.output(elu(features + value * gate.sigmoid()))
        return logits


class DepthPrior(Prior, Trunk):
    """A trunk over the positions before, and a head for each level at the position.

        row, column, class -> embeddings -> base (B, C, H, W)
        paths of all levels -> sum of their embeddings -> trunk (`trunk.Trunk`) -> features (B, C, H, W)
        features, paths of the levels before at the position -> head of each level -> logits (B, m_l, H, W)

    A level's path is the number of the codeword among all of its level: of linked codebooks it grows from the parent's
    path, and elsewhere it is the code (`Level.linked`).
    """

    def __init__(self, config: DepthConfig, *levels: Level) -> None:
        """A network of all these levels, the first of which is the coarsest there is."""
        super().__init__(config, *levels)
        self.config: DepthConfig = config
        hidden, (height, width) = config.hidden_units, self.level.grid
        self.codewords = tuple(level.codewords or level.symbols for level in levels)
        self.embeddings = nn.ModuleList(nn.Embedding(codewords, hidden) for codewords in self.codewords)
        self.rows = nn.Parameter(torch.randn(height, hidden) * 0.1)
        self.columns = nn.Parameter(torch.randn(width, hidden) * 0.1)
        self.classes = nn.Embedding(self.level.labels, hidden) if self.level.classes else None
        self.make_trunk(config, config.attention_layers, config.dropout)
        self.heads = nn.ModuleList(
            DepthHead(config, self.codewords[:index], level.symbols) for index, level in enumerate(levels)
        )

    @classmethod
    def of_levels(cls, config: PriorNetworkConfig, levels: Sequence[Level], index: int) -> Self:
        assert isinstance(config, DepthConfig)
        return cls(config, *levels)

    def base(self, coarser: Sequence[Tensor], label: Tensor | None, batch: int) -> Tensor:
        """What does not depend on the codes, (B, C, H, W): place, class. Raises as `level_logits` does."""
        self.level.check(coarser, label)
        place = self.rows[:, None] + self.columns[None]
        features = place.permute(2, 0, 1).expand(batch, -1, -1, -1)
        if self.classes is not None:
            features = features + self.classes(label)[:, :, None, None]
        return features

    def level_logits(
        self, codes: Sequence[Tensor], coarser: Sequence[Tensor], label: Tensor | None
    ) -> tuple[Tensor, ...]:
        base, paths = self.base(coarser, label, len(codes[0])), self.paths(codes)
        embedded = torch.zeros((), device=base.device)
        for embedding, path in zip(self.embeddings, paths, strict=True):
            embedded = embedded + embedding(path)
        features = self.features(embedded.permute(0, 3, 1, 2), base, self.conditions(base))
        return tuple(head(features, paths[:index]) for index, head in enumerate(self.heads))
