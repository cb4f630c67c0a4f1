"""Blocks of autoregressive networks: causal convolutions, gated residual blocks, attention.

Shapes: (B, C, H, W) features. The output of a causal layer at a position depends on no later
position in raster order. Caches hold R rows (`rows`), the inputs of a sampler's batch: (R, C) at
one position. `row` and `column` are those of the grid.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, dropout, elu, pad, scaled_dot_product_attention


class CausalConv2d(nn.Module):
    """A causal convolution. Only the causal part of its k x k filter is stored, so the filter needs
    no mask.

        above  (out, in, k // 2, k)
        left   (out, in, 1, k // 2 + 1), if strict (out, in, 1, k // 2)

    Args:
        strict: exclude the position itself, as a first layer must (mask "A" of van den Oord et al.
            2016).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, strict: bool = False) -> None:
        super().__init__()
        self.reach = kernel // 2
        across = self.reach + (0 if strict else 1)
        bound = 1 / math.sqrt(inputs * (self.reach * kernel + across))
        self.above = nn.Parameter(
            torch.empty(outputs, inputs, self.reach, kernel).uniform_(-bound, bound)
        )
        self.left = nn.Parameter(torch.empty(outputs, inputs, 1, across).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        reach = self.reach
        missing = self.above.shape[3] - self.left.shape[3]  # columns to the right: weights of 0
        kernel = torch.cat([self.above, pad(self.left, (0, missing))], dim=2)
        return conv2d(pad(features, (reach, reach, reach, 0)), kernel, self.bias)


class GatedResidualBlock(nn.Module):
    """A block x + a * sigmoid(b), where (a, b) = conv1x1(dropout(elu(causal conv(elu(x))))) +
    condition.
    """

    def __init__(self, hidden: int, inner: int, kernel: int, dropout_share: float) -> None:
        super().__init__()
        self.spatial = CausalConv2d(hidden, inner, kernel)
        self.pointwise = nn.Conv2d(inner, 2 * hidden, 1)
        self.dropout_share = dropout_share

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map features (B, hidden, H, W) to the same shape; the condition is (B, 2 * hidden, H,
        W).
        """
        inner = dropout(elu(self.spatial(elu(features))), self.dropout_share, self.training)
        value, gate = (self.pointwise(inner) + condition).chunk(2, dim=1)
        return features + value * gate.sigmoid()


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
    """Return softmax(queries keys^T / sqrt(d)) values; arguments and result are (B, heads, N, d).

    With `causal`, a position attends to itself and to earlier positions.
    """
    # for narrow heads on a CPU, bfloat16 takes two to four times as long as float32
    dtype = queries.dtype
    wide = dtype if queries.is_cuda else torch.promote_types(dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        attended = scaled_dot_product_attention(
            queries.to(wide), keys.to(wide), values.to(wide), is_causal=causal
        )
    return attended.to(dtype)


def self_attention(projected: Tensor, heads: int, *, causal: bool) -> Tensor:
    """Split concatenated queries, keys and values (B, N, 3C) into heads, and return their attention
    (B, N, C).
    """
    split = projected.view(*projected.shape[:2], 3, heads, -1)
    queries, keys, values = split.permute(2, 0, 3, 1, 4)
    return attend(queries, keys, values, causal=causal).transpose(1, 2).flatten(2)


class AttentionCache:
    """Causal self-attention, computed position by position; keys and values are kept."""

    def __init__(self, rows: int, hidden: int, heads: int, positions: int, like: Tensor) -> None:
        shape = (rows, heads, positions, hidden // heads)
        self.keys = like.new_empty(shape)
        self.values = like.new_empty(shape)

    def attend(self, projected: Tensor, position: int) -> Tensor:
        """Return the attention (R, C) of a position from its queries, keys and values (R, 3C)."""
        rows, heads, _, width = self.keys.shape
        query, key, value = projected.view(rows, 3, heads, 1, width).unbind(1)
        stop = position + 1
        self.keys[:, :, position:stop] = key
        self.values[:, :, position:stop] = value
        keys = self.keys[:, :, :stop]
        values = self.values[:, :, :stop]
        return scaled_dot_product_attention(query, keys, values).flatten(1)


class ConvolutionCache:
    """A causal convolution, computed position by position; its inputs are kept."""

    def __init__(self, convolution: CausalConv2d, rows: int, grid: tuple[int, int]) -> None:
        reach = convolution.reach
        height, width = grid
        inputs = convolution.above.shape[1]
        self.reach = reach
        self.left_taps = convolution.left.shape[3]
        self.bias = convolution.bias
        self.above_weight = convolution.above.permute(2, 3, 1, 0).flatten(0, 2)
        self.left_weight = convolution.left.permute(2, 3, 1, 0).flatten(0, 2)
        self.inputs = self.bias.new_zeros(rows, height + reach, width + 2 * reach, inputs)

    def start_row(self, row: int) -> None:
        """Compute what a row takes from the rows above, for all its positions at once."""
        kernel = 2 * self.reach + 1
        windows = self.inputs[:, row : row + self.reach].unfold(2, kernel, 1)

        # (R, reach, W, in, kernel) to (R * W, reach * kernel * in), the order of the weights
        flat = windows.permute(0, 2, 1, 4, 3).reshape(-1, len(self.above_weight))
        above = torch.addmm(self.bias, flat, self.above_weight)
        self.above = above.view(len(self.inputs), -1, above.shape[1])

    def write(self, row: int, column: int, features: Tensor) -> None:
        """Keep the input (R, in) of a position."""
        self.inputs[:, row + self.reach, column + self.reach] = features

    def compute(self, row: int, column: int) -> Tensor:
        """Return the output (R, out) of a position."""
        left = self.inputs[:, row + self.reach, column : column + self.left_taps].flatten(1)
        return torch.addmm(self.above[:, column], left, self.left_weight)


class Attention(nn.Module):
    """A block x + attention(norm(x)), with causal attention or attention to all positions."""

    def __init__(self, hidden: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm = nn.LayerNorm(hidden)
        self.inputs = nn.Linear(hidden, 3 * hidden)  # queries, keys, values
        self.output = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        batch, hidden, height, width = features.shape
        sequence = features.movedim(1, -1).reshape(batch, height * width, hidden)
        projected = self.inputs(self.norm(sequence))
        output = self.output(self_attention(projected, self.heads, causal=self.causal))
        return features + output.view(batch, height, width, hidden).movedim(-1, 1)
