"""Residual quantization in numpy and float64, one vector at a time, written from the equations and
not from the code.

books[l]: (num_books, m, D) of each level; `linked` levels make a group, whose indices begin anew.
"""

from fractions import Fraction

import numpy as np


def search(vector, books, linked):
    """(path of each level, residuals r_0 to r_L)."""
    codes = []
    paths = []
    residuals = [np.array(vector, np.float64)]
    for level, book in enumerate(books):
        codes = [] if level % linked == 0 else codes
        path = 0
        for code, size in codes:
            path = path * size + code
        distances = [
            float(((residuals[-1] - codeword) ** 2).sum())
            for codeword in book[path].astype(np.float64)
        ]
        child = distances.index(min(distances))
        residuals.append(residuals[-1] - book[path, child].astype(np.float64))
        codes.append((child, book.shape[1]))
        paths.append(path * book.shape[1] + child)
    return paths, residuals


def losses(vectors, books, linked, beta, level_betas):
    """Terms of the printed loss after the reconstruction error, summed over vectors; of VQ's
    without level_betas.
    """
    terms = {}
    for vector in vectors:
        _, residuals = search(vector, books, linked)
        errors = [float((residual**2).sum()) for residual in residuals[1:]]
        named = [("", errors[-1], beta)]
        if level_betas:
            named += [
                (f"_{level}", *each)
                for level, each in enumerate(zip(errors, level_betas, strict=True), start=1)
            ]
        for name, error, weight in named:
            terms[f"codebook{name}"] = terms.get(f"codebook{name}", 0) + error
            if weight:
                terms[f"commitment{name}"] = terms.get(f"commitment{name}", 0) + weight * error
    return terms


def gradients(vectors, books, linked, beta, level_betas):
    """Of all terms: by the vectors (through the commitments), and by the codewords of each level
    (through the rest).
    """
    of_vectors = np.zeros(np.shape(vectors))
    of_books = [np.zeros(book.shape) for book in books]
    for row, vector in enumerate(vectors):
        paths, residuals = search(vector, books, linked)
        of_vectors[row] += 2 * beta * residuals[-1]
        for level, path in enumerate(paths):
            own = of_books[level].reshape(-1, len(vector))[path]
            own -= 2 * residuals[-1]
            if level_betas:
                of_vectors[row] += 2 * level_betas[level] * residuals[level + 1]
                own -= 2 * residuals[level + 1]
    return of_vectors, of_books


def batch_sums(vectors, books, linked):
    """(how often each codeword was chosen, the sum of what chose it) of each level: (number, m),
    (number, m, D).
    """
    counts = [np.zeros(book.shape[:2]) for book in books]
    totals = [np.zeros(book.shape) for book in books]
    for vector in vectors:
        paths, residuals = search(vector, books, linked)
        for level, path in enumerate(paths):
            counts[level].reshape(-1)[path] += 1
            totals[level].reshape(-1, len(vector))[path] += residuals[level]
    return counts, totals


def beam(vector, books, width, weight):
    """The index of each level that a beam ends in, from whole numbers, so that equal costs are
    equal.

    Codeword i of one level has the codebook i modulo their number at the next level.
    """
    kept = [(Fraction(0), [], tuple(vector))]  # what the levels before add, indices, residual
    for level, book in enumerate(books, start=1):
        longer = []
        for before, indices, residual in kept:
            above = indices[-1] % len(book) if indices else 0
            for child, codeword in enumerate(book[above]):
                left = tuple(r - c for r, c in zip(residual, codeword, strict=True))
                distance = sum(x * x for x in left)
                index = above * len(book[above]) + child
                longer.append(
                    (distance + before, weight * distance + before, [*indices, index], left)
                )
        longer.sort(key=lambda path: path[0])  # stable
        kept = [path[1:] for path in longer[: width if level < len(books) else 1]]
    return kept[0][1]
