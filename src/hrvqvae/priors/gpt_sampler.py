"""Sample from the transformer with a head for each level, position by position, without computing anything twice.

Four images go through each layer together: the layer's weights do not fit in the near caches, and are read once for
all four images.

Letters: B images, N = H * W positions, D levels, C hidden units, E path units, A layers, K labels under which the
network computes an image's logits (`sampling.expand_labels`), P embeddings of all levels.
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
from hrvqvae.priors.kernels import (
    FAST,
    FIRST,
    NO_CODE,
    PART,
    Floats,
    add_products,
    allocate_workspace,
    normalize,
    stack,
)
from hrvqvae.priors.sampling import SamplingParams, no_distribution_error
from hrvqvae.utils.compiled import compiled, in_parts

_GROUP = 4  # images that go through each layer together

# erf(x) = x p(x^2) / q(x^2) for -4 <= x <= 4, with an error below 1e-7. Coefficients of p and q, highest power first,
# as in Eigen (MPL 2.0).
_ERF_TOP = tuple(map(np.float32, (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04,
    -2.95459980854025e-03, -1.60960333262415e-02,
)))  # fmt: skip
_ERF_BOTTOM = tuple(map(np.float32, (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02,
)))  # fmt: skip


@compiled(**FAST, **PART)
def _add_network(features: Floats, index: int, weights: Any, normed: Floats, inner: Floats) -> None:
    """Add the output of a two-layer network to its input, features (R, C).

    Args:
        index: selects the network in the weights.
        normed: (R, C), overwritten.
        inner: (R, width of the network), overwritten.
    """
    norms, widens, widens_bias, narrows, narrows_bias = weights
    rows = len(features)
    normalize(features, norms[index], normed)
    kernels.copy_rows(widens_bias[index], inner)
    add_products(normed, FIRST, widens[index], inner, FIRST)
    for r in range(rows):
        for c in range(inner.shape[1]):  # GELU; the rational function is 13 times as fast as erf
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
    features: Floats, position: int, attention: Any, networks: Any, heads: int, last_norm: Floats, keys: Floats,
    values: Floats, work: Any,
) -> None:  # fmt: skip
    """Apply all layers and the last normalization to the features (R, C) of all images at a position."""
    norms, inputs, inputs_bias, outputs, outputs_bias = attention
    normed, projected, inner, scores = work
    rows = len(features)
    for layer in range(len(inputs)):
        normalize(features, norms[layer], normed)
        kernels.copy_rows(inputs_bias[layer], projected)
        add_products(normed, FIRST, inputs[layer], projected, FIRST)
        for r in range(rows):
            kernels.attend(projected, r, position, heads, keys[r, layer], values[r, layer], normed, scores)
        kernels.add_rows(outputs_bias[layer], features)
        add_products(normed, FIRST, outputs[layer], features, FIRST)
        _add_network(features, layer, networks, normed, inner)
    normalize(features, last_norm, features)


@compiled(**FAST)
def _draw_images(
    begin: int, end: int, codes: Any, kept: Any, uniforms: Any, base: Floats, outer: Any, attention: Any,
    networks: Any, heads: Any, head_networks: Any, table: Floats, levels: Any, attention_heads: int, mixing: Floats,
    temperature: float, top_k: int, top_p: float, work: Any,
) -> int:  # fmt: skip
    """Draw the codes (B, D, H, W) that are not kept, of the images begin..end - 1 together.

    Args:
        base: (K * B, N, C), as `GPT.base` returns it, with the bias of `GPT.left`.
        outer, attention, networks, heads, head_networks: as `_collect_weights` returns them.
        table: (P, E), the embeddings of all levels.
        levels: (D, 4), per level: symbols, whether it is linked, index of its first embedding, number of embeddings.
        work: as `_allocate_arrays` returns it.

    Returns:
        -1, or position * D + level of the first code that has no distribution.
    """
    _, num_levels, height, width = codes.shape
    left, above, last_norm = outer
    sum_weights, last_norms, symbols_weights, symbols_bias = heads
    keys, values, features, x, head_inner, logits, mixed, running_sum, sums, indices, draw_arrays, layers_work = work
    normed = layers_work[0]
    images, copies = end - begin, len(mixing)
    for position in range(height * width):
        row, column = position // width, position % width
        for copy in range(copies):
            start = copy * images
            for image in range(images):
                for c in range(features.shape[1]):
                    features[start + image, c] = base[copy * len(codes) + begin + image, position, c]
            add_products(running_sum, FIRST, left, features, start)
            for tap in range(3):
                add_products(sums[row, column + tap], FIRST, above[tap], features, start)
        _apply_layers(features, position, attention, networks, attention_heads, last_norm, keys, values, layers_work)
        for image in range(images):
            indices[image] = 0
            for unit in range(running_sum.shape[1]):
                running_sum[image, unit] = 0.0
        for level in range(num_levels):
            symbols, first_embedding, size = levels[level, 0], levels[level, 2], levels[level, 3]
            missing = False
            for image in range(begin, end):
                missing = missing or not kept[image, level, row, column]
            if missing:
                for r in range(len(features)):
                    for c in range(features.shape[1]):
                        x[r, c] = features[r, c]
                for copy in range(copies):
                    add_products(running_sum, FIRST, sum_weights[level], x, copy * images)
                _add_network(x, level, head_networks, normed, head_inner)
                normalize(x, last_norms[level], normed)
                kernels.copy_rows(symbols_bias[level], logits)
                add_products(normed, FIRST, symbols_weights[level], logits, FIRST)
            for index in range(images):
                image = begin + index
                if not kept[image, level, row, column]:
                    for symbol in range(len(mixed)):
                        mixed[symbol] = 0.0
                    for copy in range(copies):
                        for symbol in range(len(mixed)):
                            mixed[symbol] += mixing[copy] * logits[copy * images + index, symbol]
                    uniform = uniforms[image, level, row, column]
                    code = kernels.draw(mixed, symbols, uniform, temperature, top_k, top_p, draw_arrays)
                    if code == NO_CODE:
                        return int(position * num_levels + level)
                    codes[image, level, row, column] = code
                indices[index] = codes[image, level, row, column] + (
                    indices[index] * symbols if levels[level, 1] else 0
                )
                for unit in range(running_sum.shape[1]):
                    running_sum[index, unit] += table[first_embedding + indices[index] % size, unit]
        for image in range(images):
            for unit in range(running_sum.shape[1]):
                sums[row + 1, column + 1, image, unit] = running_sum[image, unit]
    return -1


def _allocate_arrays(images: int, copies: int, height: int, width: int, weights: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arrays in which `_draw_images` works; rows are ordered by copy, then by image."""
    (left, *_), (_, inputs, *_), (_, widens, *_), (*_, symbols_bias), (_, head_widens, *_) = weights
    (units, hidden), rows, symbols = left.shape, images * copies, symbols_bias.shape[1]
    keys, values = np.empty((2, rows, len(inputs), hidden, height * width), np.float32)
    features, x, normed = np.empty((3, rows, hidden), np.float32)
    projected, scores = np.empty((rows, 3 * hidden), np.float32), np.empty(height * width, np.float32)
    inner = np.empty((rows, widens.shape[2]), np.float32)
    head_inner = np.empty((rows, head_widens.shape[2]), np.float32)
    sums = np.zeros((height + 1, width + 2, images, units), np.float32)  # zeros: a row above, a column on each side
    return (
        keys, values, features, x, head_inner, np.empty((rows, symbols), np.float32), np.empty(symbols, np.float32),
        np.zeros((images, units), np.float32), sums, np.empty(images, np.int64), allocate_workspace(symbols),
        (normed, projected, inner, scores),
    )  # fmt: skip


