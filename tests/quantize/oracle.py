"""The paper's quantization as code: numpy and float64, one vector at a time.

Written from the equations of docs/method.md, not from the package. Symbols are those of that page.
`codebooks[l]` is (number of codebooks, m, D), coarse first; `linked` levels make a group, whose
first level has one codebook.
"""

from collections import Counter
from fractions import Fraction

import numpy as np


def search(z, codebooks, linked):
    """Linked codebooks: return the indices i_1 to i_L, and the residuals r_0 to r_L."""
    indices = []
    residuals = [np.array(z, np.float64)]
    for level, codebook in enumerate(codebooks):
        # the codeword of the coarser level decides which codebook is searched
        i = 0 if level % linked == 0 else indices[-1]
        codewords = codebook[i].astype(np.float64)

        # k_l = argmin of ||r_(l-1) - c||^2
        k = int(((residuals[-1] - codewords) ** 2).sum(-1).argmin())

        # i_l = i_(l-1) * m + k_l, and r_l = r_(l-1) - e_l
        indices.append(i * len(codewords) + k)
        residuals.append(residuals[-1] - codewords[k])
    return indices, residuals


def losses(vectors, codebooks, linked, beta, level_beta):
    """Loss: return its commitments by name, summed over vectors, and their gradient by the vectors.

    With a `level_beta` of 0, only the term of z_q.
    """
    terms = Counter()
    of_vectors = np.zeros_like(vectors)
    for row, z in enumerate(vectors):
        # r_(l-1) - e_l = r_l, and z - z_q = r_L
        _, (_, *residuals) = search(z, codebooks, linked)
        errors = [float((residual**2).sum()) for residual in residuals]
        terms["commitment"] += beta * errors[-1]
        of_vectors[row] += 2 * beta * residuals[-1]
        if level_beta:
            for level, residual in enumerate(residuals):
                terms[f"commitment_{level + 1}"] += level_beta * errors[level]
                of_vectors[row] += 2 * level_beta * residual
    return terms, of_vectors


def batch_sums(vectors, codebooks, indices):
    """Moving averages: return, for each level, how many vectors chose each codeword, and the sum of
    the residuals that did. `indices` are those of the levels, by vector.
    """
    counts = [np.zeros(codebook.shape[:2]) for codebook in codebooks]
    totals = [np.zeros(codebook.shape) for codebook in codebooks]
    for residual, chosen in zip(vectors, indices, strict=True):
        for level, index in enumerate(chosen):
            counts[level].reshape(-1)[index] += 1
            totals[level].reshape(-1, len(residual))[index] += residual
            residual = residual - codebooks[level].reshape(-1, len(residual))[index]
    return counts, totals


def beam(z, codebooks, width, coarse_weight):
    """Beam search: return the indices of the best branch, from whole numbers, so that equal costs
    are equal.
    """
    # branches: coarse_weight * (||r_1||^2 + ...) so far, indices, residual
    branches = [(Fraction(0), [], tuple(z))]
    for level, codebook in enumerate(codebooks, start=1):
        children = []
        for coarser, indices, residual in branches:
            i = indices[-1] if len(codebook) > 1 else 0
            for k, codeword in enumerate(codebook[i]):
                left = tuple(r - c for r, c in zip(residual, codeword, strict=True))
                distance = sum(x * x for x in left)
                index = i * len(codebook[i]) + k
                cost = distance + coarser
                children.append((cost, coarse_weight * distance + coarser, [*indices, index], left))
        children.sort(key=lambda child: child[0])  # stable: the first of equals
        branches = [child[1:] for child in children[: width if level < len(codebooks) else 1]]
    return branches[0][1]
