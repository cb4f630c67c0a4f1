"""A transformer prior, position by position: keys and values are kept, so each position is computed once.

Letters: B images, N = H * W positions, C hidden units. Guided images are seen several times: see `guidance.Guidance`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrvqvae.priors.guidance import guidance_of
from hrvqvae.priors.sampling_params import NO_CODE, SamplingParams, draw_code, no_distribution
from hrvqvae.priors.transformer.network import Transformer, TransformerLayer


def _advance(layer: TransformerLayer, features: Tensor, keys: Tensor, values: Tensor, place: int) -> Tensor:
    """One layer at one position: features (B, 1, C); keys, values (B, heads, N, C / heads) get the position's own."""
    queries, key, value = layer.split(layer.inputs(layer.attention_norm(features)))
    keys[:, :, place], values[:, :, place] = key[:, :, 0], value[:, :, 0]
    scores = queries @ keys[:, :, : place + 1].transpose(-1, -2) * queries.shape[-1] ** -0.5
    attended = scores.softmax(-1) @ values[:, :, : place + 1]
    features = features + layer.output(attended.transpose(1, 2).reshape(features.shape))
    return features + layer.network(features)


@torch.inference_mode()
def sample_transformer(
    prior: Transformer, codes: Sequence[Tensor], known: Sequence[Tensor], coarser: Sequence[Tensor],
    label: Tensor | None, uniforms: Sequence[Tensor], draw: SamplingParams,
) -> None:  # fmt: skip
    """Fill in the codes that are not known, in raster order; arguments as `plain.sample_plain`."""
    batch, hidden, heads = len(codes[0]), prior.config.hidden_units, prior.config.heads
    guidance = guidance_of(prior.level, label, draw)
    base = prior.base([guidance.each(paths) for paths in coarser], guidance.label, batch * len(guidance.weights))
    seen, number, _ = base.shape
    layers = [layer for layer in prior.layers if isinstance(layer, TransformerLayer)]
    keys = torch.zeros(len(layers), seen, heads, number, hidden // heads)
    values = torch.zeros_like(keys)
    flat, given, drawn = (only.view(batch, -1) for (only,) in (codes, known, uniforms))
    before = torch.full((seen,), prior.level.symbols)
    for place in range(number):
        features = (base[:, place] + prior.embedding(before))[:, None]
        for index, layer in enumerate(layers):
            features = _advance(layer, features, keys[index], values[index], place)
        if not given[:, place].all():
            logits = guidance.mixed(prior.head(prior.norm(features[:, 0]))).numpy()
            for image in range(batch):
                if not given[image, place]:
                    code = draw_code(logits[image], float(drawn[image, place]), *draw.values())
                    if code == NO_CODE:
                        raise no_distribution(prior.level.number, *divmod(place, prior.level.grid[1]))
                    flat[image, place] = code
        before = guidance.each(flat[:, place])
