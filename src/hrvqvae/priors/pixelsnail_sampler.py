"""The network of one PixelSNAIL prior, position by position: its trunk as `trunk_sampler` computes it, then its head.

Letters: B images, (H, W) grid, C hidden units, m symbols. Guided images are seen several times, S = K * B in all, and
their logits mixed: see `guidance.Guidance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrvqvae.priors.pixelsnail import PixelSNAIL
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
    trunk_weights,
)
from hrvqvae.utils.compiled import compiled


@compiled(**OPTIONS)
def _row(
    begin: int, end: int, row: int, codes: Any, known: Any, uniforms: Any, base: Floats, above: Floats,
    conditions: Floats, kept: Any, weights: Any, table: Floats, head: Floats, head_bias: Floats, heads: int,
    mixing: Floats, temperature: float, top_k: int, top_p: float,
) -> int:  # fmt: skip
    """Draw the codes of a row of the images begin..end - 1 that are not known; -> -1, or the column that has no code.

    codes, known, uniforms (B, H, W); mixing (K,); table (taps, m, C), head (C, m); the rest as `trunk_sampler.advance`.
    """
    height, width = codes.shape[1:]
    features = np.empty(base.shape[2], np.float32)
    logits = np.empty(len(head_bias), np.float32)
    mixed = np.empty(len(head_bias), np.float32)
    reach = (kept[0].shape[3] - width) // 2
    work = room(weights, height * width)
    for image in range(begin, end):
        for x in range(width):
            mixed[:] = 0.0
            for copy in range(len(mixing)):
                seen = copy * len(codes) + image
                features[:] = base[seen, x]
                add_first(features, table, codes[image], row, x, reach)
                advance(features, seen, row, x, above, conditions, kept, weights, heads, work)
                if not known[image, row, x]:
                    for c in range(len(features)):
                        features[c] = elu(features[c])
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
    label: Tensor | None, uniforms: Sequence[Tensor], params: SamplingParams,
) -> None:  # fmt: skip
    """Fill in the codes that are not known, in raster order; arguments as `plain.sample_plain`."""
    arrays = [only.numpy() for (only,) in (codes, known, uniforms)]
    batch = len(codes[0])
    guidance = guidance_of(prior.level, label, params)
    seen = [guidance.each(paths) for paths in coarser]
    rows = Rows(prior, prior.base(seen, guidance.label, batch * len(guidance.weights)))
    head = prior.head
    assert head.bias is not None
    fixed = (
        rows.kept, trunk_weights(prior), first_table(prior, prior.embedding.weight),
        head.weight[:, :, 0, 0].T.contiguous().numpy(), head.bias.numpy(), prior.config.attention_heads,
        guidance.weights.numpy(), *params.values(),
    )  # fmt: skip

    def some(begin: int, end: int, row: int, parts: tuple[Floats, Floats, Floats]) -> int:
        return int(_row(begin, end, row, *arrays, *parts, *fixed))

    row, column = rows.draw(batch, some)
    if column >= 0:
        raise no_distribution(prior.level.number, row, column)
