"""TreeVQ alone, fitted to vectors that are there, beside quantizers of faiss at 64 bits.

Vectors are patches of 8x8 colour pixels of CIFAR10, 192 values each. Seconds are those of the
processor, one thread. A seed draws patches and starts all sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Row, as_script, finish, import_rival, options, positive
from benchmarks.laboratory.report import compare_pairs
from hrvqvae.config import DataConfig
from hrvqvae.data.loading import load_images
from hrvqvae.models.perceptual import EFFICIENTNET, EfficientNetDistance, perceptual_distance
from hrvqvae.quantize.layer import TreeVQ
from hrvqvae.utils.progress import note

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Coded = tuple[NDArray[np.int64], Floats]
"""Codes (N, L), and the vectors that they stand for."""
Fit = Callable[[Floats], Callable[[Floats], Coded]]
"""Fit a quantizer to vectors; return its function that encodes vectors."""

BITS = 8
LEVELS = 8
FAISS = ("ResidualQuantizer", "LocalSearchQuantizer", "ProductQuantizer")
_ALL_POINTS = 10**9  # per codeword; faiss's default is 256


def read_pixels(split: str, limit: int) -> Pixels:
    """Read images of CIFAR10, (N, 3, 32, 32)."""
    images = load_images(DataConfig(dataset="cifar10", size=32, channels=3), split)
    count = min(limit, len(images))
    return np.stack([images.decode(index, None).pixels for index in range(count)])


def patches(images: Pixels, count: int, seed: int) -> Floats:
    """Return patches (count, 192) in [0, 1], at random places, equally many of each image."""
    rng = np.random.default_rng(seed)
    chosen = np.arange(count) % len(images)
    y, x = rng.integers(0, 25, (2, count))
    windows = np.lib.stride_tricks.sliding_window_view(images, (8, 8), axis=(2, 3))
    values = windows[chosen, :, y, x].reshape(count, -1)
    return np.divide(values, 255, dtype=np.float32)


def features(images: Pixels) -> Floats:
    """Return the features (N, 320) of efficientnet-lite0."""
    network = perceptual_distance(EFFICIENTNET)
    assert isinstance(network, EfficientNetDistance)
    parts = torch.split(torch.from_numpy(images), 250)
    with torch.no_grad():
        return torch.cat([network.pooled(part.float() / 255) for part in parts]).numpy()


def fit_faiss(
    vectors: Floats,
    seed: int,
    kind: str = FAISS[0],
    bits: int = BITS,
    levels: int = LEVELS,
    beam: int = 4,
) -> Callable[[Floats], Coded]:
    """Fit a quantizer of faiss; its beam is for the residual quantizer. Raises InputError."""
    faiss = import_rival("faiss")
    faiss.omp_set_num_threads(1)
    quantizer: Any = getattr(faiss, kind)(vectors.shape[1], levels, bits)
    if kind == "LocalSearchQuantizer":
        quantizer.random_seed = seed + 1
    else:
        quantizer.cp.seed = seed + 1
        quantizer.cp.max_points_per_centroid = _ALL_POINTS
    if kind == "ResidualQuantizer":
        quantizer.max_beam_size = beam
    quantizer.train(vectors)

    def encode(vectors: Floats) -> Coded:
        packed = quantizer.compute_codes(vectors)
        codes = faiss.unpack_bitstrings(packed, levels, bits).astype(np.int64)
        return codes, quantizer.decode(packed)

    return encode


def fit_tree(vectors: Floats, seed: int, linked: int) -> Callable[[Floats], Coded]:
    """Fit a TreeVQ in groups of linked levels."""
    layer = TreeVQ(vectors.shape[1], 2**BITS, LEVELS, linked=linked, beam=4, coarse_weight=0.0)
    layer.fit(vectors, seed=seed)

    def encode(vectors: Floats) -> Coded:
        indices = layer.encode(vectors)
        return indices.numpy(), layer.get_output_from_indices(indices).numpy()

    return encode


def sides(seed: int) -> dict[str, Fit]:
    """Return what is compared."""
    faiss = {f"faiss {kind}": partial(fit_faiss, seed=seed, kind=kind) for kind in FAISS}
    trees = {f"TreeVQ, groups of {g}": partial(fit_tree, seed=seed, linked=g) for g in (1, 2)}
    return {**faiss, **trees}


def measure(fit: Fit, train: Floats, test: Floats) -> Row:
    """Return left (share of the test vectors' variance), fit_seconds, search_seconds and used
    (codes of the training vectors).
    """
    begun = time.process_time()
    encode = fit(train)
    fitted = time.process_time()
    _, values = encode(test)
    ended = time.process_time()
    codes, _ = encode(train)
    variance = np.square(test - train.mean(0)).sum(dtype=np.float64)
    return {
        "left": float(np.square(test - values).sum(dtype=np.float64) / variance),
        "fit_seconds": fitted - begun,
        "search_seconds": ended - fitted,
        "used": len(np.unique(codes, axis=0)),
    }


def bench_vectors(seeds: int, train_count: int, test_count: int) -> list[Row]:
    """Return a row per side and seed."""
    train = read_pixels("train", train_count)
    test = read_pixels("test", test_count)
    rows = list[Row]()
    for seed in range(seeds):
        vectors = patches(train, train_count, 2 * seed)
        test_vectors = patches(test, test_count, 2 * seed + 1)
        for name, fit in sides(seed).items():
            note(f"{name}, seed {seed}")
            rows.append({"side": name, "seed": seed, **measure(fit, vectors, test_vectors)})
    return rows


COLUMNS = {
    "side": "{side}",
    "seed": "{seed}",
    "variance left": "{left:.4f}",
    "fit s": "{fit_seconds:.1f}",
    "search s": "{search_seconds:.2f}",
    "codes used": "{used:,.0f}",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Fit every side to patches of CIFAR10."""
    parser = options(__doc__)
    parser.add_argument(
        "--vectors", type=positive, nargs=2, default=(20_000, 10_000), metavar=("TRAIN", "TEST")
    )
    parser.add_argument("--seeds", type=positive, default=3, metavar="N")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    train_count, test_count = arguments.vectors
    rows = bench_vectors(arguments.seeds, train_count, test_count)
    finish(rows, COLUMNS, arguments.json)
    if not arguments.json:
        print(f"\n{compare_pairs([{**row, 'mse': row['left']} for row in rows], 'side')}")


if __name__ == "__main__":
    as_script(main)
