"""PixelSNAIL position by position: as its forward pass, but each number is computed once.

Letters: B images, (H, W) grid, m symbols, C hidden units, U residual units, R gated blocks, A attention layers;
q = k // 2 rows above and columns to each side that a convolution with filter k sees. Guided images are seen several
times, S = K * B in all, and their logits mixed: see `sampling.guided`.

Kept, in buffers made once: what every causal convolution took in, and every attention layer's keys and values. A row is
computed in two parts. What a convolution sees of the rows above is known when the row begins, so that part of all
blocks and positions is one matrix product; the position's own row, attention and the draw follow position by position,
compiled. So a position reads only the weights to its left: (q + 1) / (q * k + q + 1) of a convolution's, 3 of 13 for
filter 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.priors.pixelsnail import PixelSNAIL
from hrvqvae.priors.sampling import NO_CODE, SamplingParams, draw_code, no_distribution
from hrvqvae.utils.compiled import compiled, in_parts

Floats = NDArray[np.float32]

OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "fastmath": {"reassoc", "contract", "nsz"}}
_EPSILON = 1e-5  # of layer normalization, torch's


@compiled(**OPTIONS)
def add_product(vector: Floats, matrix: Floats, out: Floats) -> None:
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


@compiled(**OPTIONS)
def _elu(value: Any) -> Any:
    """As torch's."""
    return value if value > 0 else np.expm1(value)


@compiled(**OPTIONS)
def normalize(features: Floats, norm: Floats, out: Floats) -> None:
    """out (C,) = the layer normalization of features (C,); norm (2, C) holds weight and bias."""
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
        out[c] = (features[c] - mean) * scale * norm[0, c] + norm[1, c]


@compiled(**OPTIONS)
def attend_at(
    features: Floats, place: int, heads: int, norm: Floats, inputs: Floats, inputs_bias: Floats, output: Floats,
    output_bias: Floats, keys: Floats, values: Floats, three: Floats, attended: Floats, scores: Floats,
) -> None:  # fmt: skip
    """features (C,) += attention to positions 0..place; keys and values (C, H * W) get the position's own.

    norm (2, C) holds weight and bias; three (3C,), attended (C,) and scores (H * W,) are room to work in.
    """
    normalize(features, norm, attended)
    three[:] = inputs_bias
    add_product(attended, inputs, three)
    attend(three, place, heads, keys, values, attended, scores)
    features += output_bias
    add_product(attended, output, features)


@compiled(**OPTIONS)
def attend(
    three: Floats, place: int, heads: int, keys: Floats, values: Floats, attended: Floats, scores: Floats
) -> None:
    """attended (C,) = attention of three (3C,), the position's query, key and value, to positions 0..place.

    keys and values (C, H * W) get the position's own; scores (H * W,) is room to work in.
    """
    hidden = len(attended)
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


@compiled(**OPTIONS)
def _add_first(features: Floats, table: Floats, codes: Any, row: int, x: int, reach: int) -> None:
    """features (C,) += the first layer's convolution at a position; table (taps, m, C), codes (H, W)."""
    for tap in range(table.shape[0]):
        source = row + tap // (2 * reach + 1) - reach
        column = x + tap % (2 * reach + 1) - reach
        if source >= 0 and 0 <= column < codes.shape[1]:
            features += table[tap, codes[source, column]]


