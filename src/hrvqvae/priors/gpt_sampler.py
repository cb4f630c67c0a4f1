"""Sample from the transformer with a head for each level, position by position, with a cache of
keys and values.

Four images (a group) go through each layer together, so a layer's weights are read from memory once
per group.

Letters: B images, N = H * W positions, D levels, C hidden units, P embeddings of all levels
together, E units of an embedding, K labels per image (`sampling.expand_labels`). Each image enters
the network once per label. So a group has R rows: copy 0 of its images (with the first label), then
copy 1 (with the second).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hrvqvae.priors import kernels
from hrvqvae.priors.gpt import GPT
from hrvqvae.priors.kernels import (
    FAST,
    FIRST,
    INTERNAL,
    NO_CODE,
    Floats,
    add_products,
    normalize,
    stack,
)
from hrvqvae.priors.sampling import SamplingParams, no_distribution_error
from hrvqvae.utils.compiled import compiled, in_parts

_GROUP = 4  # images per group

# erf(x) = x p(x^2) / q(x^2) for -4 <= x <= 4, with an error below 1e-7. Coefficients of p and q,
# highest power first,
# as in Eigen (MPL 2.0).
_ERF_TOP = tuple(
    map(
        np.float32,
        (
            -2.72614225801306e-10,
            2.77068142495902e-08,
            -2.10102402082508e-06,
            -5.69250639462346e-05,
            -7.34990630326855e-04,
            -2.95459980854025e-03,
            -1.60960333262415e-02,
        ),
    )
)
_ERF_BOTTOM = tuple(
    map(
        np.float32,
        (
            -1.45660718464996e-05,
            -2.13374055278905e-04,
            -1.68282697438203e-03,
            -7.37332916720468e-03,
            -1.42647390514189e-02,
        ),
    )
)


@compiled(**FAST, **INTERNAL)
def _add_network(features: Floats, index: int, weights: Any, normed: Floats, inner: Floats) -> None:
    """Apply two-layer network `index` to features (R, C) and add its output to them; normed and
    inner are scratch.
    """
    norms, widen, widen_bias, narrow, narrow_bias = weights
    rows = len(features)
    normalize(features, norms[index], normed)
    kernels.copy_rows(widen_bias[index], inner)
    add_products(normed, widen[index], inner, FIRST)
    for r in range(rows):
        for c in range(
            inner.shape[1]
        ):  # GELU, with the rational approximation: 13 times as fast as erf
            x = min(
                max(inner[r, c] * np.float32(math.sqrt(0.5)), np.float32(-4.0)), np.float32(4.0)
            )
            squared = x * x
            top = np.float32(0.0)
            bottom = np.float32(0.0)
            for factor in _ERF_TOP:
                top = top * squared + factor
            for factor in _ERF_BOTTOM:
                bottom = bottom * squared + factor
            inner[r, c] *= np.float32(0.5) * (np.float32(1.0) + x * top / bottom)
    kernels.add_rows(narrow_bias[index], features)
    add_products(inner, narrow[index], features, FIRST)


@compiled(**FAST)
def _draw_images(
    begin: int,
    end: int,
    codes: Any,
    kept: Any,
    uniforms: Any,
    base: Floats,
    outer: Any,
    attention: Any,
    networks: Any,
    heads: Any,
    head_networks: Any,
    embeddings: Floats,
    levels: Any,
    attention_heads: int,
    mixing: Floats,
    temperature: float,
    top_k: int,
    top_p: float,
    work: Any,
) -> int:
    """Draw the codes of images begin..end - 1 that are not kept, in place; codes, kept and uniforms
    are (B, D, H, W).

    base is (K * B, N, C), with the bias of `GPT.left`; embeddings (P, E); mixing (K,); levels (D,
    4), per level: symbols, whether it is linked, index of its first embedding, number of
    embeddings. Return -1, or position * D + level of the first code that has no distribution.
    """
    _, num_levels, height, width = codes.shape
    left, above, last_norm = outer
    sum_weights, head_norms, symbols_weights, symbols_bias = heads
    (
        keys,
        values,
        features,
        head_features,
        head_inner,
        logits,
        mixed,
        running_sum,
        sums,
        indices,
        draw_arrays,
        layers_work,
    ) = work
    norms, inputs, inputs_bias, outputs, outputs_bias = attention
    normed, projected, inner, scores = layers_work
    images = end - begin
    copies = len(mixing)
    for position in range(height * width):
        row = position // width
        column = position % width
        for copy in range(copies):
            start = copy * images
            for slot in range(images):
                for c in range(features.shape[1]):
                    features[start + slot, c] = base[copy * len(codes) + begin + slot, position, c]
            add_products(running_sum, left, features, start)  # running_sum of the previous position
            for tap in range(3):
                add_products(
                    sums[row, column + tap], above[tap], features, start
                )  # padded: row - 1 is at row
        for layer in range(len(inputs)):
            normalize(features, norms[layer], normed)
            kernels.copy_rows(inputs_bias[layer], projected)
            add_products(normed, inputs[layer], projected, FIRST)
            for r in range(len(features)):
                kernels.attend(
                    projected,
                    r,
                    position,
                    attention_heads,
                    keys[r, layer],
                    values[r, layer],
                    normed,
                    scores,
                )
            kernels.add_rows(outputs_bias[layer], features)
            add_products(normed, outputs[layer], features, FIRST)
            _add_network(features, layer, networks, normed, inner)
        normalize(features, last_norm, features)
        for slot in range(images):
            indices[slot] = 0
            for unit in range(running_sum.shape[1]):
                running_sum[slot, unit] = 0.0
        for level in range(num_levels):
            symbols = levels[level, 0]
            linked = levels[level, 1]
            first_embedding = levels[level, 2]
            num_embeddings = levels[level, 3]
            needs_logits = False
            for image in range(begin, end):
                needs_logits = needs_logits or not kept[image, level, row, column]
            if needs_logits:
                for r in range(len(features)):
                    for c in range(features.shape[1]):
                        head_features[r, c] = features[r, c]
                for copy in range(copies):
                    add_products(running_sum, sum_weights[level], head_features, copy * images)
                _add_network(head_features, level, head_networks, normed, head_inner)
                normalize(head_features, head_norms[level], normed)
                kernels.copy_rows(symbols_bias[level], logits)
                add_products(normed, symbols_weights[level], logits, FIRST)
            for slot in range(images):
                image = begin + slot
                if not kept[image, level, row, column]:
                    for symbol in range(len(mixed)):
                        mixed[symbol] = 0.0
                    for copy in range(copies):
                        for symbol in range(len(mixed)):
                            mixed[symbol] += mixing[copy] * logits[copy * images + slot, symbol]
                    uniform = uniforms[image, level, row, column]
                    code = kernels.draw(
                        mixed, symbols, uniform, temperature, top_k, top_p, draw_arrays
                    )
                    if code == NO_CODE:
                        return int(position * num_levels + level)
                    codes[image, level, row, column] = code
                indices[slot] = codes[image, level, row, column] + (
                    indices[slot] * symbols if linked else 0
                )
                for unit in range(running_sum.shape[1]):
                    running_sum[slot, unit] += embeddings[
                        first_embedding + indices[slot] % num_embeddings, unit
                    ]
        for slot in range(images):
            for unit in range(running_sum.shape[1]):
                sums[row + 1, column + 1, slot, unit] = running_sum[slot, unit]
    return -1


def _allocate_arrays(
    images: int, copies: int, height: int, width: int, weights: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Return `work` of `_draw_images`: the arrays that it overwrites, for a group of `images`
    images.
    """
    (left, *_), (_, inputs, *_), (_, widen, *_), (*_, symbols_bias), (_, head_widen, *_) = weights
    (units, hidden), rows, symbols = left.shape, images * copies, symbols_bias.shape[1]
    keys, values = np.empty((2, rows, len(inputs), hidden, height * width), np.float32)
    features, head_features, normed = np.empty((3, rows, hidden), np.float32)
    projected = np.empty((rows, 3 * hidden), np.float32)
    scores = np.empty(height * width, np.float32)
    inner = np.empty((rows, widen.shape[2]), np.float32)
    head_inner = np.empty((rows, head_widen.shape[2]), np.float32)
    sums = np.zeros(
        (height + 1, width + 2, images, units), np.float32
    )  # padded: a row above, a column per side
    return (
        keys,
        values,
        features,
        head_features,
        head_inner,
        np.empty((rows, symbols), np.float32),
        np.empty(symbols, np.float32),  # logits, mixed
        np.zeros((images, units), np.float32),
        sums,
        np.empty(images, np.int64),
        kernels.allocate_workspace(symbols),
        (normed, projected, inner, scores),
    )


