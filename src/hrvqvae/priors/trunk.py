"""PixelSNAIL's trunk (docs/paper-tables.md, Tables 8 and 9; Chen et al. 2018).

Shapes: (B, C, H, W) features, C hidden units; R gated residual blocks, A attention layers.
"""

from __future__ import annotations

from torch import Tensor, nn

from hrvqvae.priors.causal import Attention, CausalConv2d, GatedResidualBlock
from hrvqvae.priors.trunk_config import TrunkConfig


class Trunk(nn.Module):
    """Causal convolutions, gated residual blocks and causal attention. A base class: its layers are the network's own.

        embedded codes -> strict causal conv, + base
              -> [gated residual blocks with a condition each, attention after every R / A of them] -> features

    The features of a position know the codes before it in raster order. A code at the end of a row is seen from where
    the next row's convolution reaches it.
    """

    conditions: nn.Conv2d
    first: CausalConv2d
    blocks: nn.ModuleList
    attentions: nn.ModuleList

    def make_trunk(self, config: TrunkConfig, attentions: int, dropped: float) -> None:
        """Make its layers, with so many of attention, and that share of dropout."""
        hidden, heads = config.hidden_units, config.attention_heads
        self.conditions = nn.Conv2d(hidden, config.residual_blocks * 2 * hidden, 1)
        self.first = CausalConv2d(hidden, hidden, config.kernel, strict=True)
        self.blocks = nn.ModuleList(
            GatedResidualBlock(hidden, config.residual_units, config.kernel, dropped)
            for _ in range(config.residual_blocks)
        )
        self.attentions = nn.ModuleList(Attention(hidden, heads, causal=True) for _ in range(attentions))

    @property
    def attention_after(self) -> tuple[int, ...]:
        """Residual blocks that each attention layer comes after: spread evenly, the last after the last block."""
        count = len(self.attentions)
        return tuple(round((layer + 1) * len(self.blocks) / count) for layer in range(count))

    def features(self, embedded: Tensor, base: Tensor, conditions: Tensor) -> Tensor:
        """(B, C, H, W).

        Args:
            embedded: (B, C, H, W), of the code at each position.
            base: what does not depend on the codes, (B, C, H, W).
            conditions: of all blocks, (B, R * 2C, H, W): what `self.conditions` makes of the base.
        """
        features: Tensor = self.first(embedded) + base
        after = self.attention_after
        each = conditions.chunk(len(self.blocks), dim=1)
        for number, (block, condition) in enumerate(zip(self.blocks, each, strict=True), start=1):
            features = block(features, condition)
            if number in after:
                features = self.attentions[after.index(number)](features)
        return features
