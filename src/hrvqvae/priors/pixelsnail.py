"""PixelSNAIL, a prior for a single level (docs/paper-tables.md, Tables 8 and 9; Chen et al. 2018).

Shapes: (B, C, H, W) features, C hidden units; codes (B, H, W); R gated residual blocks, A attention
    layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, glu, interpolate, linear

from hrvqvae.config import at_level
from hrvqvae.models.blocks import ResidualStack
from hrvqvae.priors.base import Level, LogitSteps, Prior
from hrvqvae.priors.causal import (
    Attention,
    AttentionCache,
    CausalConv2d,
    ConvolutionCache,
    GatedResidualBlock,
)
from hrvqvae.priors.configs import PixelSNAILConfig


class CachedSteps(LogitSteps):
    """Computes the logits of PixelSNAIL position by position, with kept inputs, keys and values.

    Each of the B images enters the network K times, once per label: R = K * B rows.
    """

    def __post_init__(self) -> None:
        prior = self.prior
        grid = prior.level.grid
        batch = len(self.codes[0])
        rows = batch * self.num_labels
        hidden = prior.config.hidden_units

        # what does not depend on the codes: (H, W, K, B, C), and per block (H, W, R, 2C)
        base = prior.compute_base(self.coarser, self.label, rows)
        self.base = base.permute(2, 3, 0, 1).reshape(*grid, -1, batch, hidden)
        conditions = prior.conditions(base).permute(2, 3, 0, 1)

        blocks: list[Any] = list(prior.blocks)
        self.first = ConvolutionCache(prior.first, batch, grid)
        self.convolutions = [ConvolutionCache(block.spatial, rows, grid) for block in blocks]
        self.pointwise = [block.pointwise.weight[:, :, 0, 0].T for block in blocks]
        self.block_conditions = [
            condition + block.pointwise.bias
            for block, condition in zip(blocks, conditions.chunk(len(blocks), -1), strict=True)
        ]
        self.attentions: dict[int, Any] = prior.attention_after
        heads = prior.config.attention_heads
        self.caches = {
            after: AttentionCache(rows, hidden, heads, grid[0] * grid[1], base)
            for after in self.attentions
        }

    def start(self, row: int, column: int) -> None:
        self.place = (row, column)
        prior = self.prior
        width = prior.level.grid[1]
        position = row * width + column

        # the code of the previous position is complete
        if position:
            last_row, last_column = divmod(position - 1, width)
            embedded = prior.embedding(self.codes[0][:, last_row, last_column])
            self.first.write(last_row, last_column, embedded)
        if column == 0:
            for convolution in (self.first, *self.convolutions):
                convolution.start_row(row)

        features = (self.base[row, column] + self.first.compute(row, column)).flatten(0, 1)
        for index, convolution in enumerate(self.convolutions):
            convolution.write(row, column, elu(features))
            inner = elu(convolution.compute(row, column))
            condition = self.block_conditions[index][row, column]
            features = features + glu(torch.addmm(condition, inner, self.pointwise[index]))
            if index + 1 in self.attentions:
                attention = self.attentions[index + 1]
                inputs = attention.inputs(attention.norm(features))
                attended = self.caches[index + 1].attend(inputs, position)
                features = features + attention.output(attended)
        self.features = features

    def logits(self, level: int) -> Tensor:
        head = self.prior.head
        logits = linear(elu(self.features), head.weight[:, :, 0, 0], head.bias)
        return self.mix(logits.view(self.num_labels, -1, logits.shape[1]))


class PixelSNAIL(Prior):
    """Causal convolutions, gated residual blocks and causal attention, conditioned on coarser
    levels and class.

        coarser levels -> embeddings -> conv, residual stack, attention (not causal) --+
        row, column, class, copy -> embeddings ----------------------------------------+-> base
        base (B, C, H, W) -> 1x1 conv -> a condition per block

        codes -> embedding -> strict causal conv -> + base
              -> [gated residual blocks, attention after every R / A blocks]
              -> elu -> 1x1 conv -> logits (B, m, H, W)

    With 0 attention layers, there is no attention over the coarser levels either. The paper states
    neither the number of blocks between two attention layers nor the normalization. Here layer
    normalization precedes each attention, and there is no weight normalization.
    """

    config: PixelSNAILConfig
    steps = CachedSteps

    def __init__(self, config: PixelSNAILConfig, level: Level) -> None:
        super().__init__(config, level)
        hidden = config.hidden_units
        self.embedding = nn.Embedding(level.symbols, hidden)
        self.make_embeddings(hidden)
        attentions = at_level(config.attention_layers, level.index)
        heads = config.attention_heads
        self.coarser = nn.ModuleList(nn.Embedding(codewords, hidden) for codewords in level.coarser)
        if level.coarser:
            self.context = nn.Sequential(
                nn.Conv2d(hidden, hidden, 3, padding=1),
                ResidualStack(hidden, config.residual_units, 3, 2),
                *([Attention(hidden, heads, causal=False)] if attentions else []),
                nn.Conv2d(hidden, hidden, 1),
            )
        self.conditions = nn.Conv2d(hidden, config.residual_blocks * 2 * hidden, 1)
        self.first = CausalConv2d(hidden, hidden, config.kernel, strict=True)
        sizes = (
            hidden,
            config.residual_units,
            config.kernel,
            at_level(config.dropout, level.index),
        )
        self.blocks = nn.ModuleList(
            GatedResidualBlock(*sizes) for _ in range(config.residual_blocks)
        )
        self.attentions = nn.ModuleList(
            Attention(hidden, heads, causal=True) for _ in range(attentions)
        )
        self.head = nn.Conv2d(hidden, level.symbols, 1)

        # by the number of blocks before them; the last follows all blocks
        self.attention_after = {
            round(number * config.residual_blocks / attentions): attention
            for number, attention in enumerate(self.attentions, start=1)
        }

    def embed_coarser(self, coarser: Sequence[Tensor]) -> Tensor:
        maps = [
            interpolate(embedding(indices).movedim(-1, 1), self.level.grid)
            for embedding, indices in zip(self.coarser, coarser, strict=True)
        ]
        return self.context(sum(maps[1:], maps[0]))

    def level_logits(
        self,
        codes: Sequence[Tensor],
        coarser: Sequence[Tensor],
        label: Tensor | None,
        copies: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        base = self.compute_base(coarser, label, len(codes[0]), copies)
        features = self.first(self.embedding(codes[0]).movedim(-1, 1)) + base
        conditions = self.conditions(base).chunk(len(self.blocks), dim=1)
        for index, (block, condition) in enumerate(
            zip(self.blocks, conditions, strict=True), start=1
        ):
            features = block(features, condition)
            if index in self.attention_after:
                features = self.attention_after[index](features)
        return (self.head(elu(features)),)
