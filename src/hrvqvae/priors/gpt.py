"""A transformer over the positions of a grid, with a head for each of its levels (docs/method.md).

Shapes: (B, N, C) features of N = H * W positions in raster order; codes (B, H, W) of each level; E
is `path_units`, the width of the codewords' embeddings.
"""

import math
import operator
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, gelu, interpolate, pad
from torch.utils.checkpoint import checkpoint

from hrvqvae.priors.base import Level, LogitSteps, Prior
from hrvqvae.priors.causal import AttentionCache, self_attention
from hrvqvae.priors.configs import GPTConfig

MOST_LEAVES = 16_384  # of a group whose leaves are chosen at once
_CHUNK = 256  # positions whose losses are computed at once


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + two-layer network(norm(x)), with dropout on both added
    terms; x is (B, N, C).
    """

    def __init__(self, hidden: int, heads: int, dropout_share: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout_share = dropout_share
        self.attention_norm = nn.LayerNorm(hidden)
        self.network_norm = nn.LayerNorm(hidden)
        self.inputs = nn.Linear(hidden, 3 * hidden)  # queries, keys, values
        self.output = nn.Linear(hidden, hidden)
        self.widen = nn.Linear(hidden, 4 * hidden)
        self.narrow = nn.Linear(4 * hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        projected = self.inputs(self.attention_norm(features))
        added = self.output(self_attention(projected, self.heads, causal=True))
        features = features + dropout(added, self.dropout_share, self.training)
        added = self.narrow(gelu(self.widen(self.network_norm(features))))
        return features + dropout(added, self.dropout_share, self.training)


class Head(nn.Module):
    """Compute a level's logits from the features of a position and the codewords of the coarser
    levels there.

    features + linear(sum of the embeddings of the coarser levels) -> x
    x + two-layer network(norm(x)) -> norm -> linear -> logits (..., m)
    """

    def __init__(self, config: GPTConfig, symbols: int) -> None:
        super().__init__()
        hidden = config.hidden_units
        self.before = nn.Linear(config.path_units, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.last_norm = nn.LayerNorm(hidden)
        self.widen = nn.Linear(hidden, 2 * hidden)
        self.narrow = nn.Linear(2 * hidden, hidden)
        self.output = nn.Linear(hidden, symbols)
        self.dropout_share = config.dropout

    def forward(self, features: Tensor, coarser_sum: Tensor) -> Tensor:
        """Return logits (..., m) from features (..., C) and the sum of the coarser levels'
        embeddings (..., E).
        """
        x = features + self.before(coarser_sum)
        added = self.narrow(gelu(self.widen(self.norm(x))))
        return self.output(self.last_norm(x + dropout(added, self.dropout_share, self.training)))


class LeafSums(nn.Module):
    """The output that chooses a leaf per position. The logit of a leaf is the sum, over its
    codewords of all levels, of the products of features and the codeword's output vector.
    """

    def __init__(self, config: GPTConfig, levels: Sequence[Level]) -> None:
        super().__init__()
        self.symbols = [level.symbols for level in levels]
        counts = list(accumulate(self.symbols, operator.mul))
        self.vectors = nn.ModuleList(nn.Embedding(count, config.hidden_units) for count in counts)
        for table in self.vectors:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, features: Tensor, indices: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits (B, H, W, m) of each level from features (B, H, W, C) and the codeword
        indices (B, H, W) of each level.

        They are marginals: a codeword's logit is its own, and the logarithm of the sum over the
        leaves below it.
        """
        logits: list[Tensor] = []
        below: Tensor | None = None
        tables = [*self.vectors]
        for level in reversed(range(len(tables))):
            own = (features @ tables[level].weight.T).float()
            own = own if below is None else own + below
            siblings = own.unflatten(-1, (-1, self.symbols[level]))
            below = siblings.logsumexp(-1)
            if level:
                parent = indices[level - 1][..., None, None]
                siblings = siblings.take_along_dim(parent, -2)
            logits.append(siblings.squeeze(-2))
        return logits[::-1]

    def nats(self, features: Tensor, leaves: Tensor) -> Tensor:
        """Return the negative log-likelihood (N,) of leaves (N,) from features (N, C), in nats."""
        vectors = self.leaf_vectors()

        # the logits of a chunk stay in the processor's cache: the backward pass computes them again
        chunks = zip(torch.split(features, _CHUNK), torch.split(leaves, _CHUNK), strict=True)
        nats = [
            checkpoint(_leaf_nats, part, vectors, targets, use_reentrant=False)
            for part, targets in chunks
        ]
        return torch.cat(nats)

    def leaf_vectors(self) -> Tensor:
        """Return the sums (n, C) of the output vectors of each leaf's codewords."""
        first, *others = (table.get_parameter("weight") for table in self.vectors)
        summed: Tensor = first
        for table, symbols in zip(others, self.symbols[1:], strict=True):
            summed = summed.repeat_interleave(symbols, 0) + table
        return summed


