"""One prior for all levels, position by position: its trunk as `trunk_sampler` computes it, then level after level.

Letters: B images, (H, W) grid, D levels, C hidden units, U units of a head, m the most symbols of a level, P codewords
of all levels together. Guided images are seen several times, S = K * B in all, and their logits mixed: see
`guidance.Guidance`. The paths of all levels lie in one table: a path's number is counted from where its level begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrvqvae.priors.depth import DepthHead, DepthPrior
from hrvqvae.priors.sampling import NO_CODE, SamplingParams, draw_code, guidance_of, no_distribution
from hrvqvae.priors.trunk_sampler import (
    OPTIONS,
    Floats,
    Rows,
    add_first,
    add_product,
    advance,
    elu,
    first_table,
    room,
    stack,
    trunk_weights,
)
from hrvqvae.utils.compiled import compiled


@compiled(**OPTIONS)
def _head(features: Floats, level: int, paths: Any, heads: Any, work: Any, logits: Floats) -> None:
    """logits (m,) of a level from the trunk's features (C,) and the numbers in the table of the paths (D,) before it.

    heads as `_head_weights`; work: arrays (C,), (U,), (2C,) and (C,).
    """
    tables, narrows, narrows_bias, widens, widens_bias, outputs, outputs_bias = heads
    summed, narrow, wide, last = work
    hidden = len(features)
    summed[:] = features
    for before in range(level):
        summed += tables[level, paths[before]]
    for c in range(hidden):
        last[c] = elu(summed[c])
    narrow[:] = narrows_bias[level]
    add_product(last, narrows[level], narrow)
    for c in range(len(narrow)):
        narrow[c] = elu(narrow[c])
    wide[:] = widens_bias[level]
    add_product(narrow, widens[level], wide)
    for c in range(hidden):
        last[c] = elu(summed[c] + wide[c] / (np.float32(1.0) + np.exp(-wide[hidden + c])))
    logits[:] = outputs_bias[level]
    add_product(last, outputs[level], logits)


@compiled(**OPTIONS)
def _row(
    begin: int, end: int, row: int, codes: Any, known: Any, uniforms: Any, paths: Any, base: Floats, above: Floats,
    conditions: Floats, kept: Any, weights: Any, table: Floats, heads: Any, symbols: Any, linked: Any, starts: Any,
    attention_heads: int, mixing: Floats, temperature: float, top_k: int, top_p: float,
) -> int:  # fmt: skip
    """Draw the codes of a row of the images begin..end - 1 that are not known.

    codes, known, uniforms and paths (the numbers in the table) are (B, D, H, W); symbols, linked, starts (of a level in
    the table) are (D,); mixing (K,); table (taps, P, C); the rest as `trunk_sampler.advance`.

    Returns:
        -1, or column * D + level of the first code that has no distribution.
    """
    _, levels, height, width = codes.shape
    hidden, inner = heads[1].shape[1:]
    features = np.empty((len(mixing), hidden), np.float32)
    of_head = (
        np.empty(hidden, np.float32), np.empty(inner, np.float32), np.empty(2 * hidden, np.float32),
        np.empty(hidden, np.float32),
    )  # fmt: skip
    most = heads[6].shape[1]
    logits, mixed = np.empty(most, np.float32), np.empty(most, np.float32)
    reach = (kept[0].shape[3] - width) // 2
    work = room(weights, height * width)
    for image in range(begin, end):
        for x in range(width):
            for copy in range(len(mixing)):
                seen = copy * len(codes) + image
                features[copy] = base[seen, x]
                for level in range(levels):
                    add_first(features[copy], table, paths[image, level], row, x, reach)
                advance(features[copy], seen, row, x, above, conditions, kept, weights, attention_heads, work)
            path = 0
            for level in range(levels):
                if not known[image, level, row, x]:
                    mixed[:] = 0.0
                    for copy in range(len(mixing)):
                        _head(features[copy], level, paths[image, :, row, x], heads, of_head, logits)
                        for symbol in range(most):
                            mixed[symbol] += mixing[copy] * logits[symbol]
                    code = draw_code(mixed[: symbols[level]], uniforms[image, level, row, x], temperature, top_k, top_p)
                    if code == NO_CODE:
                        return int(x * levels + level)
                    codes[image, level, row, x] = code
                path = codes[image, level, row, x] + (path * symbols[level] if linked[level] else 0)
                paths[image, level, row, x] = starts[level] + path
    return -1


def _padded(tensors: Sequence[Tensor], length: int) -> Floats:
    """Tensors whose last dimension is at most `length` as one array, zeros behind them."""
    return stack([torch.nn.functional.pad(one, (0, length - one.shape[-1])) for one in tensors])


def _head_weights(prior: DepthPrior, starts: Sequence[int]) -> tuple[Any, ...]:
    """Of all heads: tables (D, P, C) of the embeddings of paths, then layers, (inputs, outputs), and their biases."""
    heads = [head for head in prior.heads if isinstance(head, DepthHead)]
    most = max(level.symbols for level in prior.levels)
    tables = torch.zeros(len(heads), sum(prior.codewords), prior.config.hidden_units)
    for index, head in enumerate(heads):
        for start, embedding in zip(starts, head.embeddings, strict=False):
            tables[index, start : start + embedding.num_embeddings] = embedding.weight
    layers: list[Sequence[Any]] = [[head.narrow for head in heads], [head.widen for head in heads]]
    inner = [
        array
        for layer in layers
        for array in (stack([one.weight[:, :, 0, 0].T for one in layer]), stack([one.bias for one in layer]))
    ]
    outputs: Sequence[Any] = [head.output for head in heads]
    return (
        tables.numpy(), *inner, _padded([one.weight[:, :, 0, 0].T for one in outputs], most),
        _padded([one.bias for one in outputs], most),
    )  # fmt: skip


@torch.inference_mode()
def sample_depth(
    prior: DepthPrior, codes: Sequence[Tensor], known: Sequence[Tensor], coarser: Sequence[Tensor],
    label: Tensor | None, uniforms: Sequence[Tensor], params: SamplingParams,
) -> None:  # fmt: skip
    """Fill in the codes that are not known, position by position; arguments as `plain.sample_plain`."""
    together = [torch.stack(list(some), 1) for some in (codes, known, uniforms)]
    batch, levels = together[0].shape[:2]
    arrays = [some.numpy() for some in (*together, torch.zeros_like(together[0]))]
    guidance = guidance_of(prior.level, label, params)
    rows = Rows(prior, prior.base(coarser, guidance.label, batch * len(guidance.weights)))
    starts = np.cumsum([0, *prior.codewords[:-1]])
    embeddings: Sequence[Any] = list(prior.embeddings)
    fixed = (
        rows.kept, trunk_weights(prior), first_table(prior, torch.cat([one.weight for one in embeddings])),
        _head_weights(prior, starts.tolist()), np.array([level.symbols for level in prior.levels]),
        np.array([level.linked for level in prior.levels]), starts, prior.config.attention_heads,
        guidance.weights.numpy(), *params.values(),
    )  # fmt: skip

    def some(begin: int, end: int, row: int, parts: tuple[Floats, Floats, Floats]) -> int:
        return int(_row(begin, end, row, *arrays, *parts, *fixed))

    row, place = rows.draw(batch, some)
    if place >= 0:
        column, level = divmod(place, levels)
        raise no_distribution(prior.levels[level].number, row, column)
    for own, drawn in zip(codes, together[0].unbind(1), strict=True):
        own.copy_(drawn)
