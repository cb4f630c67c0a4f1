"""Fit codebooks to an array or to batches: a k-means start, then passes that refit all levels."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.codebook import LevelCodebooks
from hrvqvae.quantize.residual import ResidualQuantizer
from hrvqvae.utils.errors import InputError, NonFiniteError
from hrvqvae.utils.progress import tracked, waiting

Vectors = NDArray[Any] | Tensor | Iterable[Any]
MOST_VALUES = 2**24  # of the vectors that are held at once: 64 MiB
# A level with at least so many vectors per codeword is dense: each of its codebooks has its own
# k-means, and codewords of two vectors are split.
_ENOUGH_PER_CODEWORD = 8
# A codeword of a linked level is fitted as if so many more vectors had chosen it, at the mean of
# all residuals with the same code in any codebook of the level.
_PSEUDO_VECTORS = 2.0


def batches_of(vectors: Vectors, dim: int) -> Iterator[Tensor]:
    """Yield float32 batches of an array (N, D) or several, at most 65,536 vectors and 64 MiB each.
    An empty array is an empty batch.

    Raises InputError for other shapes, and NonFiniteError for NaN.
    """
    most_vectors = max(1, min(65_536, MOST_VALUES // dim))
    arrays: Iterable[Any] = [vectors] if hasattr(vectors, "shape") else vectors
    for array in arrays:
        shape = tuple(array.shape)
        if len(shape) != 2 or shape[1] != dim:
            raise InputError(f"vectors have the shape {shape}; it must be (N, {dim})")
        for first in range(0, max(1, shape[0]), most_vectors):
            rows = array[first : first + most_vectors]
            if not isinstance(rows, Tensor):
                rows = torch.from_numpy(np.array(rows, np.float32))
            if not rows.isfinite().all():
                raise NonFiniteError("some vectors are NaN or infinite")
            yield rows.detach().float()


@torch.no_grad()
def fit(
    quantizer: ResidualQuantizer,
    vectors: Vectors,
    start: int,
    passes: int,
    seed: int,
) -> None:
    """Fit all levels to vectors, after a k-means start on `start` of them.

    Each pass is a step of Lloyd's algorithm with the quantizer's own search, with `_split_fullest`
    between the passes.
    """
    rng = torch.Generator().manual_seed(seed)
    dim = quantizer.config.dim
    sample, batch_sizes = _draw_sample(batches_of(vectors, dim), start, dim, rng)
    num_vectors = sum(batch_sizes)
    if num_vectors == 0:
        raise InputError("no vectors to fit to")
    waiting("k-means start")
    device = quantizer.levels[0].count.device
    quantizer.initialize(sample.to(device), rng, least=_ENOUGH_PER_CODEWORD)
    weight = max(batch_sizes) / num_vectors  # of a vector, so that counts are those of a batch
    for index in range(passes):
        if index > 0:
            _split_fullest(quantizer, rng, num_vectors, weight)
        title = f"fit, pass {index + 1} of {passes}"
        batches = tracked(batches_of(vectors, dim), title, num_vectors, len)
        _run_pass(quantizer, batches, weight)


def _draw_sample(
    batches: Iterator[Tensor],
    size: int,
    dim: int,
    rng: torch.Generator,
) -> tuple[Tensor, list[int]]:
    """Return a uniform sample of at most `size` vectors, on the CPU, and the sizes of batches."""
    sample = torch.empty(0, dim)
    keys = torch.empty(0, dtype=torch.float64)
    batch_sizes = []
    for batch in batches:
        batch_sizes.append(len(batch))

        # each vector gets a random key; those of the largest keys stay in the sample
        new_keys = torch.rand(len(batch), generator=rng, dtype=torch.float64)
        keys = torch.cat([keys, new_keys])
        sample = torch.cat([sample, batch.cpu()])
        keys, kept = keys.topk(min(size, len(keys)))
        sample = sample[kept]
    return sample, batch_sizes


def _run_pass(
    quantizer: ResidualQuantizer,
    batches: Iterator[Tensor],
    weight: float,
) -> None:
    """Search for all vectors, and refit all levels to the residuals that chose each codeword."""
    levels = quantizer.levels
    # in float64: beside the sum of millions float32 loses small residuals
    counts = [torch.zeros_like(level.count, dtype=torch.float64) for level in levels]
    totals = [torch.zeros_like(level.codewords, dtype=torch.float64) for level in levels]
    for batch in batches:
        vectors = batch.to(counts[0].device)
        indices, _, residuals = quantizer.descend(vectors)
        for count, total, index, residual in zip(counts, totals, indices, residuals, strict=False):
            count += vq.counts(index, count.numel()).view_as(count)
            total.flatten(0, 1).index_add_(0, index, residual.double())
    _refit(levels, counts, totals, weight)


def _refit(
    levels: Sequence[LevelCodebooks],
    counts: Sequence[Tensor],
    totals: Sequence[Tensor],
    weight: float,
) -> None:
    """Set codewords to the means of the residuals that chose them, by counts (num_books, m) and
    sums (num_books, m, D).

    In levels of several codebooks a mean includes `_PSEUDO_VECTORS`. A codeword without vectors
    becomes the mean of these alone, or 0 in a single codebook. Each vector adds `weight` to the
    count of its codeword. The sums are overwritten.
    """
    for level, count, total in zip(levels, counts, totals, strict=True):
        # `parent_shift` (K, 1, D): how far this pass has moved the sum of the codewords down to
        # each codeword of the coarser level. The residuals were taken before. At the first level of
        # a group of linked levels it is 0: moves of earlier groups are neglected.
        is_linked = level.num_books > 1
        if not is_linked:
            parent_shift = total.new_zeros(())
        total -= count.unsqueeze(-1) * parent_shift

        # the means, in linked levels with pseudo-vectors; in place, since leaves may be many
        num_vectors = count.sum(0).clamp(min=1)
        mean_of_code = total.sum(0) / num_vectors.unsqueeze(-1)
        codewords = mean_of_code.unsqueeze(0)
        if is_linked:
            total += _PSEUDO_VECTORS * mean_of_code
            total /= (count + _PSEUDO_VECTORS).unsqueeze(-1)
            codewords = total

        if level is not levels[-1]:
            shift = codewords - level.codewords + parent_shift
            parent_shift = shift.flatten(0, 1).unsqueeze(1)
        level.set_codewords(codewords.flatten(0, 1), count.flatten() * weight)


def _split_fullest(
    quantizer: ResidualQuantizer,
    rng: torch.Generator,
    num_vectors: int,
    weight: float,
) -> None:
    """Split the fullest codewords of each codebook in two, as long as the codebook has unused
    codewords.

    A codeword is split if it has more vectors than leaves below it. In a dense level
    (`_ENOUGH_PER_CODEWORD`) two vectors are enough.
    """
    leaves = math.prod(quantizer.config.sizes)  # below the root
    for level, codebooks in enumerate(quantizer.levels):
        leaves //= codebooks.size  # below a codeword of this level
        is_dense = num_vectors >= _ENOUGH_PER_CODEWORD * codebooks.num_codewords
        most_vectors = 1 if is_dense else leaves  # of a codeword that is not split

        # The k-th unused codeword of a codebook takes half of its k-th fullest one. At codewords
        # that are used, `rank` and `partner` mean nothing.
        unused = codebooks.count == 0
        rank = (unused.cumsum(1) - 1).clamp(min=0)
        by_fullness = codebooks.count.argsort(dim=1, descending=True, stable=True)
        partner = by_fullness.gather(1, rank)

        # a half more, since counts are rounded products of `weight` and numbers of vectors
        is_full = codebooks.count.gather(1, partner) > weight * (most_vectors + 0.5)
        book, child = (unused & is_full).nonzero(as_tuple=True)
        target = book * codebooks.size + child
        source = book * codebooks.size + partner[book, child]
        codewords = codebooks.lookup(source)
        half = codebooks.count.view(-1)[source] / 2
        noise = torch.randn(codewords.shape, generator=rng, dtype=torch.float32)
        spread = codebooks.codewords.std(correction=0)
        offset = noise.to(codewords.device) * spread / 20

        # The copy of the subtree gets half its counts, as `target` has half the count of `source`.
        codebooks.set_codewords(codewords + offset, half, target)
        quantizer.copy_subtrees(level, source, target)

        # Now both get the same count, and `source` a copy of the copy, with the halved counts.
        codebooks.set_codewords(codewords - offset, half, source)
        quantizer.copy_subtrees(level, target, source)