def _leaf_nats(features: Tensor, vectors: Tensor, leaves: Tensor) -> Tensor:
    logits = features @ vectors.T
    return cross_entropy(logits.float(), leaves, reduction="none")


class CodewordEmbeddings(nn.Module):
    """An embedding per codeword of each level. Codewords whose indices are equal modulo
    `most_paths` share one. Indices begin anew at each group of linked levels. A prior begins with a
    group, so its own codes give the model's indices.
    """

    def __init__(self, config: GPTConfig, codewords: Sequence[int]) -> None:
        super().__init__()
        self.sizes = [min(count, config.most_paths) for count in codewords]
        self.tables = nn.ModuleList(nn.Embedding(size, config.path_units) for size in self.sizes)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.1)  # type: ignore[arg-type]

    def look_up(self, level: int, indices: Tensor) -> Tensor:
        """Return the embeddings (..., E) of the codeword indices (...) of a level, counted from
        0.
        """
        return self.tables[level](indices % self.sizes[level])


class CachedSteps(LogitSteps):
    """Computes the logits of a transformer position by position, with kept keys, values and sums.

    Each of the B images enters the network K times, once per label: R = K * B rows.
    """

    def __post_init__(self) -> None:
        prior = self.prior
        batch = len(self.codes[0])
        rows = batch * self.num_labels
        height, width = prior.level.grid
        hidden = prior.config.hidden_units
        units = prior.config.path_units

        # (N, K, B, C): a position at a time, with the bias that `start` leaves out
        base = prior.compute_base(self.coarser, self.label, rows).flatten(2)
        base = base + prior.left.bias[:, None]
        self.base = base.permute(2, 0, 1).reshape(height * width, -1, batch, hidden)
        self.caches = [
            AttentionCache(rows, hidden, prior.config.heads, height * width, base)
            for _ in prior.layers
        ]

        # the sums of the embeddings of all levels at earlier positions, with a margin above, left
        # and right; and the sum at `place`, of the levels that are drawn so far
        self.sum_map = base.new_zeros(batch, height + 1, width + 2, units)
        self.sum = base.new_zeros(batch, units)
        if isinstance(prior.heads, LeafSums):
            self.leaf_vectors = prior.heads.leaf_vectors().T.contiguous()
        self.above_weight = prior.above.weight.permute(2, 3, 1, 0).flatten(0, 2)
        self.indices = torch.zeros_like(self.codes[0][:, 0, 0])
        self.next_level = 0

    def start(self, row: int, column: int) -> None:
        prior = self.prior
        position = row * prior.level.grid[1] + column

        # the previous position is complete
        if position:
            self._add_codes(len(self.codes))
            last_row, last_column = self.place
            self.sum_map[:, last_row + 1, last_column + 1] = self.sum
        super().start(row, column)
        self.next_level = 0

        # the inputs from the row above, for a whole row at once: windows (B, W, 3 * E) of three
        # upper neighbours; with the margin, the row above has the index `row`
        if column == 0:
            windows = self.sum_map[:, row].unfold(1, 3, 1).transpose(2, 3).flatten(2)
            self.above = windows @ self.above_weight

        # the input from the position before
        previous_sum = self.sum
        self.sum = torch.zeros_like(previous_sum)
        added = torch.addmm(self.above[:, column], previous_sum, prior.left.weight.T)
        features = (self.base[position] + added).flatten(0, 1)

        for layer, cache in zip(prior.layers, self.caches, strict=True):
            attended = cache.attend(layer.inputs(layer.attention_norm(features)), position)
            features = features + layer.output(attended)
            features = features + layer.narrow(gelu(layer.widen(layer.network_norm(features))))
        self.features = prior.norm(features).view(*self.base.shape[1:])

    def _add_codes(self, stop: int) -> None:
        """Add the embeddings of the codes at `place` to the sum, up to the level `stop`."""
        for index in range(self.next_level, stop):
            level = self.prior.levels[index]
            codes = self.codes[index][:, *self.place]
            self.indices = self.indices * level.symbols + codes if index else codes
            self.sum = self.sum + self.prior.embeddings.look_up(index, self.indices)
        self.next_level = stop

    def logits(self, level: int) -> Tensor:
        if isinstance(self.prior.heads, LeafSums):
            return self.mix(self.features) @ self.leaf_vectors
        self._add_codes(level)
        return self.mix(self.prior.heads[level](self.features, self.sum))


