"""TreeVQ alone, fitted to vectors that are there, beside faiss: flat k-means, and residual,
additive and product codes.

Vectors are patches of 8x8 colour pixels of CIFAR10, 192 values each, or with --features what
efficientnet-lite0 makes of whole images, 320 values. Seconds are those of the processor, one
thread. A seed draws patches and starts all sides. With --start M the k-means start of a flat
codebook of M codewords is timed alone, beside 25 iterations of k-means.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Row, as_script, finish, options, positive
from hrvqvae.comparison.report import welch
from hrvqvae.config import DataConfig
from hrvqvae.data.loading import load_images
from hrvqvae.quantize.kmeans import kmeans
from hrvqvae.quantize.layer import TreeVQ
from hrvqvae.quantize.search import search
from hrvqvae.utils.errors import InputError

Floats = NDArray[np.float32]
SHAPES = {
    12: ((8, 4), (64, 2)),
    18: ((8, 6), (64, 3)),
    64: ((256, 8),),
    96: ((256, 12),),
    128: ((256, 16),),
}
"""Codewords per codebook and levels of faiss's quantizers, by bits."""
TREES = {
    12: ((8, 4, 1), (8, 4, 4), (16, 3, 4), (64, 2, 4)),
    18: ((8, 6, 4), (64, 3, 4)),
    **{
        bits: tuple((256, bits // 8, 4, linked) for linked in (1, 2, bits // 8))
        for bits in (64, 96, 128)
    },
}
"""Codewords per codebook, levels, beam and linked levels (default: all) of trees."""
_LONG_CODES = 64
_ALL_POINTS = 10**9  # per codeword; faiss's default is 256


def pixels(split: str, images: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(images, 3, 32, 32) of CIFAR10, and their classes."""
    found = load_images(DataConfig(dataset="cifar10", size=32, channels=3), split)
    decoded = [found.decode(index, None) for index in range(min(images, len(found)))]
    return np.stack([one.pixels for one in decoded]), found.labels[: len(decoded)]


def patches(images: NDArray[np.uint8], number: int, seed: int) -> Floats:
    """(number, 192) in [0, 1], at random places, as many of each image."""
    generator = np.random.default_rng(seed)
    chosen = np.arange(number) % len(images)
    y, x = generator.integers(0, 25, (2, number))
    windows = np.lib.stride_tricks.sliding_window_view(images, (8, 8), axis=(2, 3))
    found: Floats = np.divide(windows[chosen, :, y, x].reshape(number, -1), 255, dtype=np.float32)
    return found


def features(images: NDArray[np.uint8]) -> Floats:
    """(B, 320) of efficientnet-lite0."""
    from hrvqvae.models.perceptual import EFFICIENTNET, EfficientNetDistance, perceptual_distance

    network = perceptual_distance(EFFICIENTNET)
    assert isinstance(network, EfficientNetDistance)
    with torch.no_grad():
        parts = torch.from_numpy(images).split(250)  # type: ignore[no-untyped-call]
        return torch.cat([network.pooled(some.float() / 255) for some in parts]).numpy()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError("this compares with faiss: pip install 'hrvqvae[bench]'") from error
    faiss.omp_set_num_threads(1)
    return faiss


Coded = tuple[NDArray[np.int64], Floats]  # codes (N, L), and the vectors that they stand for
Fit = Callable[[Floats], Callable[[Floats], Coded]]


def residual(
    size: int, levels: int, seed: int, beam: int = 4, kind: str = "ResidualQuantizer"
) -> Fit:
    """faiss's residual quantizer with a beam, or another kind of its quantizers."""

    def fit(vectors: Floats) -> Callable[[Floats], Coded]:
        faiss = _faiss()
        bits = size.bit_length() - 1
        quantizer = getattr(faiss, kind)(vectors.shape[1], levels, bits)
        if kind == "LocalSearchQuantizer":
            quantizer.random_seed = seed + 1
        else:
            quantizer.cp.seed, quantizer.cp.max_points_per_centroid = seed + 1, _ALL_POINTS
        if kind == "ResidualQuantizer":
            quantizer.max_beam_size = beam
        quantizer.train(vectors)

        def encode(some: Floats) -> Coded:
            codes = quantizer.compute_codes(some)
            return faiss.unpack_bitstrings(codes, levels, bits).astype(np.int64), quantizer.decode(
                codes
            )

        return encode

    return fit


def flat(clusters: int, seed: int) -> Fit:
    """faiss's k-means of all vectors, 25 iterations."""

    def fit(vectors: Floats) -> Callable[[Floats], Coded]:
        found = _faiss().Kmeans(
            vectors.shape[1],
            min(clusters, len(vectors)),
            niter=25,
            seed=seed + 1,
            max_points_per_centroid=_ALL_POINTS,
        )
        found.train(vectors)

        def encode(some: Floats) -> Coded:
            nearest = found.index.search(some, 1)[1]
            return nearest, found.centroids[nearest[:, 0]]

        return encode

    return fit


def tree(size: int, levels: int, beam: int, linked: int, seed: int) -> Fit:
    """TreeVQ."""

    def fit(vectors: Floats) -> Callable[[Floats], Coded]:
        layer = TreeVQ(
            vectors.shape[1],
            size,
            levels,
            linked=linked,
            beam=beam,
            coarse_weight=0.0,
        ).fit(vectors, seed=seed)

        def encode(some: Floats) -> Coded:
            indices = layer.encode(some)
            return indices.numpy(), layer.get_output_from_indices(indices).numpy()

        return encode

    return fit


def sides(bits: int, seed: int) -> dict[str, Fit]:
    """What is compared at so many bits."""
    found = {
        f"faiss RQ {levels}x{size}, beam 4": residual(size, levels, seed)
        for size, levels in SHAPES[bits]
    }
    if bits == 12:
        found["flat k-means"] = flat(4096, seed)
    if bits >= _LONG_CODES:
        ((size, levels),) = SHAPES[bits]
        for kind in ("LocalSearchQuantizer", "ProductQuantizer"):
            found[f"faiss {kind}"] = residual(size, levels, seed, kind=kind)
    for size, levels, beam, *groups in TREES[bits]:
        linked = groups[0] if groups else 0
        name = f"TreeVQ {size}^{levels}, beam {beam}" + f", groups of {linked}" * (linked > 0)
        found[name] = tree(size, levels, beam, linked, seed)
    return found


def purity(
    train: NDArray[np.int64], test: NDArray[np.int64], classes: Sequence[NDArray[np.int64]]
) -> list[float]:
    """Of codes (N, L), by prefix: test vectors whose class is the most frequent one of training
    vectors of theirs.
    """
    found = []
    for levels in range(1, train.shape[1] + 1):
        both = np.concatenate([train[:, :levels], test[:, :levels]])
        cluster = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
        votes = np.zeros((cluster.max() + 1, classes[0].max() + 1), int)
        np.add.at(votes, (cluster[: len(train)], classes[0]), 1)
        found.append(float((votes[cluster[len(train) :]].argmax(1) == classes[1]).mean()))
    return found


def measure(
    fit: Fit, train: Floats, test: Floats, classes: Sequence[NDArray[np.int64]] = ()
) -> Row:
    """Row with left (share of the test vectors' variance), fit_seconds, search_seconds, used (codes
    of the training vectors) and, with classes, purity by prefix.
    """
    begun = time.process_time()
    encode = fit(train)
    fitted = time.process_time()
    codes, values = encode(test)
    ended = time.process_time()
    own, _ = encode(train)
    variance = np.square(test - train.mean(0)).sum(dtype=np.float64)
    row: Row = {
        "left": float(np.square(test - values).sum(dtype=np.float64) / variance),
        "fit_seconds": fitted - begun,
        "search_seconds": ended - fitted,
        "used": len(np.unique(own, axis=0)),
    }
    return row | ({"purity": purity(own, codes, classes)} if classes else {})


def bench_vectors(
    bits: int,
    seeds: int = 3,
    number: int = 200_000,
    test_number: int = 20_000,
    *,
    whole: bool = False,
) -> list[Row]:
    """A row for each side: what `measure` gives, means over seeds, with spread and p against each
    of faiss's.

    Args:
        whole: features of whole images in place of patches; each seed draws half of the images.
    """
    train = pixels("train", number)
    test = pixels("test", test_number)
    values = [features(images) for images, _ in (train, test)] if whole else []
    measured: dict[str, list[Row]] = {}
    for seed in range(seeds):
        if whole:  # a seed draws half of the images, so that a p-value covers them, too
            rng = np.random.default_rng(seed)
            halves = [
                rng.choice(len(labels), len(labels) // 2, replace=False)
                for _, labels in (train, test)
            ]
            given = [of_split[half] for of_split, half in zip(values, halves, strict=True)]
            classes = [
                labels[half] for (_, labels), half in zip((train, test), halves, strict=True)
            ]
        else:
            given = [
                patches(train[0], number, 2 * seed),
                patches(test[0], test_number, 2 * seed + 1),
            ]
            classes = []
        for name, fit in sides(bits, seed).items():
            row = measure(fit, given[0], given[1], classes)
            measured.setdefault(name, []).append(row)
            print(f"{name}, seed {seed}: {row}", file=sys.stderr, flush=True)
    rows = []
    for name, runs in measured.items():
        left = [run["left"] for run in runs]
        row = {
            "side": name,
            "bits": bits,
            "left": mean(left),
            "spread": stdev(left) if seeds > 1 else 0.0,
        }
        row |= {
            key: mean(run[key] for run in runs) for key in ("fit_seconds", "search_seconds", "used")
        }
        if whole:
            row["purity"] = " ".join(
                f"{mean(each):.3f}" for each in zip(*(run["purity"] for run in runs), strict=True)
            )
        others = {
            other: [run["left"] for run in runs]
            for other, runs in measured.items()
            if "TreeVQ" not in other
        }
        if "TreeVQ" in name:
            row["against"] = ", ".join(
                f"{mean(left) / mean(other) - 1:+.1%}"
                + (f" (p {welch(left, other):.2g})" if seeds > 1 else "")
                for other in others.values()
            )
        rows.append(row)
    return rows


def bench_start(codewords: int, seed: int = 0) -> list[Row]:
    """Return rows with side, left and fit_seconds, for grey 16x16 patches (256 values), eight per
    codeword.
    """
    rng = np.random.default_rng(seed)
    count = 8 * codewords
    images = pixels("train", count)[0].mean(1, dtype=np.float32) / np.float32(255)
    y, x = rng.integers(0, 17, (2, count))
    windows = np.lib.stride_tricks.sliding_window_view(images, (16, 16), axis=(1, 2))
    vectors = windows[np.arange(count) % len(images), y, x].reshape(count, -1)

    def start(vectors: Floats) -> Callable[[Floats], Coded]:
        centers, _ = kmeans(
            torch.from_numpy(vectors), codewords, torch.Generator().manual_seed(seed)
        )

        def encode(vectors: Floats) -> Coded:
            nearest = search(torch.from_numpy(vectors), [centers[None]]).T.numpy()
            return nearest, centers.numpy()[nearest[:, 0]]

        return encode

    kmeans(torch.rand(100, 2), 4, torch.Generator())  # compile the search
    sides = {"TreeVQ, start": start, "k-means (faiss)": flat(codewords, seed)}
    rows = [{"side": side, **measure(fit, vectors, vectors)} for side, fit in sides.items()]
    return [row | {"against": f"{row['left'] / rows[1]['left'] - 1:+.2%}"} for row in rows]


COLUMNS = {
    "side": "{side}",
    "bits": "{bits}",
    "variance left": "{left:.4f} ± {spread:.4f}",
    "fit s": "{fit_seconds:.1f}",
    "search s": "{search_seconds:.2f}",
    "codes used": "{used:,.0f}",
    "against faiss's, in order": "{against}",
    "purity by prefix": "{purity}",
}
START_COLUMNS = {
    "side": "{side}",
    "variance left": "{left:.5f}",
    "fit s": "{fit_seconds:.1f}",
    "error": "{against}",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Fit every side to vectors of CIFAR10."""
    parser = options(__doc__)
    parser.add_argument(
        "--bits", type=int, choices=tuple(SHAPES), default=12, help="of a vector (default: 12)"
    )
    parser.add_argument(
        "--features", action="store_true", help="of whole images, by efficientnet-lite0"
    )
    parser.add_argument(
        "--vectors", type=positive, nargs=2, default=(200_000, 20_000), metavar=("TRAIN", "TEST")
    )
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="(default: 3)")
    parser.add_argument(
        "--start", type=positive, metavar="M", help="time the start of M codewords alone"
    )
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    if given.start:
        finish(bench_start(given.start), START_COLUMNS, given.json)
    else:
        finish(
            bench_vectors(given.bits, given.seeds, *given.vectors, whole=given.features),
            COLUMNS,
            given.json,
        )


if __name__ == "__main__":
    as_script(main)
