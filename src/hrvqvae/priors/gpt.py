"""A transformer over the positions of a grid, with a head for each of its levels (docs/method.md).

Shapes: (B, N, C) features of N = H * W positions in raster order; codes (B, H, W) of each level; E
is `path_units`, the width of the codewords' embeddings.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
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
Attend = Callable[[Tensor], Tensor]  # from queries, keys and values (..., 3C) to (..., C)
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

    def forward(self, features: Tensor, attend: Attend | None = None) -> Tensor:
        """Return features of the same shape. `attend` is a cache's attention at one position;
        without it, all positions attend to themselves and to earlier positions.
        """
        attend = attend or partial(self_attention, heads=self.heads, causal=True)
        added = self.output(attend(self.inputs(self.attention_norm(features))))
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
    """The output that chooses a leaf per position.

    Each codeword of each level has an output vector. The logit of a leaf is the product of the
    features with the sum of the vectors of its codewords, one codeword per level.
    """

    def __init__(self, config: GPTConfig, levels: Sequence[Level]) -> None:
        super().__init__()
        self.symbols = [level.symbols for level in levels]
        counts = list(accumulate(self.symbols, operator.mul))
        self.vectors = nn.ModuleList(nn.Embedding(count, config.hidden_units) for count in counts)
        for table in self.vectors:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, features: Tensor, indices: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits (B, H, W, m) of each level, given the coarser levels of each position.

        The probability of a code is that of all leaves below its codeword. Arguments are the
        features (B, H, W, C) and the codeword indices (B, H, W) of each level.
        """
        logits: list[Tensor] = []
        leaves_below: Tensor | float = 0.0
        tables = [*self.vectors]

        # From the finest level: the logit of a codeword is the logarithm of the summed exponentials
        # of the leaves below it. What the coarser levels add is equal within a codebook.
        for level in reversed(range(len(tables))):
            codewords = (features @ tables[level].weight.T).float() + leaves_below
            codebooks = codewords.unflatten(-1, (-1, self.symbols[level]))
            leaves_below = codebooks.logsumexp(-1)

            # the codebook of the coarser level's codeword
            if level:
                parent = indices[level - 1][..., None, None]
                codebooks = codebooks.take_along_dim(parent, -2)
            logits.append(codebooks.squeeze(-2))
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
    """Embeddings of the codewords of each level.

    A level has at most `most_paths` embeddings. Codewords whose indices are equal modulo
    `most_paths` share an embedding.
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
    """Computes the logits of a transformer position by position.

    It keeps the keys and values of each layer, and a map of the embeddings of all positions, summed
    over the levels. Each of the B images enters the network K times, once per label: R = K * B
    rows.
    """

    def __post_init__(self) -> None:
        prior = self.prior
        batch = len(self.codes[0])
        rows = batch * self.num_labels
        height, width = prior.level.grid
        hidden = prior.config.hidden_units
        units = prior.config.path_units

        # (N, K, B, C); the bias of `left` is added here, once for all positions
        base = prior.compute_base(self.coarser, self.label, rows).flatten(2)
        base = base + prior.left.bias[:, None]
        self.base = base.permute(2, 0, 1).reshape(height * width, -1, batch, hidden)
        self.caches = [
            AttentionCache(rows, hidden, prior.config.heads, height * width, base)
            for _ in prior.layers
        ]
        if isinstance(prior.heads, LeafSums):
            self.leaf_vectors = prior.heads.leaf_vectors().T.contiguous()

        # The map has a margin of zeros: a row above, a column on the left and one on the right.
        self.sum_map = base.new_zeros(batch, height + 1, width + 2, units)
        self.above_weight = prior.above.weight.permute(2, 3, 1, 0).flatten(0, 2)

        # of the current position: the sum of the embeddings of its levels before `next_level`, and
        # the codeword index of the last of these levels
        self.sum = base.new_zeros(batch, units)
        self.index: Tensor | int = 0
        self.next_level = 0

    def start(self, row: int, column: int) -> None:
        prior = self.prior
        position = row * prior.level.grid[1] + column

        # finish the previous position
        if position:
            self._add_codes(len(self.codes))
            last_row, last_column = self.place
            self.sum_map[:, last_row + 1, last_column + 1] = self.sum
        previous_sum = self.sum

        # begin this position
        self.place = (row, column)
        self.sum = torch.zeros_like(previous_sum)
        self.index = 0
        self.next_level = 0
        if column == 0:
            self._start_row(row)

        # the inputs of the first layer: from the positions above, from the previous position, base
        added = torch.addmm(self.above[:, column], previous_sum, prior.left.weight.T)
        features = (self.base[position] + added).flatten(0, 1)
        for layer, cache in zip(prior.layers, self.caches, strict=True):
            features = layer(features, partial(cache.attend, position=position))
        self.features = prior.norm(features).view(*self.base.shape[1:])

    def _start_row(self, row: int) -> None:
        """Compute what each position of a row takes from the three positions above it."""
        # Because of the margin, the row above has the index `row` in the map.
        windows = self.sum_map[:, row].unfold(1, 3, 1)  # (B, W, E, 3)
        flat = windows.transpose(2, 3).flatten(2)  # (B, W, 3 * E), in the order of the weights
        self.above = flat @ self.above_weight

    def _add_codes(self, stop: int) -> None:
        """Add the embeddings of the current position's levels before `stop` to its sum."""
        for level in range(self.next_level, stop):
            code = self.codes[level][:, *self.place]
            self.index = self.index * self.prior.levels[level].symbols + code
            self.sum = self.sum + self.prior.embeddings.look_up(level, self.index)
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
        self.heads: LeafSums | nn.ModuleList
        if config.output == "sums" and leaves <= MOST_LEAVES:
            self.heads = LeafSums(config, levels)
            self.draws = [range(len(levels))]
        else:
            self.heads = nn.ModuleList(Head(config, level.symbols) for level in levels)
        for layer in layers:  # each layer begins by adding only a constant, its biases
            nn.init.zeros_(layer.output.weight)
            nn.init.zeros_(layer.narrow.weight)

    def embed_coarser(self, coarser: Sequence[Tensor]) -> Tensor:
        maps = [
            interpolate(self.coarser.look_up(level, indices).movedim(-1, 1), self.level.grid)
            for level, indices in enumerate(coarser)
        ]
        return self.context(torch.stack(maps).sum(0))

    def compute_features(
        self,
        codes: Sequence[Tensor],
        coarser: Sequence[Tensor],
        label: Tensor | None,
        copies: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the features (B, H, W, C) of each position, and each level's codeword indices
        (B, H, W) and their embeddings (B, H, W, E).
        """
        base = self.compute_base(coarser, label, len(codes[0]), copies).flatten(2).transpose(1, 2)
        indices = self.codeword_indices(codes)
        embedded = [self.embeddings.look_up(*pair) for pair in enumerate(indices)]
        summed = torch.stack(embedded).sum(0)

        # each row sees the row above, and each position the previous one
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
