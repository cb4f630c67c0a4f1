"""Fit codebooks to an array or to batches: a k-means start, then passes that refit all levels.

Shapes: N vectors (N, D) in batches (n, D); L levels, m codewords per codebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.codebook import LevelCodebooks
from hrvqvae.quantize.quantized import require_finite
from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import task, waiting

Vectors = NDArray[Any] | Tensor | Iterable[Any]
_RICH = 8  # minimum vectors per codeword for a k-means in each codebook, and for codewords of coarser levels to split
_SHRINKAGE = 2.0  # without a `shrinkage` in the configuration


def batches_of(vectors: Vectors, batch: int, dim: int) -> Iterator[Tensor]:
    """Yield an array (N, D) or an iterable of arrays in float32 batches; raise InputError for other types or shapes."""
    arrays: Iterable[Any] = [vectors] if hasattr(vectors, "shape") else vectors
    for array in arrays:
        shape, kind = tuple(np.shape(array)), str(getattr(array, "dtype", type(array).__name__))
        if len(shape) != 2 or shape[1] != dim or "float" not in kind:
            raise InputError(f"vectors are {kind} {shape}; they must be floating-point (N, {dim})")
        for first in range(0, shape[0], batch):
            part = array[first : first + batch]
            yield part.detach().float() if isinstance(part, Tensor) else torch.from_numpy(np.array(part, np.float32))


@torch.no_grad()
def fit(
    quantizer: ResidualQuantizer, batches: Callable[[], Iterator[Tensor]], start: int, passes: int, seed: int
) -> None:
    """Fit all levels to the vectors of `batches()`, after a k-means start on `start` of them.

    Each pass is a step of Lloyd's algorithm with the quantizer's own search. Then codewords without a vector split the
    fullest ones of their codebook, if these have more vectors than leaves below; with many vectors in any case. With
    `shrinkage` only those of the finest level do.
    """
    rng, device = torch.Generator().manual_seed(seed), quantizer.levels[0].count.device
    sample, keys, count, largest = torch.empty(0), torch.empty(0, dtype=torch.float64), 0, 1
    for part in batches():
        require_finite(part, ())
        keys = torch.cat([keys, torch.rand(len(part), generator=rng, dtype=torch.float64)])
        sample = torch.cat([sample.reshape(-1, part.shape[1]), part.cpu()])
        keys, kept = keys.topk(min(start, len(keys)))
        sample, count, largest = sample[kept], count + len(part), max(largest, len(part))
    if count == 0:
        raise InputError("no vectors to fit to")
    waiting("k-means start")
    even = quantizer.config.beam > 1  # a beam makes more of clusters of similar size
    quantizer.initialize(sample.to(device), rng, even=even, rich=_RICH)
    with task("fit", count * passes, "vectors") as advance:
        for _ in range(passes):
            counts = [torch.zeros_like(level.count) for level in quantizer.levels]
            totals = [torch.zeros_like(level.codewords) for level in quantizer.levels]
            for part in batches():
                chosen, residuals = quantizer.descend(part.to(device))
                for (index, _), residual, sizes, total in zip(chosen, residuals, counts, totals, strict=False):
                    sizes += vq.counts(index, sizes.numel()).view_as(sizes)
                    total.flatten(0, 1).index_add_(0, index, residual)
                advance(len(part))
            _refit(quantizer.levels, counts, totals, largest / count)
            _split_fullest(quantizer, rng, count, largest / count)


def _refit(levels: Sequence[LevelCodebooks], counts: Sequence[Tensor], totals: Sequence[Tensor], weight: float) -> None:
    """Set the codewords from counts (num_books, m) and sums (num_books, m, D) of the residuals that chose them.

    Several codebooks are shrunk (`vq.shrink`). `weight` is the weight of a vector in the codewords' counts.
    """
    moved = totals[0].new_zeros(0)  # (K, D), how far the sums of codewords down to the coarser level moved
    for level, count, total in zip(levels, counts, totals, strict=True):
        old, above = level.codewords.detach(), total.new_zeros(level.num_books, 1, total.shape[-1])
        if level.num_books > 1:
            above[slice(None) if level.table is None else level.table, 0] = moved
        if level.table is not None:
            above[0] = 0  # of parents without a codebook, which moved in many directions
        left = total - count.unsqueeze(-1) * above
        shared = left.sum(0) / count.sum(0).clamp(min=1).unsqueeze(-1)
        codewords = shared[None]
        if level.num_books > 1:
            codewords = vq.shrink(count, left, shared, level.shrinkage or _SHRINKAGE)
        if level.shared is not None:
            level.shared.copy_(shared)
        if level.table is not None:
            codewords[0], count[0] = shared, count.sum(0)
        moved = (codewords - old + above).flatten(0, 1)
        every = torch.arange(level.num_codewords, device=count.device)
        level.set_codewords(every, codewords.flatten(0, 1), count.flatten() * weight)


def _split_fullest(quantizer: ResidualQuantizer, rng: torch.Generator, count: int, weight: float) -> None:
    """Let codewords without a vector split the fullest of their codebook; each of `count` vectors counts `weight`."""
    leaves = math.prod(quantizer.config.sizes)
    for index, level in enumerate(quantizer.levels):
        leaves //= level.size
        if level.shrinkage and leaves > 1:
            continue
        least = weight * ((1 if count >= _RICH * level.num_codewords else leaves) + 0.5)
        dead = level.count == 0
        if level.table is not None:
            dead[0] = False
        fullest = level.count.argsort(dim=1, descending=True, stable=True).gather(1, (dead.cumsum(1) - 1).clamp(min=0))
        book, child = (dead & (level.count.gather(1, fullest) > least)).nonzero(as_tuple=True)
        if len(book):
            target, source = book * level.size + child, book * level.size + fullest[book, child]
            codewords, half = level.lookup(source).detach(), level.count.view(-1)[source] / 2
            noise = torch.randn(codewords.shape, generator=rng, dtype=torch.float32).to(codewords.device)
            apart = noise * codewords.std() / 20
            level.set_codewords(source, codewords - apart, half)
            level.set_codewords(target, codewords + apart, half)
            quantizer.copy_subtrees(index, source, target)
