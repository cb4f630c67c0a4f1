"""The network of one PixelSNAIL prior, position by position: as its forward pass, but each number is computed once.

Letters: B images, (H, W) grid, C hidden units, U residual units, R gated blocks, A attention layers, m symbols;
q = k // 2 rows above and columns to each side that a convolution with filter k sees.

Kept, in buffers made once: what every causal convolution took in, and every attention layer's keys and values. A row is
computed in two parts. What a convolution sees of the rows above is known when the row begins, so that part of all
blocks and positions is one matrix product; the position's own row, attention and the draw follow position by position,
compiled. So a position reads only the weights to its left: (q + 1) / (q * k + q + 1) of a convolution's, 3 of 13 for
filter 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.jit.cache import compiled
from hrvqvae.jit.threads import in_parts
from hrvqvae.priors.draw import NO_CODE, Draw, draw_code, no_distribution
from hrvqvae.priors.pixelsnail.network import PixelSNAIL

Floats = NDArray[np.float32]

_OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "fastmath": {"reassoc", "contract", "nsz"}}
_EPSILON = 1e-5  # of layer normalization, torch's


@compiled(**_OPTIONS)
def _add_product(vector: Floats, matrix: Floats, out: Floats) -> None:
    """out (m,) += vector (n,) @ matrix (n, m), four rows at a time."""
    rows, columns = matrix.shape
    whole = rows - rows % 4
    for i in range(0, whole, 4):
        a, b, c, d = vector[i], vector[i + 1], vector[i + 2], vector[i + 3]
        for j in range(columns):
            out[j] += a * matrix[i, j] + b * matrix[i + 1, j] + c * matrix[i + 2, j] + d * matrix[i + 3, j]
    for i in range(whole, rows):
        a = vector[i]
        for j in range(columns):
            out[j] += a * matrix[i, j]


@compiled(**_OPTIONS)
def _elu(value: Any) -> Any:
    return value if value > 0 else np.expm1(value)


@compiled(**_OPTIONS)
def _attend(
    features: Floats, place: int, heads: int, norm: Floats, inputs: Floats, inputs_bias: Floats, output: Floats,
    output_bias: Floats, keys: Floats, values: Floats, three: Floats, attended: Floats, scores: Floats,
) -> None:  # fmt: skip
    """features (C,) += attention to positions 0..place; keys and values (C, H * W) get the position's own.

    norm (2, C) holds weight and bias; three (3C,), attended (C,) and scores (H * W,) are room to work in.
    """
    hidden = len(features)
    mean: Any = np.float32(0.0)
    for c in range(hidden):
        mean += features[c]
    mean /= np.float32(hidden)
    variance: Any = np.float32(0.0)
    for c in range(hidden):
        variance += (features[c] - mean) * (features[c] - mean)
    scale = np.float32(1.0) / np.sqrt(variance / np.float32(hidden) + np.float32(_EPSILON))
    for c in range(hidden):
        attended[c] = (features[c] - mean) * scale * norm[0, c] + norm[1, c]
    three[:] = inputs_bias
    _add_product(attended, inputs, three)
    for c in range(hidden):
        keys[c, place] = three[hidden + c]
        values[c, place] = three[2 * hidden + c]
    width = hidden // heads
    unit = np.float32(1.0) / np.sqrt(np.float32(width))
    seen = place + 1
    for head in range(heads):
        begin = head * width
        for j in range(seen):
            scores[j] = 0.0
        for c in range(begin, begin + width):
            query = three[c] * unit
            for j in range(seen):
                scores[j] += query * keys[c, j]
        largest: Any = np.float32(-np.inf)
        for j in range(seen):
            largest = max(largest, scores[j])
        total: Any = np.float32(0.0)
        for j in range(seen):
            scores[j] = np.exp(scores[j] - largest)
            total += scores[j]
        for c in range(begin, begin + width):
            summed: Any = np.float32(0.0)
            for j in range(seen):
                summed += scores[j] * values[c, j]
            attended[c] = summed / total
    for c in range(hidden):
        features[c] += output_bias[c]
    _add_product(attended, output, features)


@compiled(**_OPTIONS)
def _row(
    begin: int, end: int, row: int, codes: Any, known: Any, uniforms: Any, base: Floats, above: Floats,
    conditions: Floats, taken: Floats, keys: Floats, values: Floats, weights: Any, heads: int, temperature: float,
    top_k: int, top_p: float,
) -> int:  # fmt: skip
    """Draw the codes of a row of the images begin..end - 1 that are not known; -> -1, or the column that has no code.

    codes, known, uniforms (B, H, W); base (B, W, C); above (R, B, W, U) and conditions (B, W, R * 2C), biases added;
    taken (R, B, H + q, W + 2q, C); keys, values (A, B, C, H * W); weights as in `_weights`.
    """
    table, lefts, pointwise, norms, inputs, inputs_bias, outputs, outputs_bias, after, head, head_bias = weights
    blocks, taps, hidden, inner = lefts.shape
    height, width = codes.shape[1:]
    reach = taps - 1
    features = np.empty(hidden, np.float32)
    gated = np.empty(2 * hidden, np.float32)
    narrow = np.empty(inner, np.float32)
    three = np.empty(3 * hidden, np.float32)
    attended = np.empty(hidden, np.float32)
    scores = np.empty(height * width, np.float32)
    logits = np.empty(len(head_bias), np.float32)
    for image in range(begin, end):
        for x in range(width):
            features[:] = base[image, x]
            for tap in range(table.shape[0]):
                source = row + tap // (2 * reach + 1) - reach
                column = x + tap % (2 * reach + 1) - reach
                if source >= 0 and 0 <= column < width:
                    features += table[tap, codes[image, source, column]]
            for block in range(blocks):
                came = taken[block, image, row + reach]
                for c in range(hidden):
                    came[x + reach, c] = _elu(features[c])
                narrow[:] = above[block, image, x]
                for tap in range(taps):
                    _add_product(came[x + tap], lefts[block, tap], narrow)
                for c in range(inner):
                    narrow[c] = _elu(narrow[c])
                gated[:] = conditions[image, x, block * 2 * hidden : (block + 1) * 2 * hidden]
                _add_product(narrow, pointwise[block], gated)
                for c in range(hidden):
                    features[c] += gated[c] / (np.float32(1.0) + np.exp(-gated[hidden + c]))
                layer = after[block]
                if layer >= 0:
                    _attend(
                        features, row * width + x, heads, norms[layer], inputs[layer], inputs_bias[layer],
                        outputs[layer], outputs_bias[layer], keys[layer, image], values[layer, image], three, attended,
                        scores,
                    )  # fmt: skip
            if not known[image, row, x]:
                for c in range(hidden):
                    features[c] = _elu(features[c])
                logits[:] = head_bias
                _add_product(features, head, logits)
                code = draw_code(logits, uniforms[image, row, x], temperature, top_k, top_p)
                if code == NO_CODE:
                    return x
                codes[image, row, x] = code
    return -1


def _stack(tensors: Sequence[Tensor], shape: tuple[int, ...] = ()) -> Floats:
    stacked = torch.stack(list(tensors)) if len(tensors) else torch.empty(0, *shape)
    return stacked.contiguous().numpy()


def _weights(prior: PixelSNAIL) -> tuple[Any, ...]:
    """The weights that a position reads, each (inputs, outputs) so that a product runs along the outputs.

    The first layer's convolution of embeddings is a table: (taps before the position, m, C).
    """
    hidden, head = prior.config.hidden_units, prior.head
    assert head.bias is not None
    taps = torch.cat([prior.first.above.flatten(2), prior.first.left.flatten(2)], 2)  # (C, C, taps), rows above first
    table = torch.einsum("mi,oit->tmo", prior.embedding.weight, taps)
    after = np.full(len(prior.blocks), -1)
    for layer, block in enumerate(prior.attention_after):
        after[block - 1] = layer
    blocks: Sequence[Any] = list(prior.blocks)
    some: Sequence[Any] = list(prior.attentions)
    return (
        table.contiguous().numpy(),
        _stack([block.spatial.left[:, :, 0].permute(2, 1, 0) for block in blocks]),
        _stack([block.pointwise.weight[:, :, 0, 0].T for block in blocks]),
        _stack([torch.stack([one.norm.weight, one.norm.bias]) for one in some], (2, hidden)),
        _stack([one.inputs.weight.T for one in some], (hidden, 3 * hidden)),
        _stack([one.inputs.bias for one in some], (3 * hidden,)),
        _stack([one.output.weight.T for one in some], (hidden, hidden)),
        _stack([one.output.bias for one in some], (hidden,)),
        after, head.weight[:, :, 0, 0].T.contiguous().numpy(), head.bias.numpy(),
    )  # fmt: skip


class _Above:
    """What the causal convolutions of all blocks see of the rows above, for a whole row at once.

    taken (R, B, H + q, W + 2q, C) is what they took in, zeros around.
    """

    def __init__(self, prior: PixelSNAIL, batch: int) -> None:
        blocks: Sequence[Any] = list(prior.blocks)
        convolutions = [block.spatial for block in blocks]
        (height, width), hidden = prior.level.grid, prior.config.hidden_units
        reach, kernel = convolutions[0].reach, prior.config.kernel
        self.weight = torch.stack([one.above.permute(2, 3, 1, 0).flatten(0, 2) for one in convolutions])
        self.bias = torch.stack([one.bias for one in convolutions])[:, None]
        self.taken = torch.zeros(len(blocks), batch, height + reach, width + 2 * reach, hidden)
        block, image, row, column, _ = self.taken.stride()
        shape, strides = (len(blocks), batch, width, reach, kernel, hidden), (block, image, column, row, column, 1)
        self.windows = [self.taken.as_strided(shape, strides, number * row) for number in range(height)]

    def row(self, row: int) -> Tensor:
        """(R, B, W, U) of row `row`, biases added."""
        windows = self.windows[row]
        seen = torch.baddbmm(self.bias, windows.reshape(len(self.bias), -1, self.weight.shape[1]), self.weight)
        return seen.view(*windows.shape[:3], -1)


@torch.inference_mode()
def sample_pixelsnail(
    prior: PixelSNAIL, codes: Tensor, known: Tensor, coarser: Sequence[Tensor], label: Tensor | None, uniforms: Tensor,
    draw: Draw,
) -> None:  # fmt: skip
    """Fill in the codes (B, H, W) int64 that are not known, in raster order; arguments as `plain.sample_plain`."""
    batch, height, width = codes.shape
    hidden = prior.config.hidden_units
    base = prior.base(coarser, label, batch).permute(0, 2, 3, 1).contiguous()
    started = base + prior.first.bias
    blocks: Sequence[Any] = list(prior.blocks)
    to_conditions, bias = prior.conditions.weight[:, :, 0, 0].T, prior.conditions.bias
    assert bias is not None
    bias = bias + torch.cat([block.pointwise.bias for block in blocks])
    above = _Above(prior, batch)
    keys = torch.zeros(len(prior.attentions), batch, hidden, height * width)
    kept = [tensor.numpy() for tensor in (above.taken, keys, torch.zeros_like(keys))]
    weights = _weights(prior)
    arrays = [tensor.numpy() for tensor in (codes, known, uniforms)]
    for row in range(height):
        conditions = torch.addmm(bias, base[:, row].reshape(batch * width, hidden), to_conditions)
        parts = [
            tensor.numpy()
            for tensor in (started[:, row].contiguous(), above.row(row), conditions.view(batch, width, -1))
        ]

        def images(begin: int, end: int, row: int = row, parts: list[Floats] = parts) -> int:
            heads = prior.config.attention_heads
            return int(_row(begin, end, row, *arrays, *parts, *kept, weights, heads, *draw.values()))

        column = max(in_parts(batch, images))
        if column >= 0:
            raise no_distribution(prior.level.number, row, column)
