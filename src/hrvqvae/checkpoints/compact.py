"""Weights in a quarter to a half of their bytes, for models that are passed on: `hrvqvae export --compact`.

In the file, a matrix or filter of a prior or a progressive decoder is int8 with a float32 scale a row, `NAME:scale`;
every other number is float16 where it fits; and `total` of codebooks is left out, for which `NAME:product` stands.
Whoever reads the file gets the names of the weights: matrices in float32, and codewords * count for `total`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_SCALE, _PRODUCT = ":scale", ":product"


def compacted(weights: Mapping[str, Tensor], *, matrices: bool) -> dict[str, Tensor]:
    """What the file holds; `matrices` says whether matrices become int8."""
    found = dict[str, Tensor]()
    for name, tensor in weights.items():
        if matrices and tensor.is_floating_point() and tensor.ndim > 1:
            scale = tensor.float().flatten(1).abs().amax(1).clamp(min=1e-12) / 127
            found[name] = (tensor.float() / _by_row(scale, tensor)).round().to(torch.int8)
            found[name + _SCALE] = scale
        elif name.endswith(".total") and name.removesuffix("total") + "count" in weights:
            found[name + _PRODUCT] = torch.zeros(1, dtype=torch.int8)
        else:
            half = tensor.half() if tensor.is_floating_point() else tensor
            found[name] = half if half.isfinite().all() else tensor
    return found


def restored(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights from what a file holds; those of a file that is not compact are as they are."""
    found = dict[str, Tensor]()
    for name, tensor in stored.items():
        if name + _SCALE in stored:
            found[name] = tensor * _by_row(stored[name + _SCALE], tensor)
        elif name.endswith(_PRODUCT):
            codewords, count = (stored[name.removesuffix(f"total{_PRODUCT}") + one] for one in ("codewords", "count"))
            found[name.removesuffix(_PRODUCT)] = codewords.float() * count.float()[..., None]
        elif not name.endswith(_SCALE):
            found[name] = tensor
    return found


def _by_row(scale: Tensor, tensor: Tensor) -> Tensor:
    return scale.view(-1, *(1 for _ in tensor.shape[1:]))
