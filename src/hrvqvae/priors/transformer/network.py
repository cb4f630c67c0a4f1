"""A GPT-like prior of one level (docs/method.md; Esser et al. 2021, section 3.2).

Shapes: N = H * W positions in raster order, (B, N, C) features, C hidden units; codes (B, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, pad

from hrvqvae.priors.base import Level, LevelPrior
from hrvqvae.priors.causal import attend, cheap_dropout
from hrvqvae.priors.transformer.config import TransformerConfig


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + two-layer network(norm(x)); dropout on what is added. Shape (B, N, C) kept."""

    def __init__(self, hidden: int, heads: int, dropped: float) -> None:
        super().__init__()
        self.heads, self.dropped = heads, dropped
        self.attention_norm, self.network_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.inputs = nn.Linear(hidden, 3 * hidden)  # queries, keys, values
        self.output = nn.Linear(hidden, hidden)
        self.widen, self.narrow = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def split(self, three: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, 3C) -> queries, keys, values, each (B, heads, N, C / heads)."""
        batch, number, width = three.shape
        parts = three.view(batch, number, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1], parts[2]

    def network(self, features: Tensor) -> Tensor:
        """The second half's network, without what it is added to."""
        added: Tensor = self.narrow(gelu(self.widen(self.network_norm(features))))
        return added

    def forward(self, features: Tensor) -> Tensor:
        attended = attend(*self.split(self.inputs(self.attention_norm(features))), causal=True)
        added = self.output(attended.transpose(1, 2).reshape(features.shape))
        features = features + cheap_dropout(added, self.dropped, self.training)
        return features + cheap_dropout(self.network(features), self.dropped, self.training)


class Transformer(LevelPrior):
    """Causal attention over the codes before each position, and the class and coarser levels there are.

    row, column, class, coarser paths -> embeddings -> base (B, N, C)
        code before each position (a start symbol for the first) -> embedding, + base
        -> [attention, two-layer network] x layers -> norm -> logits (B, m, H, W)
    """

    def __init__(self, config: TransformerConfig, level: Level, index: int) -> None:
        """A network of the same form for every level; `index` (0 is the coarsest) does not matter."""
        super().__init__(config, level)
        self.config: TransformerConfig = config
        hidden, (height, width) = config.hidden_units, level.grid
        self.embedding = nn.Embedding(level.symbols + 1, hidden)  # the last is the start symbol
        self.rows = nn.Parameter(torch.randn(height, hidden) * 0.1)
        self.columns = nn.Parameter(torch.randn(width, hidden) * 0.1)
        self.classes = nn.Embedding(level.labels, hidden) if level.classes else None
        self.coarser = nn.ModuleList(nn.Embedding(codewords, hidden) for codewords in level.coarser)
        self.layers = nn.ModuleList(
            TransformerLayer(hidden, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, level.symbols)

    def base(self, coarser: Sequence[Tensor], label: Tensor | None, batch: int) -> Tensor:
        """What does not depend on the codes, (B, N, C): place, class, coarser levels. Raises as `logits` does."""
        self.level.check(coarser, label)
        place = (self.rows[:, None] + self.columns[None]).flatten(0, 1)
        features = place.expand(batch, -1, -1)
        if self.classes is not None:
            features = features + self.classes(label)[:, None]
        for embedding, paths in zip(self.coarser, coarser, strict=True):
            seen = interpolate(embedding(paths).permute(0, 3, 1, 2), self.level.grid)
            features = features + seen.flatten(2).transpose(1, 2)
        return features

    def logits(self, codes: Tensor, coarser: Sequence[Tensor], label: Tensor | None) -> Tensor:
        before = pad(codes.flatten(1)[:, :-1], (1, 0), value=self.level.symbols)
        features = self.base(coarser, label, len(codes)) + self.embedding(before)
        for layer in self.layers:
            features = layer(features)
        output: Tensor = self.head(self.norm(features))
        return output.transpose(1, 2).reshape(len(codes), self.level.symbols, *self.level.grid)
