"""Sample from the transformer with a head for each level, position by position: each number is computed once.

Four images go through each layer together, so that its weights, which no near cache holds, are read once for all.

Letters: B images, N = H * W positions, D levels, C hidden units, E path units, A layers, K labels under which an image
is seen (`sampling.guided`), P embeddings of all levels together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrvqvae.priors import kernels
from hrvqvae.priors.gpt import GPT
from hrvqvae.priors.kernels import FAST, FIRST, NO_CODE, PART, Floats, add_products, draw_workspace, normalize, stack
from hrvqvae.priors.sampling import SamplingParams, no_distribution
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


@compiled(**FAST, **PART)
def _add_network(features: Floats, index: int, weights: Any, normed: Floats, inner: Floats) -> None:
    """Add a two-layer network of features (R, C), that of an index, to them.

    Args:
        normed: (R, C), and
        inner: (R, width of the network), overwritten.
    """
    norms, widens, widens_bias, narrows, narrows_bias = weights
    rows = len(features)
    normalize(features, norms[index], normed)
    kernels.copy_rows(widens_bias[index], inner)
    add_products(normed, FIRST, widens[index], inner, FIRST)
    for r in range(rows):
        for c in range(inner.shape[1]):  # GELU, with a rational function for erf: a call of erf takes 13 times as long
            x = min(max(inner[r, c] * np.float32(math.sqrt(0.5)), np.float32(-4.0)), np.float32(4.0))
            squared, top, bottom = x * x, np.float32(0.0), np.float32(0.0)
            for factor in _ERF_TOP:
                top = top * squared + factor
            for factor in _ERF_BOTTOM:
                bottom = bottom * squared + factor
            inner[r, c] *= np.float32(0.5) * (np.float32(1.0) + x * top / bottom)
    kernels.add_rows(narrows_bias[index], features)
    add_products(inner, FIRST, narrows[index], features, FIRST)


@compiled(**FAST, inline="always")
def _apply_layers(
    features: Floats, place: int, attention: Any, networks: Any, heads: int, last_norm: Floats, keys: Floats,
    values: Floats, work: Any,
) -> None:  # fmt: skip
    """Apply all layers and the last normalization at a position to features (R, C) of all images together."""
    norms, inputs, inputs_bias, outputs, outputs_bias = attention
    normed, projected, wide, scores = work
    rows = len(features)
    for layer in range(len(inputs)):
        normalize(features, norms[layer], normed)
        kernels.copy_rows(inputs_bias[layer], projected)
        add_products(normed, FIRST, inputs[layer], projected, FIRST)
        for r in range(rows):
            kernels.attend(projected, r, place, heads, keys[r, layer], values[r, layer], normed, scores)
        kernels.add_rows(outputs_bias[layer], features)
        add_products(normed, FIRST, outputs[layer], features, FIRST)
        _add_network(features, layer, networks, normed, wide)
    normalize(features, last_norm, features)


@compiled(**FAST)
def _draw_images(
    begin: int, end: int, codes: Any, known: Any, uniforms: Any, base: Floats, first: Any, attention: Any,
    networks: Any, heads: Any, head_networks: Any, table: Floats, levels: Any, attention_heads: int, mixing: Floats,
    temperature: float, top_k: int, top_p: float, work: Any,
) -> int:  # fmt: skip
    """Draw the codes (B, D, H, W) of the images begin..end - 1 that are not known, of all of them at once.

    Args:
        base: (K * B, N, C); table (P, E); levels (D, 4): symbols, whether linked, first embedding, embeddings.
        first: as `_weights` returns it, as are attention, networks, heads and head_networks.
        work: as `_workspace` returns it.

    Returns:
        -1, or position * D + level of the first code that has no distribution.
    """
    _, count, height, width = codes.shape
    left, above, last_norm = first
    before_weights, last_norms, symbols_weights, symbols_bias = heads
    keys, values, features, x, half, logits, mixed, before, seen, indices, room, layers_work = work
    normed = layers_work[0]
    images, copies = end - begin, len(mixing)
    for place in range(height * width):
        row, column = place // width, place % width
        for copy in range(copies):
            start = copy * images
            for image in range(images):
                for c in range(features.shape[1]):
                    features[start + image, c] = base[copy * len(codes) + begin + image, place, c]
            add_products(before, FIRST, left, features, start)
            for tap in range(3):
                add_products(seen[row, column + tap], FIRST, above[tap], features, start)
        _apply_layers(features, place, attention, networks, attention_heads, last_norm, keys, values, layers_work)
        for image in range(images):
            indices[image] = 0
            for unit in range(before.shape[1]):
                before[image, unit] = 0.0
        for level in range(count):
            symbols, start, size = levels[level, 0], levels[level, 2], levels[level, 3]
            missing = False
            for image in range(begin, end):
                missing = missing or not known[image, level, row, column]
            if missing:
                for r in range(len(features)):
                    for c in range(features.shape[1]):
                        x[r, c] = features[r, c]
                for copy in range(copies):
                    add_products(before, FIRST, before_weights[level], x, copy * images)
                _add_network(x, level, head_networks, normed, half)
                normalize(x, last_norms[level], normed)
                kernels.copy_rows(symbols_bias[level], logits)
                add_products(normed, FIRST, symbols_weights[level], logits, FIRST)
            for index in range(images):
                image = begin + index
                if not known[image, level, row, column]:
                    for symbol in range(len(mixed)):
                        mixed[symbol] = 0.0
                    for copy in range(copies):
                        for symbol in range(len(mixed)):
                            mixed[symbol] += mixing[copy] * logits[copy * images + index, symbol]
                    uniform = uniforms[image, level, row, column]
                    code = kernels.draw(mixed, symbols, uniform, temperature, top_k, top_p, room)
                    if code == NO_CODE:
                        return int(place * count + level)
                    codes[image, level, row, column] = code
                indices[index] = codes[image, level, row, column] + (
                    indices[index] * symbols if levels[level, 1] else 0
                )
                for unit in range(before.shape[1]):
                    before[index, unit] += table[start + indices[index] % size, unit]
        for image in range(images):
            for unit in range(before.shape[1]):
                seen[row + 1, column + 1, image, unit] = before[image, unit]
    return -1


def _workspace(images: int, copies: int, height: int, width: int, weights: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arrays that `_draw_images` works in; rows of a copy lie together."""
    (left, *_), (_, inputs, *_), (_, widens, *_), (*_, symbols_bias), (_, head_widens, *_) = weights
    (units, hidden), rows, symbols = left.shape, images * copies, symbols_bias.shape[1]
    keys, values = np.empty((2, rows, len(inputs), hidden, height * width), np.float32)
    features, x, normed = np.empty((3, rows, hidden), np.float32)
    projected, scores = np.empty((rows, 3 * hidden), np.float32), np.empty(height * width, np.float32)
    wide = np.empty((rows, widens.shape[2]), np.float32)
    half = np.empty((rows, head_widens.shape[2]), np.float32)
    seen = np.zeros((height + 1, width + 2, images, units), np.float32)  # a row above and a column at each side
    return (
        keys, values, features, x, half, np.empty((rows, symbols), np.float32), np.empty(symbols, np.float32),
        np.zeros((images, units), np.float32), seen, np.empty(images, np.int64), draw_workspace(symbols),
        (normed, projected, wide, scores),
    )  # fmt: skip


