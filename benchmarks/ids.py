"""IDs for items: TreeVQ's unique indices of image features, or of a million synthetic vectors,
beside residual k-means.

Features are those of efficientnet-lite0 for the training images of CIFAR10. Synthetic vectors are
the sum of one of 64 random centres, one of 64 that are half as far apart, and normal noise of half
the first deviation.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Row, as_script, finish, options, positive
from benchmarks.vectors import Floats, features, pixels, residual
from hrvqvae.quantize.layer import TreeVQ

NEIGHBOURS = 10
QUERIES = 1_000


def synthetic(count: int, seed: int, dim: int = 64, centres: int = 64) -> Floats:
    """Return vectors (count, dim): a centre of each of two levels, and noise."""
    rng = np.random.default_rng(seed)
    vectors: Floats = rng.standard_normal((count, dim), dtype=np.float32) / np.float32(2)
    for distance in (1.0, 0.5):
        placed = rng.standard_normal((centres, dim), dtype=np.float32) * np.float32(distance)
        vectors += placed[rng.integers(centres, size=count)]
    return vectors


def neighbours_kept(vectors: Floats, codes: NDArray[np.int64], seed: int) -> list[float]:
    """Return, for prefixes of 1 and 2 levels, the share of the nearest neighbours that have an
    item's prefix.
    """
    queries = np.random.default_rng(seed).choice(
        len(vectors), min(QUERIES, len(vectors)), replace=False
    )
    found = list[NDArray[Any]]()
    all_vectors = torch.from_numpy(vectors)
    for chosen in np.array_split(queries, -(-len(queries) // 100)):
        distances = all_vectors.square().sum(1) - 2 * all_vectors[chosen] @ all_vectors.T
        found.append(distances.topk(NEIGHBOURS + 1, largest=False).indices[:, 1:].numpy())
    near = np.concatenate(found)
    return [float((codes[near, :n] == codes[queries, None, :n]).all(-1).mean()) for n in (1, 2)]


def collisions(codes: NDArray[np.int64]) -> int:
    """Return how many items have the indices of an item before them."""
    return len(codes) - len(np.unique(codes, axis=0))


def bits_per_code(codes: NDArray[np.int64], size: int) -> float:
    """Return the bits per code of every second item, by counts of each code after its coarser code
    in the others.
    """
    known = codes[::2]
    new = codes[1::2]
    nats = 0.0
    for level in range(codes.shape[1]):
        counts = np.full((size, size), 0.1)
        before, after = (
            rows[:, level - 1] if level else np.zeros(len(rows), np.int64) for rows in (known, new)
        )
        np.add.at(counts, (before, known[:, level]), 1)
        nats -= float(np.log(counts[after, new[:, level]] / counts[after].sum(1)).sum())
    return float(nats / np.log(2) / new.size)


def bench_ids(vectors: Floats, codewords: int, levels: int, passes: int, seed: int) -> list[Row]:
    """Return rows with side, items, collisions, moved, added (error by moving), kept_1, kept_2,
    seconds and bytes.
    """
    spent = dict[str, float]()

    def timed(name: str, call: Callable[[], Any]) -> Any:
        begun = time.process_time()
        result = call()
        spent[name] = time.process_time() - begun
        return result

    def error(codes: torch.Tensor) -> float:
        total = 0.0
        for start in range(0, len(vectors), 50_000):
            values = tree.get_output_from_indices(codes[start : start + 50_000]).numpy()
            total += float(
                np.square(vectors[start : start + 50_000] - values).sum(dtype=np.float64)
            )
        return total / len(vectors)

    tree = TreeVQ(vectors.shape[1], codewords, levels)
    timed("fit_seconds", lambda: tree.fit(vectors, passes=passes, seed=seed))
    not_aligned = bits_per_code(tree.encode(vectors).numpy(), codewords)
    tree.align()
    codes = timed("encode_seconds", lambda: tree.encode(vectors))
    unique = timed("unique_seconds", lambda: tree.unique_indices(vectors))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    moved = float((codes != unique).any(1).double().mean())
    added = error(unique) / error(codes) - 1
    rows: list[Row] = [
        {
            "side": "TreeVQ",
            "collisions": collisions(codes.numpy()),
            "bits_before": not_aligned,
            **spent,
        }
    ]
    rows.append(
        {
            "side": "TreeVQ, unique",
            "collisions": collisions(unique.numpy()),
            "moved": moved,
            "added": added,
            "unique_seconds": spent["unique_seconds"],
            "peak_bytes": peak,
        }
    )
    encode = timed("fit_seconds", lambda: residual(codewords, levels, seed, beam=1)(vectors))
    theirs = timed("encode_seconds", lambda: encode(vectors)[0])
    rows.append({"side": "residual k-means", "collisions": collisions(theirs), **spent})
    del rows[-1]["unique_seconds"]
    for row, of_side in zip(rows, (codes.numpy(), unique.numpy(), theirs), strict=True):
        one, two = neighbours_kept(vectors, of_side, seed)
        row |= {
            "items": len(vectors),
            "shape": f"{codewords}^{levels}",
            "kept_1": one,
            "kept_2": two,
        }
        row["bits"] = bits_per_code(of_side, codewords)
    return rows


COLUMNS = {
    "IDs by": "{side}",
    "seed": "{seed}",
    "items": "{items:,}",
    "shape": "{shape}",
    "collisions": "{collisions:,}",
    "moved": "{moved:.1%}",
    "error added": "{added:+.2%}",
    "neighbours, 1 level": "{kept_1:.3f}",
    "2 levels": "{kept_2:.3f}",
    "bits per code": "{bits:.3f}",
    "before alignment": "{bits_before:.3f}",
    "fit s": "{fit_seconds:.1f}",
    "encode s": "{encode_seconds:.1f}",
    "unique s": "{unique_seconds:.1f}",
    "peak MB": "{peak_MB:,.0f}",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Give IDs to items, and measure them."""
    parser = options(__doc__)
    parser.add_argument(
        "--synthetic", type=positive, metavar="N", help="so many synthetic vectors, not CIFAR10's"
    )
    parser.add_argument(
        "--dim",
        type=positive,
        default=64,
        metavar="D",
        help="values of a synthetic vector (default: 64)",
    )
    parser.add_argument(
        "--images", type=positive, default=50_000, metavar="N", help="images (default: 50000)"
    )
    parser.add_argument(
        "--size",
        type=positive,
        nargs=2,
        default=(64, 3),
        metavar=("M", "L"),
        help="(default: 64 3)",
    )
    parser.add_argument(
        "--passes", type=positive, default=10, metavar="N", help="of the fit (default: 10)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="N", help="(default: 0)"
    )
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    count = given.synthetic
    images = given.images
    vectors = synthetic(count, 0, given.dim) if count else features(pixels("train", images)[0])
    print(f"{len(vectors):,} vectors of {vectors.shape[1]} values", file=sys.stderr)
    (codewords, levels), rows = given.size, list[Row]()
    for seed in given.seeds:
        measured = bench_ids(vectors, codewords, levels, given.passes, seed)
        rows += [{**row, "seed": seed} for row in measured]
    finish(rows, COLUMNS, given.json)


if __name__ == "__main__":
    as_script(main)