def _transpose_layers(layers: Iterable[Any]) -> tuple[Floats, Floats]:
    """Return the transposed weights (inputs, outputs) and the biases of linear layers.

    Zeros pad the outputs to the width of the widest layer.
    """
    linear_layers = list(layers)
    width = max(layer.out_features for layer in linear_layers)
    pads = [(0, width - layer.out_features) for layer in linear_layers]
    pad = torch.nn.functional.pad
    weights = stack([pad(layer.weight.T, padding) for layer, padding in zip(linear_layers, pads, strict=True)])
    return weights, stack([pad(layer.bias, padding) for layer, padding in zip(linear_layers, pads, strict=True)])


def _stack_norms(layers: Iterable[Any]) -> Floats:
    return stack([torch.stack([layer.weight, layer.bias]) for layer in layers])


def _collect_weights(prior: GPT) -> tuple[Any, ...]:
    """Return the weights of: input layers and last norm, attention, layers' networks, heads, heads' networks."""
    layers: Sequence[Any] = list(prior.layers)
    heads: Sequence[Any] = list(prior.heads)
    outer = (
        prior.left.weight.T.contiguous().numpy(), prior.above.weight[:, :, 0].permute(2, 1, 0).contiguous().numpy(),
        _stack_norms([prior.norm])[0],
    )  # fmt: skip
    attention = (
        _stack_norms(layer.attention_norm for layer in layers), *_transpose_layers(layer.inputs for layer in layers),
        *_transpose_layers(layer.output for layer in layers),
    )  # fmt: skip
    networks, head_networks = (
        (
            _stack_norms(norms), *_transpose_layers(block.widen for block in blocks),
            *_transpose_layers(block.narrow for block in blocks),
        )
        for blocks, norms in (
            (layers, [layer.network_norm for layer in layers]), (heads, [head.norm for head in heads])
        )
    )  # fmt: skip
    output = _stack_norms(head.last_norm for head in heads), *_transpose_layers(head.output for head in heads)
    return outer, attention, networks, (stack([head.before.weight.T for head in heads]), *output), head_networks


@torch.inference_mode()
def sample_gpt(
    prior: GPT, codes: Sequence[Tensor], kept: Sequence[Tensor], coarser: Sequence[Tensor],
    label: Tensor | None, uniforms: Sequence[Tensor], mixing: Tensor, params: SamplingParams,
) -> None:  # fmt: skip
    """Draw the codes that are not kept, position by position; arguments as in `sampling.sample_plain`."""
    stacked = [torch.stack(list(tensors), 1) for tensors in (codes, kept, uniforms)]
    batch, num_levels, height, width = stacked[0].shape
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
    weights = _collect_weights(prior)
    constants = (
        (base + prior.left.bias).contiguous().numpy(), *weights, torch.cat([table.weight for table in tables]).numpy(),
        levels, prior.config.heads, mixing.numpy(), *params.values(),
    )  # fmt: skip
    arrays = [tensor.numpy() for tensor in stacked]

    def draw_images(start: int, stop: int) -> int:
        failures = [-1]
        for begin in range(start, stop, _GROUP):
            end = min(begin + _GROUP, stop)
            work = _allocate_arrays(end - begin, len(mixing), height, width, weights)
            failures.append(int(_draw_images(begin, end, *arrays, *constants, work)))
        return max(failures)

    failure = max(in_parts(batch, draw_images))
    if failure >= 0:
        position, level = divmod(failure, num_levels)
        raise no_distribution_error(prior.levels[level], *divmod(position, width))
    for level_codes, drawn in zip(codes, stacked[0].unbind(1), strict=True):
        level_codes.copy_(drawn)
