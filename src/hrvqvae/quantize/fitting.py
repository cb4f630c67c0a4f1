"""Linked codebooks fitted to vectors that lie there whole: a k-means start, then passes that each refit all levels.

Shapes: vectors (N, D), which come in batches (n, D); L levels, m codewords a codebook, m^L leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.codebook import LevelCodebooks
from hrvqvae.quantize.kmeans import kmeans
from hrvqvae.quantize.quantized import require_finite
from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import task, waiting

Vectors = NDArray[Any] | Tensor | Iterable[Any]
_RICH = 8  # vectors a codeword, for which codebooks of a level start apart; below it they start from one
_PRIOR = 2.0  # vectors that the mean of a level's codewords counts for in each of its codebooks


def batches_of(vectors: Vectors, batch: int, dim: int) -> Iterator[Tensor]:
    """An array (N, D), or those of an iterable, as float32 batches of at most `batch`. Raises as `TreeVQ.fit`."""
    arrays: Iterable[Any] = [vectors] if hasattr(vectors, "shape") else vectors
    for array in arrays:
        shape, kind = tuple(np.shape(array)), str(getattr(array, "dtype", type(array).__name__))
        if len(shape) != 2 or shape[1] != dim or "float" not in kind:
            raise InputError(f"vectors are {kind} {shape}; they must be floating-point (N, {dim})")
        for first in range(0, shape[0], batch):
            some = array[first : first + batch]
            yield some.detach().float() if isinstance(some, Tensor) else torch.from_numpy(np.array(some, np.float32))


@torch.no_grad()
def fit(
    quantizer: ResidualQuantizer, batches: Callable[[], Iterator[Tensor]], start: int, passes: int, seed: int
) -> None:
    """Fit all levels to the vectors of `batches()`; `start` vectors, drawn evenly, are for the k-means start.

    Each pass finds the paths of all vectors with the quantizer's own search and makes each codeword the mean of what it
    stands for, so that a pass is a step of Lloyd's algorithm for the leaves. Codewords without a vector then become
    copies, a little apart, of those of their codebook that have most.
    """
    generator = torch.Generator().manual_seed(seed)
    device = quantizer.levels[0].count.device
    sample, keys, number, largest = torch.empty(0), torch.empty(0, dtype=torch.float64), 0, 1
    for some in batches():
        require_finite(some, ())
        keys = torch.cat([keys, torch.rand(len(some), generator=generator, dtype=torch.float64)])
        sample = torch.cat([sample.reshape(-1, some.shape[1]), some.cpu()])
        keys, kept = keys.topk(min(start, len(keys)))
        sample, number, largest = sample[kept], number + len(some), max(largest, len(some))
    if number == 0:
        raise InputError("no vectors to fit to")
    waiting("k-means start")
    even = quantizer.config.beam > 1  # a beam can look beyond the nearest: clusters of like size
    quantizer.initialize(sample.to(device), generator, start=partial(_start, even=even))
    leaves = quantizer.levels[-1].num_codewords
    with task("fit", number * passes, "vectors") as advance:
        for _ in range(passes):
            count, total = torch.zeros(leaves, device=device), torch.zeros(leaves, sample.shape[1], device=device)
            for some in batches():
                some = some.to(device)
                path = quantizer.codeword_indices(quantizer.encode(some))[-1]
                count += vq.counts(path, leaves)
                total.index_add_(0, path, some)
                advance(len(some))
            _refit(quantizer, count, total, largest / number)
            _restart(quantizer, generator, number)


def _start(
    level: LevelCodebooks, residual: Tensor, path: Tensor, generator: torch.Generator, weight: float, *, even: bool
) -> None:
    """As `LevelCodebooks.initialize`, but where a codebook alone has too few vectors."""
    if len(residual) >= _RICH * level.num_codewords:
        level.initialize(residual, path, generator, weight, even)
    else:  # one of all of them, which the passes refine where there is more
        shared, sizes = kmeans(residual, level.count.shape[1], generator)
        every = torch.arange(level.num_codewords, device=residual.device)
        level.set_codewords(every, shared.repeat(len(level.count), 1), sizes.repeat(len(level.count)))


def _refit(quantizer: ResidualQuantizer, count: Tensor, total: Tensor, weight: float) -> None:
    """Codewords from the counts (m^L,) and sums (m^L, D) of the leaves; `weight` as of `LevelCodebooks.initialize`.

    With few vectors a codeword leans on the mean of the codewords of its number in all codebooks of its level.
    """
    size, dim = quantizer.config.codewords, total.shape[1]
    sums = [(count, total)]
    for _ in quantizer.levels[1:]:
        sums.append((sums[-1][0].view(-1, size).sum(1), sums[-1][1].view(-1, size, dim).sum(1)))
    parents = total.new_zeros(1, dim)
    for level, (count, total) in zip(quantizer.levels, reversed(sums), strict=True):
        number = count.view(-1, size, 1)
        left = total.view(-1, size, dim) - number * parents.unsqueeze(1)
        prior = left.sum(0) / number.sum(0).clamp(min=1)
        codewords = (left + _PRIOR * prior) / (number + _PRIOR) if len(number) > 1 else prior[None]
        every = torch.arange(level.num_codewords, device=count.device)
        level.set_codewords(every, codewords.flatten(0, 1), count * weight)
        parents = (parents.unsqueeze(1) + codewords).flatten(0, 1)


def _restart(quantizer: ResidualQuantizer, generator: torch.Generator, number: int) -> None:
    """Split the fullest codewords of codebooks where others have none of the `number` vectors, at rich levels."""
    for index, level in enumerate(quantizer.levels):
        if number < _RICH * level.num_codewords:
            return
        dead = level.count == 0
        fullest = level.count.argsort(dim=1, descending=True, stable=True).gather(1, (dead.cumsum(1) - 1).clamp(min=0))
        book, child = (dead & (level.count.gather(1, fullest) > 0)).nonzero(as_tuple=True)
        if len(book):
            size = level.count.shape[1]
            target, source = book * size + child, book * size + fullest[book, child]
            words, count = level.lookup(source).detach(), level.count.view(-1)[source] / 2
            apart = (
                torch.randn(words.shape, generator=generator, dtype=torch.float32).to(words.device) * words.std() / 20
            )
            level.set_codewords(source, words - apart, count)
            level.set_codewords(target, words + apart, count)
            quantizer.copy_subtrees(index, source, target)