class GPT(Prior):
    """A transformer over positions, with a head for each level of a position.

    levels of earlier priors -> embeddings -> two convolutions (not causal) --+
    row, column, class, copy -> embeddings -----------------------------------+-> base (B, N, C)

    embeddings of this prior's levels, summed
        -> linear, of the position before in raster order --+
        -> convolution, of three positions above -----------+-> + base
        -> [attention, two-layer network] x layers -> norm -> features (B, N, C)

    features, embeddings of this prior's coarser levels there -> head -> logits (B, m_l, H, W)
    """

    config: GPTConfig
    steps = CachedSteps

    def __init__(self, config: GPTConfig, *levels: Level) -> None:
        super().__init__(config, *levels)
        hidden = config.hidden_units
        units = config.path_units
        # a level without `codewords` has one codebook
        sizes = [level.codewords or level.symbols for level in levels]
        self.embeddings = CodewordEmbeddings(config, sizes)
        self.left = nn.Linear(units, hidden)
        self.above = nn.Conv2d(units, hidden, (1, 3), padding=(0, 1), bias=False)
        self.make_embeddings(hidden)
        if self.level.coarser:
            self.coarser = CodewordEmbeddings(config, self.level.coarser)
            self.context = nn.Sequential(
                nn.Conv2d(units, hidden, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(hidden, hidden, 3, padding=1),
            )
        layers = [
            TransformerLayer(hidden, config.heads, config.dropout) for _ in range(config.layers)
        ]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(hidden)
        leaves = math.prod(level.symbols for level in levels)
        is_summed = config.output == "sums" and leaves <= MOST_LEAVES
        heads = (Head(config, level.symbols) for level in levels)
        self.heads = LeafSums(config, levels) if is_summed else nn.ModuleList(heads)
        for layer in layers:  # each layer begins by adding only a constant, its biases
            nn.init.zeros_(layer.output.weight)
            nn.init.zeros_(layer.narrow.weight)

    @property
    def draws(self) -> tuple[range, ...]:
        if isinstance(self.heads, LeafSums):
            return (range(len(self.levels)),)
        return super().draws

    def fill_missing(self, weights: dict[str, Tensor]) -> list[str]:
        """Also add the output if the weights have another kind of output."""
        parts = super().fill_missing(weights)
        stored = {name for name in weights if name.startswith("heads.")}
        own = {f"heads.{name}": tensor for name, tensor in self.heads.state_dict().items()}
        if stored != own.keys():
            for name in stored:
                del weights[name]
            weights |= own
            parts.append("its output anew")
        return parts

    def embed_coarser(self, coarser: Sequence[Tensor]) -> Tensor:
        maps = [
            interpolate(self.coarser.look_up(level, indices).movedim(-1, 1), self.level.grid)
            for level, indices in enumerate(coarser)
        ]
        return self.context(torch.stack(maps).sum(0))

    def compute_features(
        self, codes: Sequence[Tensor], *conditions: Any
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the features (B, H, W, C) of each position, and each level's codeword indices
        (B, H, W) and their embeddings (B, H, W, E).
        """
        coarser, label, *copies = conditions
        base = self.compute_base(coarser, label, len(codes[0]), *copies).flatten(2).transpose(1, 2)
        indices = self.codeword_indices(codes)
        embedded = [self.embeddings.look_up(*pair) for pair in enumerate(indices)]
        summed = torch.stack(embedded).sum(0)

        # each row sees the row above, and each position the one before
        shifted_rows = pad(summed.movedim(-1, 1), (0, 0, 1, -1))
        shifted = pad(summed.flatten(1, 2), (0, 0, 1, -1))
        above = self.above(shifted_rows).flatten(2).transpose(1, 2)
        features = self.left(shifted) + above + base
        for layer in self.layers:
            features = layer(features)
        return self.norm(features).unflatten(1, self.level.grid), indices, embedded

    def level_logits(self, codes: Sequence[Tensor], *conditions: Any) -> tuple[Tensor, ...]:
        features, indices, embedded = self.compute_features(codes, *conditions)
        if isinstance(self.heads, LeafSums):
            logits = self.heads(features, indices)
        else:
            coarser_sums = [torch.zeros_like(embedded[0]), *accumulate(embedded[:-1])]
            pairs = zip(self.heads, coarser_sums, strict=True)
            logits = [head(features, coarser_sum) for head, coarser_sum in pairs]
        return tuple(level_logits.movedim(-1, 1) for level_logits in logits)

    def image_nats(self, codes: Sequence[Tensor], *conditions: Any) -> Tensor:
        if not isinstance(self.heads, LeafSums):
            return super().image_nats(codes, *conditions)
        features, indices, _ = self.compute_features(codes, *conditions)
        nats = self.heads.nats(features.flatten(0, 2), indices[-1].flatten())
        return nats.view(len(features), -1).sum(1)