@compiled(**OPTIONS)
def _advance(
    features: Floats, seen: int, row: int, x: int, above: Floats, conditions: Floats, kept: Any, weights: Any,
    heads: int, work: Any,
) -> None:  # fmt: skip
    """All blocks and attention layers at a position, of the image of that number among those that are seen.

    features (C,) are the first layer's and become the last one's; above (R, S, W, U) and conditions (S, W, R * 2C) of
    the row, biases added; kept: taken as in `_rows`, keys and values (A, S, C, H * W); weights as in `_weights`; work:
    gated, narrow, three, attended and scores, which are overwritten.
    """
    lefts, pointwise, norms, inputs, inputs_bias, outputs, outputs_bias, after = weights
    taken, keys, values = kept
    gated, narrow, three, attended, scores = work
    blocks, taps, hidden, inner = lefts.shape
    reach = taps - 1
    place = row * above.shape[2] + x
    for block in range(blocks):
        came = taken[block, seen, row + reach]
        for c in range(hidden):
            came[x + reach, c] = _elu(features[c])
        narrow[:] = above[block, seen, x]
        for tap in range(taps):
            add_product(came[x + tap], lefts[block, tap], narrow)
        for c in range(inner):
            narrow[c] = _elu(narrow[c])
        gated[:] = conditions[seen, x, block * 2 * hidden : (block + 1) * 2 * hidden]
        add_product(narrow, pointwise[block], gated)
        for c in range(hidden):
            features[c] += gated[c] / (np.float32(1.0) + np.exp(-gated[hidden + c]))
        layer = after[block]
        if layer >= 0:
            attend_at(
                features, place, heads, norms[layer], inputs[layer], inputs_bias[layer], outputs[layer],
                outputs_bias[layer], keys[layer, seen], values[layer, seen], three, attended, scores,
            )  # fmt: skip


def stack(tensors: Sequence[Tensor], shape: tuple[int, ...] = ()) -> Floats:
    """Tensors of one shape, which is needed where there are none, as one array."""
    stacked = torch.stack(list(tensors)) if len(tensors) else torch.empty(0, *shape)
    return stacked.contiguous().numpy()


def _first_table(prior: PixelSNAIL) -> Floats:
    """The first layer's convolution of the embedded codes as a table: (taps before the position, m, C)."""
    taps = torch.cat([prior.first.above.flatten(2), prior.first.left.flatten(2)], 2)  # (C, C, taps), rows above first
    return torch.einsum("mi,oit->tmo", prior.embedding.weight, taps).contiguous().numpy()


def _weights(prior: PixelSNAIL) -> tuple[Any, ...]:
    """The weights that a position reads, each (inputs, outputs) so that a product runs along the outputs."""
    blocks: Sequence[Any] = list(prior.blocks)
    some: Sequence[Any] = list(prior.attentions)
    hidden = prior.first.bias.shape[0]
    after = np.full(len(blocks), -1)
    for layer, block in enumerate(prior.attention_after):
        after[block - 1] = layer
    return (
        stack([block.spatial.left[:, :, 0].permute(2, 1, 0) for block in blocks]),
        stack([block.pointwise.weight[:, :, 0, 0].T for block in blocks]),
        stack([torch.stack([one.norm.weight, one.norm.bias]) for one in some], (2, hidden)),
        stack([one.inputs.weight.T for one in some], (hidden, 3 * hidden)),
        stack([one.inputs.bias for one in some], (3 * hidden,)),
        stack([one.output.weight.T for one in some], (hidden, hidden)),
        stack([one.output.bias for one in some], (hidden,)),
        after,
    )  # fmt: skip