def _transpose_layers(layers: Iterable[Any]) -> tuple[Floats, Floats]:
    """Stack the transposed weights (inputs, outputs) and biases of linear layers, padded with zeros
    to equal widths.
    """
    linear_layers = list(layers)
    weights = pad_sequence([layer.weight for layer in linear_layers], batch_first=True).transpose(
        1, 2
    )
    biases = pad_sequence([layer.bias for layer in linear_layers], batch_first=True)
    return weights.contiguous().numpy(), biases.numpy()


def _stack_norms(layers: Iterable[Any]) -> Floats:
    return stack([torch.stack([layer.weight, layer.bias]) for layer in layers])


def _collect_weights(prior: GPT) -> tuple[Any, ...]:
    """Return the weights that `_draw_images` takes: outer, attention, networks, heads,
    head_networks.
    """
    layers: Sequence[Any] = list(prior.layers)
    heads: Sequence[Any] = list(prior.heads)
    outer = (
        prior.left.weight.T.contiguous().numpy(),
        prior.above.weight[:, :, 0].permute(2, 1, 0).contiguous().numpy(),
        _stack_norms([prior.norm])[0],
    )
    attention = (
        _stack_norms(layer.attention_norm for layer in layers),
        *_transpose_layers(layer.inputs for layer in layers),
        *_transpose_layers(layer.output for layer in layers),
    )

    def collect_networks(norms: Iterable[Any], blocks: Sequence[Any]) -> tuple[Any, ...]:
        widen = _transpose_layers(block.widen for block in blocks)
        narrow = _transpose_layers(block.narrow for block in blocks)
        return _stack_norms(norms), *widen, *narrow

    networks = collect_networks([layer.network_norm for layer in layers], layers)
    head_networks = collect_networks([head.norm for head in heads], heads)
    before = stack([head.before.weight.T for head in heads])
    output = (
        _stack_norms(head.last_norm for head in heads),
        *_transpose_layers(head.output for head in heads),
    )
    return outer, attention, networks, (before, *output), head_networks