def _transposed(layers: Iterable[Any]) -> tuple[Floats, Floats]:
    """Return the weights (inputs, outputs) of linear layers, so that a product runs along the outputs, and the biases.

    Outputs are padded with zeros to those of the widest layer.
    """
    linear_layers = list(layers)
    most = max(layer.out_features for layer in linear_layers)
    pads = [(0, most - layer.out_features) for layer in linear_layers]
    pad = torch.nn.functional.pad
    weights = stack([pad(layer.weight.T, padding) for layer, padding in zip(linear_layers, pads, strict=True)])
    return weights, stack([pad(layer.bias, padding) for layer, padding in zip(linear_layers, pads, strict=True)])


def _norms(layers: Iterable[Any]) -> Floats:
    return stack([torch.stack([layer.weight, layer.bias]) for layer in layers])


def _weights(prior: GPT) -> tuple[Any, ...]:
    """Return the first and last layers, attention and networks of the layers, heads, and networks of the heads."""
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
    """Draw the codes that are not known, position by position; arguments as in `sampling.sample_plain`."""
    stacked = [torch.stack(list(tensors), 1) for tensors in (codes, known, uniforms)]
    batch, count, height, width = stacked[0].shape
    base = prior.base(coarser, label, batch * len(mixing))
    sizes = np.array(prior.embeddings.sizes)
    levels = np.stack(
        [
            [level.symbols for level in prior.levels],
            [index > 0 and level.linked for index, level in enumerate(prior.levels)],
            np.cumsum(sizes) - sizes, sizes,
        ], 1,
    ).astype(np.int64)  # fmt: skip
    tables: Sequence[Any] = list(prior.embeddings.tables)
    weights = _weights(prior)
    fixed = (
        (base + prior.left.bias).contiguous().numpy(), *weights, torch.cat([table.weight for table in tables]).numpy(),
        levels, prior.config.heads, mixing.numpy(), *params.values(),
    )  # fmt: skip
    arrays = [table.numpy() for table in stacked]

    def draw_images(first: int, last: int) -> int:
        failures = [-1]
        for begin in range(first, last, _TOGETHER):
            end = min(begin + _TOGETHER, last)
            work = _workspace(end - begin, len(mixing), height, width, weights)
            failures.append(int(_draw_images(begin, end, *arrays, *fixed, work)))
        return max(failures)

    place = max(in_parts(batch, draw_images))
    if place >= 0:
        raise no_distribution(prior.levels[place % count].number, *divmod(place // count, width))
    for level_codes, drawn in zip(codes, stacked[0].unbind(1), strict=True):
        level_codes.copy_(drawn)
