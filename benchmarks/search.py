"""Cost of finding codewords: the tree of linked codebooks against flat codebooks, ours and others'.

Every method is checked against a float64 oracle before it is timed. All run in one process, their rounds interleaved,
beside the machine's own rate of multiply-adds. What would need more than a bounded distance matrix is
timed on a share of the vectors and scaled; its row says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.common import Row, as_script, finish, matrix_rate, options, positive, seconds
from hrvqvae.plots.curves import save_figure
from hrvqvae.quantize.search import search
from hrvqvae.utils.errors import InputError

VECTORS, WIDTH = 32 * 32 * 32, 32  # (B, H, W, D) = (32, 32, 32, 32)
GRID = tuple((levels, 8) for levels in range(1, 7)) + tuple((3, codewords) for codewords in (4, 16, 32, 64))
_MATRIX_VALUES = 2**27  # of a distance matrix: 512 MiB
_PRODUCTS = 2**33  # of distances that a method without a matrix may be timed on
_CALLS, _TURN = 3, 0.05  # calls a turn; seconds of a call above which it is a turn of its own
_ROUNDS, _SECONDS = 25, 1.5  # at most, and spent on a method and size, after its first round
TOLERANCE = 1e-5
"""Relative difference of two costs, in float64, up to which they are a tie."""


@dataclass(frozen=True)
class SearchProblem:
    """Vectors and the codebooks of one size: latents (N, D); books[l] (m^l, m, D); flat (K, D)."""

    latents: Tensor
    books: Sequence[Tensor]
    flat: Tensor


@dataclass(frozen=True)
class Method:
    """A search of the first `count` vectors.

    Attributes:
        run: vectors -> their leaves.
        distances: distances that a vector costs.
        full_matrix: whether it makes a matrix of vectors by codewords.
        books: whose leaves they are; None where the method has codebooks of its own, and is not checked.
    """

    run: Callable[[Tensor], Tensor]
    distances: int
    full_matrix: bool
    books: Sequence[Tensor] | None


def make_problem(levels: int, codewords: int, vectors: int = VECTORS, width: int = WIDTH) -> SearchProblem:
    """Random vectors, and codewords that shrink by half from level to level."""
    generator = torch.Generator().manual_seed(levels * 1000 + codewords)
    books = [
        torch.randn(codewords**level, codewords, width, generator=generator) * 0.5**level for level in range(levels)
    ]
    flat = torch.randn(codewords**levels, width, generator=generator)
    return SearchProblem(torch.randn(vectors, width, generator=generator), books, flat)


def exact_search(
    latents: Tensor, books: Sequence[Tensor], width: int = 1, coarse_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As `search`, in float64; -> (leaves (N,), how clear each is (N,)).

    That is the least relative difference, over the levels, of the cost of the last path that is kept and of the next
    one. Where it is at most `TOLERANCE`, rounding decides.
    """
    found = [
        _exact(some.double(), books, width, coarse_weight)
        for some in latents.split(128)  # type: ignore[no-untyped-call]
    ]
    leaves, clear = zip(*found, strict=True)
    return torch.cat(leaves), torch.cat(clear)


def _exact(latents: Tensor, books: Sequence[Tensor], width: int, weight: float) -> tuple[Tensor, Tensor]:
    size, rows = books[0].shape[1], torch.arange(len(latents)).unsqueeze(1)
    residuals, paths = latents.unsqueeze(1), torch.zeros(len(latents), 1, dtype=torch.long)
    before, clear = torch.zeros_like(residuals[..., 0]), torch.full_like(latents[:, 0], torch.inf)
    for level, book in enumerate(map(Tensor.double, books), start=1):
        if level == 1:  # a flat codebook may be too large to be copied for each vector
            distances = torch.cdist(latents, book[0], compute_mode="donot_use_mm_for_euclid_dist").square()
        else:
            distances = (residuals.unsqueeze(2) - book[paths]).square().sum(-1).flatten(1)
        costs = distances + before.repeat_interleave(size, dim=1)
        kept = min(width, costs.shape[1]) if level < len(books) else 1
        least, best = costs.topk(min(kept + 1, costs.shape[1]), largest=False)
        if least.shape[1] > kept:
            gap = (least[:, kept] - least[:, kept - 1]) / least[:, kept]
            clear = torch.minimum(clear, gap.nan_to_num(0.0))  # 0 / 0: two codewords are the vector
        best = best[:, :kept]
        parents = best // size
        before = before[rows, parents] + weight * distances[rows, best]
        paths = paths[rows, parents] * size + best % size
        residuals = residuals[rows, parents] - book.flatten(0, 1)[paths]
    return paths[:, 0], clear


def agreement(latents: Tensor, books: Sequence[Tensor], leaves: Tensor) -> float:
    """Share of the vectors whose leaf is that of `exact_search`, of those whose leaf is clear."""
    expected, clear = exact_search(latents, books)
    return float((leaves == expected)[clear > TOLERANCE].double().mean())


def _methods(case: SearchProblem, levels: int, codewords: int) -> dict[str, Method]:
    try:
        from vector_quantize_pytorch import ResidualVQ, VectorQuantize
    except ImportError as error:
        raise InputError("this compares with vector-quantize-pytorch: pip install 'hrvqvae[bench]'") from error
    width, leaves, flat = case.latents.shape[1], len(case.flat), [case.flat[None]]
    layer = VectorQuantize(dim=width, codebook_size=leaves).eval()
    layer.codebook = case.flat
    residual = ResidualVQ(dim=width, num_quantizers=levels, codebook_size=codewords).eval()
    return {
        "tree": Method(lambda some: search(some, case.books)[-1], levels * codewords, False, case.books),
        "flat": Method(lambda some: search(some, flat)[0], leaves, False, flat),
        "cdist": Method(lambda some: torch.cdist(some, case.flat).argmin(-1), leaves, True, flat),
        "vector_quantize": Method(lambda some: layer(some[None])[1][0], leaves, True, flat),
        "residual_vq": Method(lambda some: residual(some[None]), levels * codewords, False, None),
    }