@torch.inference_mode()
def sample_gpt(
    prior: GPT,
    codes: Sequence[Tensor],
    kept: Sequence[Tensor],
    coarser: Sequence[Tensor],
    label: Tensor | None,
    uniforms: Sequence[Tensor],
    mixing: Tensor,
    params: SamplingParams,
) -> None:
    """Draw the codes that are not kept, as `sampling.sample_plain` does, with the same
    arguments.
    """
    stacked = [torch.stack(list(tensors), 1) for tensors in (codes, kept, uniforms)]
    batch, num_levels, height, width = stacked[0].shape
    base = prior.compute_base(coarser, label, batch * len(mixing))
    sizes = np.array(prior.embeddings.sizes)
    levels = np.stack(
        [
            [level.symbols for level in prior.levels],
            [index > 0 and level.linked for index, level in enumerate(prior.levels)],
            np.cumsum(sizes) - sizes,
            sizes,
        ],
        1,
    ).astype(np.int64)
    tables: Sequence[Any] = list(prior.embeddings.tables)
    weights = _collect_weights(prior)
    constants = (
        (base + prior.left.bias).contiguous().numpy(),
        *weights,
        torch.cat([table.weight for table in tables]).numpy(),
        levels,
        prior.config.heads,
        mixing.numpy(),
        *params.values(),
    )
    arrays = [tensor.numpy() for tensor in stacked]

    def draw_groups(start: int, stop: int) -> int:
        failures = [-1]
        for begin in range(start, stop, _GROUP):
            end = min(begin + _GROUP, stop)
            work = _allocate_arrays(end - begin, len(mixing), height, width, weights)
            failures.append(int(_draw_images(begin, end, *arrays, *constants, work)))
        return max(failures)

    failure = max(in_parts(batch, draw_groups))
    if failure >= 0:
        position, level = divmod(failure, num_levels)
        raise no_distribution_error(prior.levels[level], *divmod(position, width))
    for level_codes, drawn in zip(codes, stacked[0].unbind(1), strict=True):
        level_codes.copy_(drawn)
