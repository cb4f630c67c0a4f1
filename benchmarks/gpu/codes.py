"""The searches that a GPU runs beside those of the CPU: the same codes, apart from ties.

Shapes: N vectors, D their width, L levels, m codewords a codebook; level l's codebooks are (m^(l-1), m, D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common import Row
from benchmarks.search import make_problem
from hrvqvae.quantize.search import Beam, TreeSearch, TreeSearcher, search_flat_fastest, search_tree_fastest
from hrvqvae.quantize.search.beam import search_beam
from hrvqvae.quantize.search.chunked import search_flat_chunked, search_tree_chunked

TOLERANCE = 1e-5
"""Relative difference of two squared distances, in float64, up to which they are a tie."""
BEAM = Beam(4, 0.1)
_SOME = 1024  # vectors that are judged at once

Excess = Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]
"""(latents (N, D), codebooks, paths (L, N)), all float64 -> (N,): how far each path is from what its search looks for,
relative; infinite where it is no path of that tree."""


@dataclass(frozen=True)
class Agreement:
    """Results of two searches for the same vectors, compared.

    Attributes:
        vectors: N.
        equal: vectors whose codes are equal at every level.
        ties: vectors whose codes differ, and both are within the tolerance of the best.
        errors: all other vectors, and those whose z_q is not the sum of their codewords.
        worst: the largest relative excess of a vector whose codes differ; 0 where there is none.
    """

    vectors: int
    equal: int
    ties: int
    errors: int
    worst: float


def compare(
    latents: Tensor, books: Sequence[Tensor], expected: TreeSearch, found: TreeSearch, excess: Excess
) -> Agreement:
    """Compare what two searches found, on the CPU; where codes differ, both paths are judged in float64."""
    differ = (expected.paths != found.paths).any(0)
    wrong = _sums_wrong(books, found) & ~differ
    exact = [book.double() for book in books]
    spans = [
        torch.maximum(*(excess(latents[some].double(), exact, one.paths[:, some]) for one in (expected, found)))
        for some in differ.nonzero().flatten().split(_SOME)  # type: ignore[no-untyped-call]
    ]
    span = torch.cat([torch.zeros(0, dtype=torch.double), *spans])
    ties = int((span <= TOLERANCE).sum())
    different, sums = len(span), int(wrong.sum())
    worst = float(span.max()) if different else 0.0
    return Agreement(len(latents), len(latents) - different, ties, different - ties + sums, worst)


def _sums_wrong(books: Sequence[Tensor], found: TreeSearch) -> Tensor:
    """(N,) bool: where z_q is not the sum of the path's codewords, up to rounding; NaN never is."""
    known = _is_path(books, found.paths)
    chosen = [book.flatten(0, 1)[path.where(known, 0)].double() for book, path in zip(books, found.paths, strict=True)]
    scale = torch.stack([codeword.square().sum(-1) for codeword in chosen]).sum(0).sqrt()
    off = (found.quantized.double() - torch.stack(chosen).sum(0)).square().sum(-1).sqrt()
    return ~(known & (off <= TOLERANCE * scale))


def _is_path(books: Sequence[Tensor], paths: Tensor) -> Tensor:
    """(N,) bool: whether each codeword is one of the codebook that the codeword before it names."""
    size = books[0].shape[1]
    parents = torch.cat([torch.zeros_like(paths[:1]), paths[:-1]])
    return (paths.div(size, rounding_mode="floor") == parents).all(0)


def greedy_excess(latents: Tensor, books: Sequence[Tensor], paths: Tensor) -> Tensor:
    """By how much the codeword of some level is farther than the nearest of its codebook, relative (see `Excess`)."""
    known = _is_path(books, paths)
    residual, parent, worst = latents, torch.zeros_like(paths[0]), torch.zeros_like(latents[:, 0])
    for book, path in zip(books, paths.where(known, 0), strict=True):
        distances = (residual.unsqueeze(1) - book[parent]).square().sum(-1)
        chosen = distances.gather(1, (path % book.shape[1]).unsqueeze(1)).squeeze(1)
        worst = torch.maximum(worst, _above(chosen, distances.amin(1)))
        residual, parent = residual - book.flatten(0, 1)[path], path
    return worst.where(known, torch.inf)


