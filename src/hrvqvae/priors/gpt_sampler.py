"""The transformer with a head for each level, position by position: each number is computed once.

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
from hrvqvae.priors.pixelsnail_sampler import OPTIONS, Floats, add_product, attend_at, normalize, stack
from hrvqvae.priors.sampling import NO_CODE, SamplingParams, draw_code, no_distribution
from hrvqvae.utils.compiled import compiled, in_parts


@compiled(**OPTIONS)
def _network(features: Floats, one: int, weights: Any, normed: Floats, inner: Floats) -> None:
    """features (C,) += the two-layer network of that number; normed (C,) and inner (its width,) are overwritten."""
    norms, widens, widens_bias, narrows, narrows_bias = weights
    normalize(features, norms[one], normed)
    inner[:] = widens_bias[one]
    add_product(normed, widens[one], inner)
    for c in range(len(inner)):
        inner[c] *= np.float32(0.5) * (np.float32(1.0) + np.float32(math.erf(inner[c] * np.float32(math.sqrt(0.5)))))
    features += narrows_bias[one]
    add_product(inner, narrows[one], features)


@compiled(**OPTIONS)
def _images(
    begin: int, end: int, codes: Any, known: Any, uniforms: Any, base: Floats, first: Any, attention: Any,
    networks: Any, heads: Any, head_networks: Any, table: Floats, levels: Any, attention_heads: int, mixing: Floats,
    temperature: float, top_k: int, top_p: float,
) -> int:  # fmt: skip
    """Draw the codes (B, D, H, W) of the images begin..end - 1 that are not known.

    base (K * B, N, C); table (P, E); levels (D, 4): symbols, whether linked, where its paths begin, how many there are;
    the rest as `_weights`. -> -1, or position * D + level of the first code that has no distribution.
    """
    _, count, height, width = codes.shape
    left, above, last_norm = first
    norms, inputs, inputs_bias, outputs, outputs_bias = attention
    before_weights, last_norms, symbols_weights, symbols_bias = heads
    units, hidden = left.shape
    shape = (len(mixing), len(inputs), hidden, height * width)
    keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
    features, x = np.empty((len(mixing), hidden), np.float32), np.empty(hidden, np.float32)
    normed, three = np.empty(hidden, np.float32), np.empty(3 * hidden, np.float32)
    wide, half = np.empty(networks[1].shape[2], np.float32), np.empty(head_networks[1].shape[2], np.float32)
    scores, before = np.empty(height * width, np.float32), np.empty(units, np.float32)
    logits, mixed = np.empty(symbols_bias.shape[1], np.float32), np.empty(symbols_bias.shape[1], np.float32)
    for image in range(begin, end):
        seen = np.zeros((height + 1, width + 2, units), np.float32)  # a row above and a column at each side
        before[:] = 0.0
        for place in range(height * width):
            row, column = place // width, place % width
            for copy in range(len(mixing)):
                own = features[copy]
                own[:] = base[copy * len(codes) + image, place]
                add_product(before, left, own)
                for tap in range(3):
                    add_product(seen[row, column + tap], above[tap], own)
                for layer in range(len(inputs)):
                    attend_at(
                        own, place, attention_heads, norms[layer], inputs[layer], inputs_bias[layer], outputs[layer],
                        outputs_bias[layer], keys[copy, layer], values[copy, layer], three, normed, scores,
                    )  # fmt: skip
                    _network(own, layer, networks, normed, wide)
                x[:] = own
                normalize(x, last_norm, own)
            before[:] = 0.0
            path = 0
            for level in range(count):
                symbols, linked, start, size = levels[level]
                if not known[image, level, row, column]:
                    mixed[:] = 0.0
                    for copy in range(len(mixing)):
                        x[:] = features[copy]
                        add_product(before, before_weights[level], x)
                        _network(x, level, head_networks, normed, half)
                        normalize(x, last_norms[level], normed)
                        logits[:] = symbols_bias[level]
                        add_product(normed, symbols_weights[level], logits)
                        for symbol in range(len(logits)):
                            mixed[symbol] += mixing[copy] * logits[symbol]
                    uniform = uniforms[image, level, row, column]
                    code = draw_code(mixed[:symbols], uniform, temperature, top_k, top_p)
                    if code == NO_CODE:
                        return int(place * count + level)
                    codes[image, level, row, column] = code
                path = codes[image, level, row, column] + (path * symbols if linked else 0)
                before += table[start + path % size]
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
    place = max(in_parts(batch, lambda first, last: int(_images(first, last, *arrays, *fixed))))
    if place >= 0:
        raise no_distribution(prior.levels[place % count].number, *divmod(place // count, width))
    for own, drawn in zip(codes, together[0].unbind(1), strict=True):
        own.copy_(drawn)
