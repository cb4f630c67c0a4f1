"""The transformer with a head for each level, position by position: each number is computed once.

Some images go through each layer together, so that its weights, which no near cache holds, are read once for all.

Letters: B images, N = H * W positions, D levels, C hidden units, E path units, A layers, K labels under which an image
is seen (`sampling.guided`), P paths that have an embedding, of all levels together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrvqvae.priors.gpt import GPT
from hrvqvae.priors.pixelsnail_sampler import OPTIONS, Floats, attend, normalize, stack
from hrvqvae.priors.sampling import NO_CODE, SamplingParams, draw_code, no_distribution
from hrvqvae.utils.compiled import compiled, in_parts

_TOGETHER = 4  # images

# erf(x) = x p(x^2) / q(x^2) between -4 and 4 to 1e-7; p and q, the highest power first, as in Eigen (MPL 2.0).
_ERF_TOP = tuple(map(np.float32, (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04,
    -2.95459980854025e-03, -1.60960333262415e-02,
)))  # fmt: skip
_ERF_BOTTOM = tuple(map(np.float32, (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02,
)))  # fmt: skip


@compiled(**OPTIONS)
def _add_products(vectors: Floats, matrix: Floats, out: Floats) -> None:
    """out (R, m) += vectors (R, n) @ matrix (n, m), four rows of the matrix at a time for all of the vectors."""
    rows, columns = matrix.shape
    whole = rows - rows % 4
    for i in range(0, whole, 4):
        for r in range(len(vectors)):
            a, b, c, d = vectors[r, i], vectors[r, i + 1], vectors[r, i + 2], vectors[r, i + 3]
            for j in range(columns):
                out[r, j] += a * matrix[i, j] + b * matrix[i + 1, j] + c * matrix[i + 2, j] + d * matrix[i + 3, j]
    for i in range(whole, rows):
        for r in range(len(vectors)):
            a = vectors[r, i]
            for j in range(columns):
                out[r, j] += a * matrix[i, j]


@compiled(**OPTIONS)
def _network(features: Floats, one: int, weights: Any, normed: Floats, inner: Floats) -> None:
    """features (R, C) += the two-layer network of that number; normed (R, C) and inner (R, its width) are room."""
    norms, widens, widens_bias, narrows, narrows_bias = weights
    for r in range(len(features)):
        normalize(features[r], norms[one], normed[r])
        inner[r] = widens_bias[one]
    _add_products(normed, widens[one], inner)
    for r in range(len(features)):
        for c in range(inner.shape[1]):  # GELU, with a rational function for erf: a call of erf takes 13 times as long
            x = min(max(inner[r, c] * np.float32(math.sqrt(0.5)), np.float32(-4.0)), np.float32(4.0))
            squared, top, bottom = x * x, np.float32(0.0), np.float32(0.0)
            for factor in _ERF_TOP:
                top = top * squared + factor
            for factor in _ERF_BOTTOM:
                bottom = bottom * squared + factor
            inner[r, c] *= np.float32(0.5) * (np.float32(1.0) + x * top / bottom)
        features[r] += narrows_bias[one]
    _add_products(inner, narrows[one], features)


@compiled(**OPTIONS)
def _images(
    begin: int, end: int, codes: Any, known: Any, uniforms: Any, base: Floats, first: Any, attention: Any,
    networks: Any, heads: Any, head_networks: Any, table: Floats, levels: Any, attention_heads: int, mixing: Floats,
    temperature: float, top_k: int, top_p: float,
) -> int:  # fmt: skip
    """Draw the codes (B, D, H, W) of the images begin..end - 1 that are not known, of all of them at once.

    base (K * B, N, C); table (P, E); levels (D, 4): symbols, whether linked, where its paths begin, how many there are;
    the rest as `_weights`. -> -1, or position * D + level of the first code that has no distribution.
    """
    _, count, height, width = codes.shape
    left, above, last_norm = first
    norms, inputs, inputs_bias, outputs, outputs_bias = attention
    before_weights, last_norms, symbols_weights, symbols_bias = heads
    units, hidden = left.shape
    images, copies = end - begin, len(mixing)
    rows = images * copies  # those of a copy together
    shape = (rows, len(inputs), hidden, height * width)
    keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
    features, x = np.empty((rows, hidden), np.float32), np.empty((rows, hidden), np.float32)
    normed, three = np.empty((rows, hidden), np.float32), np.empty((rows, 3 * hidden), np.float32)
    wide = np.empty((rows, networks[1].shape[2]), np.float32)
    half = np.empty((rows, head_networks[1].shape[2]), np.float32)
    logits, mixed = np.empty((rows, symbols_bias.shape[1]), np.float32), np.empty(symbols_bias.shape[1], np.float32)
    scores, before = np.empty(height * width, np.float32), np.zeros((images, units), np.float32)
    seen = np.zeros((height + 1, width + 2, images, units), np.float32)  # a row above and a column at each side
    paths = np.zeros(images, np.int64)
    for place in range(height * width):
        row, column = place // width, place % width
        for copy in range(copies):
            own, start = features[copy * images : (copy + 1) * images], copy * len(codes)
            own[:] = base[start + begin : start + end, place]
            _add_products(before, left, own)
            for tap in range(3):
                _add_products(seen[row, column + tap], above[tap], own)
        for layer in range(len(inputs)):
            for r in range(rows):
                normalize(features[r], norms[layer], normed[r])
                three[r] = inputs_bias[layer]
            _add_products(normed, inputs[layer], three)
            for r in range(rows):
                attend(three[r], place, attention_heads, keys[r, layer], values[r, layer], normed[r], scores)
                features[r] += outputs_bias[layer]
            _add_products(normed, outputs[layer], features)
            _network(features, layer, networks, normed, wide)
        for r in range(rows):
            normalize(features[r], last_norm, normed[r])
            features[r] = normed[r]
        before[:] = 0.0
        paths[:] = 0
        for level in range(count):
            symbols, linked, start, size = levels[level]
            if not np.all(known[begin:end, level, row, column]):
                x[:] = features
                for copy in range(copies):
                    _add_products(before, before_weights[level], x[copy * images : (copy + 1) * images])
                _network(x, level, head_networks, normed, half)
                for r in range(rows):
                    normalize(x[r], last_norms[level], normed[r])
                    logits[r] = symbols_bias[level]
                _add_products(normed, symbols_weights[level], logits)
            for one in range(images):
                image = begin + one
                if not known[image, level, row, column]:
                    mixed[:] = 0.0
                    for copy in range(copies):
                        for symbol in range(len(mixed)):
                            mixed[symbol] += mixing[copy] * logits[copy * images + one, symbol]
                    uniform = uniforms[image, level, row, column]
                    code = draw_code(mixed[:symbols], uniform, temperature, top_k, top_p)
                    if code == NO_CODE:
                        return int(place * count + level)
                    codes[image, level, row, column] = code
                paths[one] = codes[image, level, row, column] + (paths[one] * symbols if linked else 0)
                before[one] += table[start + paths[one] % size]
        seen[row + 1, column + 1] = before
    return -1


def _transposed(layers: Iterable[Any]) -> tuple[Floats, Floats]:
    """Weights (inputs, outputs), so that a product runs along the outputs, and biases of linear layers; outputs padded
    with zeros to the most."""
    some = list(layers)
    most = max(one.out_features for one in some)
    pads = [(0, most - one.out_features) for one in some]
    pad = torch.nn.functional.pad
    weights = stack([pad(one.weight.T, each) for one, each in zip(some, pads, strict=True)])
    return weights, stack([pad(one.bias, each) for one, each in zip(some, pads, strict=True)])


def _norms(layers: Iterable[Any]) -> Floats:
    return stack([torch.stack([one.weight, one.bias]) for one in layers])


def _weights(prior: GPT) -> tuple[Any, ...]:
    """What comes first and last, attention and networks of the layers, heads and their networks."""
    layers: Sequence[Any] = list(prior.layers)
    heads: Sequence[Any] = list(prior.heads)
    first = (
        prior.left.weight.T.contiguous().numpy(), prior.above.weight[:, :, 0].permute(2, 1, 0).contiguous().numpy(),
        _norms([prior.norm])[0],
    )  # fmt: skip
    attention = (
        _norms(one.attention_norm for one in layers), *_transposed(one.inputs for one in layers),
        *_transposed(one.output for one in layers),
    )  # fmt: skip
    networks, head_networks = (
        (_norms(norms), *_transposed(one.widen for one in some), *_transposed(one.narrow for one in some))
        for some, norms in ((layers, (one.network_norm for one in layers)), (heads, (one.norm for one in heads)))
    )
    last = _norms(one.last_norm for one in heads), *_transposed(one.output for one in heads)
    return first, attention, networks, (stack([one.before.weight.T for one in heads]), *last), head_networks


@torch.inference_mode()
def sample_gpt(
    prior: GPT, codes: Sequence[Tensor], known: Sequence[Tensor], coarser: Sequence[Tensor],
    label: Tensor | None, uniforms: Sequence[Tensor], mixing: Tensor, params: SamplingParams,
) -> None:  # fmt: skip
    """Fill in the codes that are not known, position by position; arguments as `sampling.sample_plain`."""
    together = [torch.stack(list(some), 1) for some in (codes, known, uniforms)]
    batch, count, _, width = together[0].shape
    base = prior.base(coarser, label, batch * len(mixing))
    sizes = np.array(prior.embeddings.sizes)
    levels = np.stack(
        [
            [level.symbols for level in prior.levels], [bool(n) and one.linked for n, one in enumerate(prior.levels)],
            np.cumsum(sizes) - sizes, sizes,
        ], 1,
    ).astype(np.int64)  # fmt: skip
    tables: Sequence[Any] = list(prior.embeddings.tables)
    fixed = (
        (base + prior.left.bias).contiguous().numpy(), *_weights(prior),
        torch.cat([one.weight for one in tables]).numpy(), levels, prior.config.heads, mixing.numpy(),
        *params.values(),
    )  # fmt: skip
    arrays = [one.numpy() for one in together]

    def draw(first: int, last: int) -> int:
        begins = range(first, last, _TOGETHER)
        return max(int(_images(begin, min(begin + _TOGETHER, last), *arrays, *fixed)) for begin in begins)

    place = max(in_parts(batch, draw))
    if place >= 0:
        raise no_distribution(prior.levels[place % count].number, *divmod(place // count, width))
    for own, drawn in zip(codes, together[0].unbind(1), strict=True):
        own.copy_(drawn)