def beam_excess(latents: Tensor, books: Sequence[Tensor], paths: Tensor, width: int, weight: float) -> Tensor:
    """By how much a path costs more, or less, than the one that a beam ends in, relative (see `Excess`).

    0 where two paths are a tie at the border of the beam, so that rounding decides which of them is kept.
    """
    known = _is_path(books, paths)
    best, border = _beam(latents, books, width, weight)
    residual, left = latents, []
    for book, path in zip(books, paths.where(known, 0), strict=True):
        residual = residual - book.flatten(0, 1)[path]
        left.append(residual.square().sum(-1))
    cost = left[-1] + weight * torch.stack([*left[:-1], torch.zeros_like(left[0])]).sum(0)
    excess = torch.maximum(_above(cost, best), _above(best, cost))
    return excess.where(border > TOLERANCE, 0.0).where(known, torch.inf)


def _beam(latents: Tensor, books: Sequence[Tensor], width: int, weight: float) -> tuple[Tensor, Tensor]:
    """(N,) each: the least cost that a beam ends in, and the least relative gap between what it kept and what not."""
    size, count = books[0].shape[1], len(latents)
    residual, path = latents.unsqueeze(1), torch.zeros(count, 1, dtype=torch.long)
    before, border = latents.new_zeros(count, 1), torch.full((count,), torch.inf, dtype=latents.dtype)
    for level, book in enumerate(books, start=1):
        after = residual.unsqueeze(2) - book[path]
        distance = after.square().sum(-1)
        cost, order = (distance + before.unsqueeze(2)).flatten(1).sort(1)
        if level == len(books):
            return cost[:, 0], border
        if cost.shape[1] > width:
            border = torch.minimum(border, _above(cost[:, width], cost[:, width - 1]))
        kept = order[:, :width]
        before = (weight * distance + before.unsqueeze(2)).flatten(1).gather(1, kept)
        path = path.gather(1, kept // size) * size + kept % size
        residual = after.flatten(1, 2).gather(1, kept.unsqueeze(2).expand(-1, -1, latents.shape[1]))
    raise ValueError("there are no codebooks")


def _above(one: Tensor, other: Tensor) -> Tensor:
    """(one - other) / one, and 0 where `one` is not larger: exact hits of a codeword have distance 0."""
    return torch.where(one > other, (one - other) / one, 0.0)


def flat_as_tree(latents: Tensor, codebook: Tensor, search: Callable[[Tensor, Tensor], Tensor]) -> TreeSearch:
    """A flat search as one of a single level: codes and codewords."""
    nearest = search(latents, codebook)
    return TreeSearch(nearest.unsqueeze(0), codebook[nearest])


def _beam_of_a_gpu(latents: Tensor, books: Sequence[Tensor]) -> TreeSearch:
    return search_beam(latents, books, BEAM.width, BEAM.coarse_weight)


@dataclass(frozen=True)
class Searched:
    """One kind of search: what the CPU runs, the tensor operations that a GPU runs, and how a path is judged."""

    cpu: TreeSearcher
    gpu: TreeSearcher
    excess: Excess
    flat: bool = False


SEARCHES = {
    "greedy": Searched(search_tree_fastest, search_tree_chunked, greedy_excess),
    f"beam of {BEAM.width}": Searched(
        BEAM, _beam_of_a_gpu,
        lambda latents, books, paths: beam_excess(latents, books, paths, BEAM.width, BEAM.coarse_weight),
    ),
    "flat": Searched(
        lambda latents, books: flat_as_tree(latents, books[0][0], search_flat_fastest),
        lambda latents, books: flat_as_tree(latents, books[0][0], search_flat_chunked),
        greedy_excess, flat=True,
    ),
}  # fmt: skip


def codes_rows(device: torch.device, vectors: int, trees: Sequence[tuple[int, int, int]]) -> list[Row]:
    """Rows with search, levels, codewords, width, vectors, equal (a share), ties, errors, worst, tolerance.

    On a CPU it is the tensor operations that are compared with the compiled loops.

    Args:
        device: what runs the tensor operations.
        trees: (levels, codewords a codebook, width) of each; its flat codebook has as many codewords as it has leaves.
    """
    rows = []
    for levels, codewords, width in trees:
        case = make_problem(levels, codewords, vectors, width)
        for name, kind in SEARCHES.items():
            books = [case.flat.unsqueeze(0)] if kind.flat else list(case.books)
            there = kind.gpu(case.latents.to(device), [book.to(device) for book in books])
            found = TreeSearch(there.paths.cpu(), there.quantized.cpu())
            agreement = compare(case.latents, books, kind.cpu(case.latents, books), found, kind.excess)
            rows.append(
                {
                    "search": name, "levels": len(books), "codewords": books[0].shape[1], "width": width,
                    "vectors": vectors, "equal": agreement.equal / vectors, "ties": agreement.ties,
                    "errors": agreement.errors, "worst": agreement.worst, "tolerance": TOLERANCE,
                }
            )  # fmt: skip
    return rows
