"""The equations of vector quantization, as functions of tensors.

Shapes: N vectors of width D; the codebooks of a level are (num_books, m, D), and the index of a
codeword in its level is book * m + child.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def means_or_kept(count: Tensor, total: Tensor, codewords: Tensor) -> Tensor:
    """Return the means total (..., m, D) / count (..., m) (VQVAE's appendix A.1, equations 6 to 8).

    A codeword whose count has decayed to zero stays as it is in `codewords` (..., m, D).
    """
    absent = (count <= 1e-5).unsqueeze(-1)
    count = count.unsqueeze(-1).masked_fill(absent, 1.0)
    means = total / count
    return means.lerp_(codewords, absent.to(means.dtype))  # up to 30 times faster than `where`


def counts(index: Tensor, num_codewords: int) -> Tensor:
    """Count how often each codeword occurs in `index` (N,) int64: (num_codewords,) int64."""
    # not `bincount`, which waits for the device
    index = index.reshape(-1)
    zeros = index.new_zeros(num_codewords)
    return zeros.scatter_add_(0, index, torch.ones_like(index))


def perplexity(count: Tensor) -> float:
    """Return exp(entropy) of the shares of the counts, from 1 to the number of codewords."""
    share = count.double() / count.sum()
    entropy = torch.special.entr(share).sum()
    return float(entropy.exp())


def members_of_books(books: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Return each codebook that occurs in `books` (N,), with the positions where it occurs."""
    present, sizes = torch.unique(books, return_counts=True)
    positions = torch.split(torch.argsort(books, stable=True), sizes.tolist())
    return zip(present.tolist(), positions, strict=True)