def _rows(prior: PixelSNAIL, base: Tensor, taken: Tensor) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Of each row: base (S, W, C), above (R, S, W, U) and conditions (S, W, R * 2C), biases added.

    Args:
        base: (S, C, H, W), what does not depend on the codes.
        taken: (R, S, H + q, W + 2q, C), what the convolutions of the blocks took in until then, zeros around.
    """
    blocks: Sequence[Any] = list(prior.blocks)
    convolutions = [block.spatial for block in blocks]
    reach, kernel = convolutions[0].reach, convolutions[0].above.shape[3]
    weights = torch.stack([one.above.permute(2, 3, 1, 0).flatten(0, 2) for one in convolutions])
    bias = torch.stack([one.bias for one in convolutions])[:, None]
    base = base.permute(0, 2, 3, 1).contiguous()
    seen, height, width, hidden = base.shape
    started = base + prior.first.bias
    assert prior.conditions.bias is not None
    conditions_bias = prior.conditions.bias + torch.cat([block.pointwise.bias for block in blocks])
    block, image, row, column, _ = taken.stride()
    shape = (len(blocks), seen, width, reach, kernel, hidden)
    for number in range(height):
        windows = taken.as_strided(shape, (block, image, column, row, column, 1), number * row)
        above = torch.baddbmm(bias, windows.reshape(len(blocks), -1, weights.shape[1]), weights)
        own = base[:, number]
        conditions = torch.addmm(conditions_bias, own.flatten(0, 1), prior.conditions.weight[:, :, 0, 0].T)
        yield (
            started[:, number].contiguous().numpy(), above.view(*shape[:3], -1).numpy(),
            conditions.view(seen, width, -1).numpy(),
        )  # fmt: skip


@compiled(**OPTIONS)
def _row(
    begin: int, end: int, row: int, codes: Any, known: Any, uniforms: Any, base: Floats, above: Floats,
    conditions: Floats, kept: Any, weights: Any, table: Floats, head: Floats, head_bias: Floats, heads: int,
    mixing: Floats, temperature: float, top_k: int, top_p: float,
) -> int:  # fmt: skip
    """Draw the codes of a row of the images begin..end - 1 that are not known; -> -1, or the column that has no code.

    codes, known, uniforms (B, H, W); mixing (K,); table (taps, m, C), head (C, m); the rest as `_advance`.
    """
    height, width = codes.shape[1:]
    features = np.empty(base.shape[2], np.float32)
    logits = np.empty(len(head_bias), np.float32)
    mixed = np.empty(len(head_bias), np.float32)
    reach = (kept[0].shape[3] - width) // 2
    hidden, inner = weights[0].shape[2:]
    work = (
        np.empty(2 * hidden, np.float32), np.empty(inner, np.float32), np.empty(3 * hidden, np.float32),
        np.empty(hidden, np.float32), np.empty(height * width, np.float32),
    )  # fmt: skip
    for image in range(begin, end):
        for x in range(width):
            mixed[:] = 0.0
            for copy in range(len(mixing)):
                seen = copy * len(codes) + image
                features[:] = base[seen, x]
                _add_first(features, table, codes[image], row, x, reach)
                _advance(features, seen, row, x, above, conditions, kept, weights, heads, work)
                if not known[image, row, x]:
                    for c in range(len(features)):
                        features[c] = _elu(features[c])
                    logits[:] = head_bias
                    add_product(features, head, logits)
                    for symbol in range(len(logits)):
                        mixed[symbol] += mixing[copy] * logits[symbol]
            if not known[image, row, x]:
                code = draw_code(mixed, uniforms[image, row, x], temperature, top_k, top_p)
                if code == NO_CODE:
                    return x
                codes[image, row, x] = code
    return -1


@torch.inference_mode()
def sample_pixelsnail(
    prior: PixelSNAIL, codes: Sequence[Tensor], known: Sequence[Tensor], coarser: Sequence[Tensor],
    label: Tensor | None, uniforms: Sequence[Tensor], mixing: Tensor, params: SamplingParams,
) -> None:  # fmt: skip
    """Fill in the codes that are not known, in raster order; arguments as `sampling.sample_plain`."""
    arrays = [only.numpy() for (only,) in (codes, known, uniforms)]
    batch = len(codes[0])
    base, reach = prior.base(coarser, label, batch * len(mixing)), prior.config.kernel // 2
    seen, hidden, height, width = base.shape
    taken = torch.zeros(len(prior.blocks), seen, height + reach, width + 2 * reach, hidden)
    keys, values = torch.zeros(2, len(prior.attentions), seen, hidden, height * width)
    head = prior.head
    assert head.bias is not None
    fixed = (
        tuple(one.numpy() for one in (taken, keys, values)), _weights(prior), _first_table(prior),
        head.weight[:, :, 0, 0].T.contiguous().numpy(), head.bias.numpy(), prior.config.attention_heads,
        mixing.numpy(), *params.values(),
    )  # fmt: skip

    for row, parts in enumerate(_rows(prior, base, taken)):

        def some(begin: int, end: int, row: int = row, parts: tuple[Floats, Floats, Floats] = parts) -> int:
            return int(_row(begin, end, row, *arrays, *parts, *fixed))

        column = max(in_parts(batch, some))
        if column >= 0:
            raise no_distribution(prior.level.number, row, column)
