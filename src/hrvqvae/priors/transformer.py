"""A GPT-like prior of one level (docs/method.md; Esser et al. 2021, section 3.2).

Shapes: N = H * W positions in raster order, (B, N, C) features, C hidden units; codes (B, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, pad

from hrvqvae.priors.base import Level, LevelPrior
from hrvqvae.priors.causal import attend, cheap_dropout
from hrvqvae.priors.configs import TransformerConfig
from hrvqvae.priors.sampling import NO_CODE, SamplingParams, draw_code, guidance_of, no_distribution


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


def place_and_class(prior: Any, label: Tensor | None, batch: int) -> Tensor:
    """The embeddings of row, column and, where there are classes, of the label (B,): (B, N, C)."""
    place: Tensor = (prior.rows[:, None] + prior.columns[None]).flatten(0, 1)
    features = place.expand(batch, -1, -1)
    return features if prior.classes is None else features + prior.classes(label)[:, None]


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
        features = place_and_class(self, label, batch)
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


def advance(layer: TransformerLayer, features: Tensor, keys: Tensor, values: Tensor, place: int) -> Tensor:
    """One layer at one position: features (B, 1, C); keys, values (B, heads, N, C / heads) get the position's own."""
    queries, key, value = layer.split(layer.inputs(layer.attention_norm(features)))
    keys[:, :, place], values[:, :, place] = key[:, :, 0], value[:, :, 0]
    scores = queries @ keys[:, :, : place + 1].transpose(-1, -2) * queries.shape[-1] ** -0.5
    attended = scores.softmax(-1) @ values[:, :, : place + 1]
    features = features + layer.output(attended.transpose(1, 2).reshape(features.shape))
    return features + layer.network(features)


@torch.inference_mode()
def sample_transformer(
    prior: Transformer, codes: Sequence[Tensor], known: Sequence[Tensor], coarser: Sequence[Tensor],
    label: Tensor | None, uniforms: Sequence[Tensor], params: SamplingParams,
) -> None:  # fmt: skip
    """Fill in the codes that are not known, in raster order; arguments as `plain.sample_plain`."""
    batch, hidden, heads = len(codes[0]), prior.config.hidden_units, prior.config.heads
    guidance = guidance_of(prior.level, label, params)
    base = prior.base([guidance.each(paths) for paths in coarser], guidance.label, batch * len(guidance.weights))
    seen, number, _ = base.shape
    layers = [layer for layer in prior.layers if isinstance(layer, TransformerLayer)]
    keys = torch.zeros(len(layers), seen, heads, number, hidden // heads)
    values = torch.zeros_like(keys)
    flat, given, drawn = (only.view(batch, -1) for (only,) in (codes, known, uniforms))
    before = torch.full((seen,), prior.level.symbols)
    for place in range(number):
        features = (base[:, place] + prior.embedding(before))[:, None]
        for index, layer in enumerate(layers):
            features = advance(layer, features, keys[index], values[index], place)
        if not given[:, place].all():
            logits = guidance.mixed(prior.head(prior.norm(features[:, 0]))).numpy()
            for image in range(batch):
                if not given[image, place]:
                    code = draw_code(logits[image], float(drawn[image, place]), *params.values())
                    if code == NO_CODE:
                        raise no_distribution(prior.level.number, *divmod(place, prior.level.grid[1]))
                    flat[image, place] = code
        before = guidance.each(flat[:, place])
