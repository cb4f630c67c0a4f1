"""The searches that a GPU runs beside those of the CPU: the same codes, apart from ties.

Shapes: N vectors, D their width, L levels, m codewords a codebook; level l's codebooks are (m^(l-1), m, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Row
from benchmarks.search import TOLERANCE, exact_search, make_problem
from hrvqvae.quantize.search import Search
from hrvqvae.quantize.search.compiled import search_compiled
from hrvqvae.quantize.search.tensors import search_tensors


@dataclass(frozen=True)
class Searched:
    """One kind of search: what the CPU runs, the tensor operations that a GPU runs, and its options."""

    cpu: Search
    gpu: Search
    width: int = 1
    coarse_weight: float = 0.0
    flat: bool = False

    @classmethod
    def beam(cls, width: int, coarse_weight: float) -> Searched:
        """A search that keeps several paths."""
        cpu, gpu = (partial(one, width=width, coarse_weight=coarse_weight) for one in (search_compiled, search_tensors))
        return cls(cpu, gpu, width, coarse_weight)


SEARCHES = {
    "greedy": Searched(search_compiled, search_tensors),
    "beam of 4": Searched.beam(4, 0.1),
    "flat": Searched(search_compiled, search_tensors, flat=True),
}


def compare(latents: Tensor, books: Sequence[Tensor], expected: Tensor, found: Tensor, kind: Searched) -> Row:
    """Paths (L, N) that two searches found for vectors (N, D), compared.

    Returns:
        equal (a share), ties (vectors whose codes differ where rounding decides), errors (all others that differ) and
        worst (the largest relative difference of costs that a vector whose codes differ left, as `exact_search` says).
    """
    differ = (expected != found).any(0)
    clear = exact_search(latents[differ], books, kind.width, kind.coarse_weight)[1] if differ.any() else torch.zeros(0)
    errors = int((clear > TOLERANCE).sum())
    return {
        "equal": 1 - len(clear) / len(latents), "ties": len(clear) - errors, "errors": errors,
        "worst": max(clear.tolist(), default=0.0),
    }  # fmt: skip


def codes_rows(device: torch.device, vectors: int, trees: Sequence[tuple[int, int, int]]) -> list[Row]:
    """Rows with search, levels, codewords, width, vectors, and what `compare` finds.

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
            about = {"levels": len(books), "codewords": books[0].shape[1], "width": width, "vectors": vectors}
            compared = compare(case.latents, books, kind.cpu(case.latents, books), found, kind)
            rows.append({"search": name, **about, **compared})
    return rows
