"""Time the search for codewords: the tree of linked codebooks against flat codebooks, ours and
those of a library.

Each method is compared with an exact search in float64 before it is timed. All methods run in one
process, in turns. If a method would need too large a distance matrix, it is timed on fewer vectors
and its time is scaled; its row says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.common import (
    Row,
    as_script,
    finish,
    import_rival,
    options,
    parse_lines,
    positive,
    seconds,
)
from hrvqvae.plots.curves import save_figure
from hrvqvae.quantize.search import search

# (B, H, W, D) = (32, 32, 32, 32)
VECTORS = 32 * 32 * 32
WIDTH = 32
GRID = tuple((levels, 8) for levels in range(1, 7)) + tuple(
    (3, codewords) for codewords in (4, 16, 32, 64)
)
_MATRIX_VALUES = 2**27  # largest distance matrix: 512 MiB
_PRODUCTS = 2**33  # distances that a method without a matrix is timed on at most
# calls per turn; a call that takes more seconds is a turn by itself
_CALLS = 3
_TURN = 0.05
# at most, per method and size, after the first round
_ROUNDS = 25
_SECONDS = 1.5
TOLERANCE = 1e-5
"""Relative difference of two costs, in float64, up to which rounding decides."""


@dataclass(frozen=True)
class SearchProblem:
    """Vectors and the codebooks of one size: latents (N, D); books[l] (m^l, m, D); flat (K, D)."""

    latents: Tensor
    books: Sequence[Tensor]
    flat: Tensor


@dataclass(frozen=True)
class Method:
    """A search.

    Attributes:
        run: Returns the leaves of vectors.
        distances: per vector.
        full_matrix: whether it makes a matrix of vectors by codewords.
        books: None if the method has codebooks of its own, and is not checked.
    """

    run: Callable[[Tensor], Tensor]
    distances: int
    full_matrix: bool
    books: Sequence[Tensor] | None


def make_problem(
    levels: int, codewords: int, vectors: int = VECTORS, width: int = WIDTH
) -> SearchProblem:
    """Draw random vectors, and codewords that shrink by half from level to level."""
    generator = torch.Generator().manual_seed(levels * 1000 + codewords)
    shapes = [(codewords**level, codewords, width) for level in range(levels)]
    books = [
        torch.randn(shape, generator=generator) * 0.5**level for level, shape in enumerate(shapes)
    ]
    flat = torch.randn(codewords**levels, width, generator=generator)
    return SearchProblem(torch.randn(vectors, width, generator=generator), books, flat)


def exact_search(
    latents: Tensor, books: Sequence[Tensor], width: int = 1, coarse_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Search as `search` in float64.

    Return the leaves (N,), and the margin of each (N,): the least relative difference, over the
    levels, between the costs of the last path that is kept and of the next. Where it is at most
    `TOLERANCE`, rounding decides.
    """
    chunks = torch.split(latents.double(), 128)
    leaves, margins = zip(
        *(_search_chunk(chunk, books, width, coarse_weight) for chunk in chunks), strict=True
    )
    return torch.cat(leaves), torch.cat(margins)


def _search_chunk(
    latents: Tensor, books: Sequence[Tensor], width: int, weight: float
) -> tuple[Tensor, Tensor]:
    size = books[0].shape[1]
    rows = torch.arange(len(latents)).unsqueeze(1)
    residuals = latents.unsqueeze(1)
    indices = torch.zeros(len(latents), 1, dtype=torch.long)
    before = torch.zeros_like(residuals[..., 0])
    margin = torch.full_like(latents[:, 0], torch.inf)
    for level, book in enumerate(map(Tensor.double, books), start=1):
        if level == 1:  # a flat codebook may be too large to be copied for each vector
            distances = torch.cdist(
                latents, book[0], compute_mode="donot_use_mm_for_euclid_dist"
            ).square()
        else:
            distances = (residuals.unsqueeze(2) - book[indices]).square().sum(-1).flatten(1)
        costs = distances + before.repeat_interleave(size, dim=1)
        kept = min(width, costs.shape[1]) if level < len(books) else 1
        least, best = costs.topk(min(kept + 1, costs.shape[1]), largest=False)
        if least.shape[1] > kept:
            gap = (least[:, kept] - least[:, kept - 1]) / least[:, kept]
            # 0 / 0: two codewords equal the vector
            margin = torch.minimum(margin, gap.nan_to_num(0.0))
        best = best[:, :kept]
        parents = best // size
        before = before[rows, parents] + weight * distances[rows, best]
        indices = indices[rows, parents] * size + best % size
        residuals = residuals[rows, parents] - book.flatten(0, 1)[indices]
    return indices[:, 0], margin


def measure_agreement(latents: Tensor, books: Sequence[Tensor], leaves: Tensor) -> float:
    """Return the share of vectors whose leaf is that of `exact_search`, without those that rounding
    decides.
    """
    expected, margins = exact_search(latents, books)
    return float((leaves == expected)[margins > TOLERANCE].double().mean())


