"""The tree quantizer in numpy and float64, one vector at a time, written from the equations and not from the code."""

from __future__ import annotations

import numpy as np


def search(vector, books):
    """(path of each level, residual before each level, sum of codewords). books[l]: (m^l, m, D)."""
    path, residual, total = 0, np.array(vector, np.float64), np.zeros(len(vector))
    paths, residuals = [], []
    for book in books:
        residuals.append(residual.copy())
        distances = [float(((residual - codeword) ** 2).sum()) for codeword in book[path].astype(np.float64)]
        child = distances.index(min(distances))
        codeword = book[path, child].astype(np.float64)
        path = path * book.shape[1] + child
        residual = residual - codeword
        total = total + codeword
        paths.append(path)
    return paths, residuals, total


def losses(vectors, books, beta):
    """The terms of the printed loss after the reconstruction error, values only, summed over vectors."""
    terms = {f"{kind}_{level}": 0.0 for kind in ("codebook", "commitment") for level in range(1, len(books) + 1)}
    terms |= {"codebook": 0.0, "commitment": 0.0}
    for vector in vectors:
        paths, residuals, total = search(vector, books)
        for level, (path, residual) in enumerate(zip(paths, residuals, strict=True), start=1):
            codeword = books[level - 1].reshape(-1, len(vector))[path]
            error = ((residual - codeword) ** 2).sum()
            terms[f"codebook_{level}"] += error
            terms[f"commitment_{level}"] += beta * error
        error = ((np.asarray(vector, np.float64) - total) ** 2).sum()
        terms["codebook"] += error
        terms["commitment"] += beta * error
    return terms


def latent_gradient(vectors, books, beta):
    """d(all commitment terms)/dz: each level's residual after it, and the last once more, times 2 beta."""
    gradient = np.zeros(np.shape(vectors))
    for row, vector in enumerate(vectors):
        paths, residuals, total = search(vector, books)
        for level, (path, residual) in enumerate(zip(paths, residuals, strict=True)):
            gradient[row] += 2 * beta * (residual - books[level].reshape(-1, len(vector))[path])
        gradient[row] += 2 * beta * (vector - total)
    return gradient


def moving_averages(vectors, books, counts, totals, decay):
    """(codewords, counts, totals) of each level after one batch; counts[l]: (m^l, m), totals[l]: (m^l, m, D)."""
    books, counts, totals = ([np.array(x, np.float64) for x in xs] for xs in (books, counts, totals))
    batch_counts = [np.zeros_like(count) for count in counts]
    batch_totals = [np.zeros_like(total) for total in totals]
    for vector in vectors:
        paths, residuals, _ = search(vector, books)
        for level, (path, residual) in enumerate(zip(paths, residuals, strict=True)):
            parent, child = divmod(path, books[level].shape[1])
            batch_counts[level][parent, child] += 1
            batch_totals[level][parent, child] += residual
    for level in range(len(books)):
        counts[level] = decay * counts[level] + (1 - decay) * batch_counts[level]
        totals[level] = decay * totals[level] + (1 - decay) * batch_totals[level]
        books[level] = totals[level] / counts[level][..., None]
    return books, counts, totals