@torch.inference_mode()
def bench_search(grid: Sequence[tuple[int, int]] = GRID, vectors: int = VECTORS, width: int = WIDTH) -> list[Row]:
    """Rows with method, vectors, width, levels, codewords, leaves, distances (that a vector costs), seconds, ratio.

    Also: floor (seconds that the multiply-adds take at the machine's rate in the same run) and times_floor, agreement
    (with the oracle), timed_on (vectors that were timed; fewer than `vectors` where the time is scaled).

    Raises:
        InputError: vector-quantize-pytorch is missing.
        AssertionError: a method of ours disagrees with the oracle.
    """
    rows = []
    for levels, codewords in grid:
        case = make_problem(levels, codewords, vectors, width)
        leaves = len(case.flat)
        methods = _methods(case, levels, codewords)
        runs, timed_on, agreed = {}, {}, {}
        for name, method in methods.items():
            most = (_MATRIX_VALUES if method.full_matrix else _PRODUCTS) // leaves
            some = case.latents[: max(32, min(vectors, most))]
            runs[name], timed_on[name] = partial(method.run, some), len(some)
            if method.books:
                some = some[: max(32, min(2_048, 2**26 // leaves))]
                agreed[name] = agreement(some, method.books, method.run(some))
        assert agreed["tree"] == agreed["flat"] == 1, f"a search disagrees with the oracle: {agreed}"
        products = matrix_rate() / 2
        spent = {name: time * vectors / timed_on[name] for name, time in _interleaved(runs).items()}
        for name, method in methods.items():
            floor = vectors * method.distances * width / products
            rows.append(
                {
                    "method": name, "vectors": vectors, "width": width, "levels": levels, "codewords": codewords,
                    "leaves": leaves, "distances": method.distances, "seconds": spent[name],
                    "ratio": spent[name] / spent["tree"], "timed_on": timed_on[name], "floor": floor,
                    "times_floor": spent[name] / floor, "agreement": agreed.get(name),
                }
            )  # fmt: skip
    return rows


def _interleaved(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, in turns; those that are slow drop out when their time is spent.

    A turn of a fast one begins with a call that does not count, as it pays for what the one before left: sleeping
    threads, and memory that was handed back to the system.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    slow = {name for name, run in runs.items() if seconds(run) > _TURN}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            if len(times[name]) < 3 or sum(times[name]) < _SECONDS:
                if name not in slow:
                    run()
                times[name] += [seconds(run) for _ in range(1 if name in slow else _CALLS)]
    return {name: median(some) for name, some in times.items()}


_STYLES = {
    "tree": ("tree of linked codebooks", "o-"), "flat": ("flat, ours", "s-"), "cdist": ("torch.cdist + argmin", "x:"),
    "vector_quantize": ("flat, vector-quantize-pytorch", "^--"),
    "residual_vq": ("unlinked residual, vector-quantize-pytorch", "v--"),
}  # fmt: skip


def plot_growth(rows: Sequence[Row], path: Path) -> None:
    """Draw the cost of a search against the number of leaves: m = 8 left, L = 3 right."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = (("codewords", 8, "m = 8, L = 1 to 6"), ("levels", 3, "L = 3, m = 4 to 64"))
    for axes, (fixed, value, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        some = sorted((row for row in rows if row[fixed] == value), key=lambda row: row["leaves"])
        for method, (label, style) in _STYLES.items():
            own = [row for row in some if row["method"] == method]
            axes.plot([row["leaves"] for row in own], [1e3 * row["seconds"] for row in own], style, label=label)
        trees = [row for row in some if row["method"] == "tree"]
        leaves, floor = [row["leaves"] for row in trees], [1e3 * row["floor"] for row in trees]
        axes.plot(leaves, floor, "k:", linewidth=1, label="arithmetic floor of the tree")
        axes.legend(frameon=False, fontsize=8)
        axes.set(title=title, xlabel="leaves (m^L)", xscale="log", yscale="log")
    figure.axes[0].set_ylabel(f"milliseconds for {rows[0]['vectors']:,} vectors of width {rows[0]['width']}")
    save_figure(figure, path)


COLUMNS = {
    "method": "{method}", "L": "{levels}", "m": "{codewords}", "leaves": "{leaves:,}", "distances": "{distances:,}",
    "ms": "{ms:,.2f}", "timed on": "{timed_on:,}", "tree is faster": "{ratio:,.1f}", "x floor": "{times_floor:.1f}",
    "oracle": "{agreement:.4f}",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Time every method at one size, or at all of `GRID`."""
    parser = options(__doc__)
    parser.add_argument("--vectors", type=positive, default=VECTORS, metavar="N", help=f"default: {VECTORS}")
    parser.add_argument("--size", type=positive, nargs=2, metavar=("L", "M"), help="only L levels of M codewords")
    parser.add_argument("--plot", type=Path, metavar="FIG.png", help="draw cost against leaves")
    arguments = parser.parse_args(argv)
    rows = bench_search([tuple(arguments.size)] if arguments.size else GRID, arguments.vectors)
    if arguments.plot:
        plot_growth(rows, arguments.plot)
    finish(rows, COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
