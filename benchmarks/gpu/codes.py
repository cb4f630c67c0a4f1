"""The searches that a GPU runs beside those of the CPU: the same codes, apart from ties.

Shapes: N vectors, D their width, L levels, m codewords a codebook; level l's codebooks are (m^(l-1), m, D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Row
from benchmarks.search import make_problem
from hrvqvae.quantize.search import Search
from hrvqvae.quantize.search.compiled import search_compiled
from hrvqvae.quantize.search.tensors import search_tensors

TOLERANCE = 1e-5
"""Relative difference of two squared distances, in float64, up to which they are a tie."""
BEAM, WEIGHT = 4, 0.1
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
        errors: all other vectors.
        worst: the largest relative excess of a vector whose codes differ; 0 where there is none.
    """

    vectors: int
    equal: int
    ties: int
    errors: int
    worst: float


def compare(latents: Tensor, books: Sequence[Tensor], expected: Tensor, found: Tensor, excess: Excess) -> Agreement:
    """Compare paths (L, N) that two searches found, on the CPU; where codes differ, both are judged in float64."""
    differ = (expected != found).any(0)
    exact = [book.double() for book in books]
    spans = [
        torch.maximum(*(excess(latents[some].double(), exact, one[:, some]) for one in (expected, found)))
        for some in differ.nonzero().flatten().split(_SOME)  # type: ignore[no-untyped-call]
    ]
    span = torch.cat([torch.zeros(0, dtype=torch.double), *spans])
    ties = int((span <= TOLERANCE).sum())
    different = len(span)
    worst = float(span.max()) if different else 0.0
    return Agreement(len(latents), len(latents) - different, ties, different - ties, worst)


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


@dataclass(frozen=True)
class Searched:
    """One kind of search: what the CPU runs, the tensor operations that a GPU runs, and how a path is judged."""

    cpu: Search
    gpu: Search
    excess: Excess
    flat: bool = False


SEARCHES = {
    "greedy": Searched(search_compiled, search_tensors, greedy_excess),
    f"beam of {BEAM}": Searched(
        partial(search_compiled, width=BEAM, coarse_weight=WEIGHT),
        partial(search_tensors, width=BEAM, coarse_weight=WEIGHT),
        partial(beam_excess, width=BEAM, weight=WEIGHT),
    ),
    "flat": Searched(search_compiled, search_tensors, greedy_excess, flat=True),
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
            found = kind.gpu(case.latents.to(device), [book.to(device) for book in books]).cpu()
            agreement = compare(case.latents, books, kind.cpu(case.latents, books), found, kind.excess)
            rows.append(
                {
                    "search": name, "levels": len(books), "codewords": books[0].shape[1], "width": width,
                    "vectors": vectors, "equal": agreement.equal / vectors, "ties": agreement.ties,
                    "errors": agreement.errors, "worst": agreement.worst, "tolerance": TOLERANCE,
                }
            )  # fmt: skip
    return rows