def _methods(case: SearchProblem, levels: int, codewords: int) -> dict[str, Method]:
    library = import_rival("vector_quantize_pytorch")
    width = case.latents.shape[1]
    leaves = len(case.flat)
    flat = [case.flat[None]]
    layer = library.VectorQuantize(dim=width, codebook_size=leaves).eval()
    layer.codebook = case.flat
    residual = library.ResidualVQ(dim=width, num_quantizers=levels, codebook_size=codewords).eval()
    return {
        "tree": Method(
            lambda vectors: search(vectors, case.books)[-1], levels * codewords, False, case.books
        ),
        "flat": Method(lambda vectors: search(vectors, flat)[0], leaves, False, flat),
        "cdist": Method(
            lambda vectors: torch.cdist(vectors, case.flat).argmin(-1), leaves, True, flat
        ),
        "vector_quantize": Method(lambda vectors: layer(vectors[None])[1][0], leaves, True, flat),
        "residual_vq": Method(
            lambda vectors: residual(vectors[None]), levels * codewords, False, None
        ),
    }


@torch.inference_mode()
def bench_search(grid: Sequence[tuple[int, int]] = GRID, vectors: int = VECTORS) -> list[Row]:
    """Return rows with method, vectors, levels, codewords, leaves, distances (per vector),
    seconds, ratio.

    They also have agreement (with the exact search) and timed_on (vectors that were timed; fewer if
    the time is scaled). Raises InputError if vector-quantize-pytorch is missing, AssertionError if
    our methods disagree with the exact search.
    """
    rows = []
    for levels, codewords in grid:
        case = make_problem(levels, codewords, vectors)
        leaves = len(case.flat)
        methods = _methods(case, levels, codewords)
        runs = {}
        timed_on = {}
        agreed = {}
        for name, method in methods.items():
            most = (_MATRIX_VALUES if method.full_matrix else _PRODUCTS) // leaves
            chunk = case.latents[: max(32, min(vectors, most))]
            runs[name] = partial(method.run, chunk)
            timed_on[name] = len(chunk)
            if method.books:
                chunk = chunk[: max(32, min(2_048, 2**26 // leaves))]
                agreed[name] = measure_agreement(chunk, method.books, method.run(chunk))
        assert agreed["tree"] == agreed["flat"] == 1, f"a search is not exact: {agreed}"
        times = _time_in_turns(runs)
        spent = {name: time * vectors / timed_on[name] for name, time in times.items()}
        rows += [
            {
                "method": name,
                "vectors": vectors,
                "levels": levels,
                "codewords": codewords,
                "leaves": leaves,
                "distances": method.distances,
                "seconds": spent[name],
                "ratio": spent[name] / spent["tree"],
                "timed_on": timed_on[name],
                "agreement": agreed.get(name),
            }
            for name, method in methods.items()
        ]
    return rows


def _time_in_turns(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each run, in turns. A run takes part until its time is spent.

    A turn of a fast run starts with a call that is not timed, which wakes threads and gets memory
    back.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    slow = {name for name, run in runs.items() if seconds(run) > _TURN}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            if len(times[name]) < 3 or sum(times[name]) < _SECONDS:
                if name not in slow:
                    run()
                times[name] += [seconds(run) for _ in range(1 if name in slow else _CALLS)]
    return {name: median(spent) for name, spent in times.items()}


def plot_growth(rows: Sequence[Row], path: Path) -> None:
    """Plot the cost of a search against the number of leaves: m = 8 left, L = 3 right."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = (("codewords", 8, "m = 8, L = 1 to 6"), ("levels", 3, "L = 3, m = 4 to 64"))
    for axes, (fixed, value, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        shown = sorted((row for row in rows if row[fixed] == value), key=lambda row: row["leaves"])
        for method in dict.fromkeys(row["method"] for row in shown):
            points = [row for row in shown if row["method"] == method]
            leaves = [row["leaves"] for row in points]
            axes.plot(leaves, [1e3 * row["seconds"] for row in points], "o-", label=method)
        axes.legend(frameon=False, fontsize=8)
        axes.set(title=title, xlabel="leaves (m^L)", xscale="log", yscale="log")
    figure.axes[0].set_ylabel("milliseconds")
    save_figure(figure, path)


COLUMNS = parse_lines("""
method: {method}
L: {levels}
m: {codewords}
leaves: {leaves:,}
distances: {distances:,}
ms: {ms:,.2f}
timed on: {timed_on:,}
tree is faster: {ratio:,.1f}
oracle: {agreement:.4f}
""")


def main(argv: Sequence[str] | None = None) -> None:
    """Time every method at one size, or at all sizes of `GRID`."""
    parser = options(__doc__, vectors=(VECTORS, "vectors"))
    parser.add_argument(
        "--size", type=positive, nargs=2, metavar=("L", "M"), help="only L levels of M codewords"
    )
    parser.add_argument("--plot", type=Path, metavar="FIG.png", help="draw cost against leaves")
    arguments = parser.parse_args(argv)
    rows = bench_search([tuple(arguments.size)] if arguments.size else GRID, arguments.vectors)
    if arguments.plot:
        plot_growth(rows, arguments.plot)
    finish(rows, COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
