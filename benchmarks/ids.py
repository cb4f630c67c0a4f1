"""IDs for items: TreeVQ's unique indices of vectors beside residual k-means.

Vectors are features of efficientnet-lite0 for the training images of CIFAR10. With --synthetic they
are the sum of one of 64 random centres, one of 64 that are half as far apart, and normal noise of
half the first deviation.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import (
    Row,
    as_script,
    finish,
    import_rival,
    options,
    positive,
    read_images,
)
from hrvqvae.config import DataConfig
from hrvqvae.models.perceptual import EFFICIENTNET, EfficientNetDistance, perceptual_distance
from hrvqvae.quantize.layer import TreeVQ

T = TypeVar("T")
Floats = NDArray[np.float32]
Codes = NDArray[np.int64]

NEIGHBOURS = 10
QUERIES = 1_000
_SLICE = 50_000
_DIM = 64
_CENTRES = 64
_ALL_POINTS = 10**9  # per codeword; faiss's default is 256


def features() -> Floats:
    """Return the features (N, 320) of efficientnet-lite0 for the training images of CIFAR10."""
    network = perceptual_distance(EFFICIENTNET)
    assert isinstance(network, EfficientNetDistance)
    images = read_images(DataConfig(dataset="cifar10", size=32, channels=3), split="train")
    with torch.no_grad():
        return torch.cat([network.pooled(part / 255) for part in torch.split(images, 250)]).numpy()


def fit_residual(vectors: Floats, bits: int, levels: int, seed: int) -> Callable[[], Codes]:
    """Fit faiss's residual k-means; return the function that encodes the vectors. Raises
    InputError.
    """
    faiss = import_rival("faiss")
    faiss.omp_set_num_threads(1)
    quantizer: Any = faiss.ResidualQuantizer(vectors.shape[1], levels, bits)
    quantizer.cp.seed = seed + 1
    quantizer.cp.max_points_per_centroid = _ALL_POINTS
    quantizer.max_beam_size = 1
    quantizer.train(vectors)

    def encode() -> Codes:
        codes: Codes = faiss.unpack_bitstrings(quantizer.compute_codes(vectors), levels, bits)
        return codes.astype(np.int64)

    return encode


def synthetic(count: int) -> Floats:
    """Return vectors (count, 64): a centre of each of two levels, and noise."""
    rng = np.random.default_rng(0)
    vectors: Floats = rng.standard_normal((count, _DIM), dtype=np.float32) / np.float32(2)
    for distance in (1.0, 0.5):
        centres = rng.standard_normal((_CENTRES, _DIM), dtype=np.float32) * np.float32(distance)
        vectors += centres[rng.integers(_CENTRES, size=count)]
    return vectors


def neighbours_kept(vectors: Floats, codes: Codes, seed: int, levels: int) -> float:
    """Return the share of an item's nearest neighbours that have its first codes."""
    rng = np.random.default_rng(seed)
    queries = rng.choice(len(vectors), min(QUERIES, len(vectors)), replace=False)
    items = torch.from_numpy(vectors)
    squared = items.square().sum(1)
    kept = 0.0
    for chosen in np.array_split(queries, -(-len(queries) // 100)):
        distances = squared - 2 * items[chosen] @ items.T
        near = distances.topk(NEIGHBOURS + 1, largest=False).indices[:, 1:].numpy()
        same = codes[near, :levels] == codes[chosen, None, :levels]
        kept += float(same.all(-1).mean(1).sum())
    return kept / len(queries)


def collisions(codes: Codes) -> int:
    """Return how many items have the indices of an item before them."""
    return len(codes) - len(np.unique(codes, axis=0))


def bits_per_code(codes: Codes, size: int) -> float:
    """Return the bits per code of every second item, by counts of each code after its coarser code
    in the others.
    """
    counted = codes[::2]
    tested = codes[1::2]
    nats = 0.0
    for level in range(codes.shape[1]):
        counts = np.full((size, size), 0.1)
        if level:
            before, after = counted[:, level - 1], tested[:, level - 1]
        else:
            before, after = np.zeros_like(counted[:, 0]), np.zeros_like(tested[:, 0])
        np.add.at(counts, (before, counted[:, level]), 1)
        nats -= float(np.log(counts[after, tested[:, level]] / counts[after].sum(1)).sum())
    return float(nats / np.log(2) / tested.size)


def timed(spent: Row, name: str, call: Callable[[], T]) -> T:
    """Return the result of a call; its processor time is added to `spent`."""
    begun = time.process_time()
    result = call()
    spent[name] = time.process_time() - begun
    return result


def measure_error(tree: TreeVQ, vectors: Floats, codes: torch.Tensor) -> float:
    """Return the mean squared error of vectors, summed over their values."""
    total = 0.0
    for start in range(0, len(vectors), _SLICE):
        part = slice(start, start + _SLICE)
        values = tree.get_output_from_indices(codes[part]).numpy()
        total += float(np.square(vectors[part] - values).sum(dtype=np.float64))
    return total / len(vectors)


def bench_ids(vectors: Floats, codewords: int, levels: int, passes: int, seed: int) -> list[Row]:
    """Return rows with side, collisions, moved, added (error by moving), kept_1, kept_2,
    bits and seconds.
    """
    # a tree, aligned after the fit
    tree = TreeVQ(vectors.shape[1], codewords, levels)
    spent: Row = {}
    timed(spent, "fit_seconds", lambda: tree.fit(vectors, passes=passes, seed=seed))
    spent["bits_before"] = bits_per_code(tree.encode(vectors).numpy(), codewords)
    tree.align()
    codes = timed(spent, "encode_seconds", lambda: tree.encode(vectors))

    # items that share their indices move
    moving: Row = {}
    unique = timed(moving, "unique_seconds", lambda: tree.unique_indices(vectors))
    moving["moved"] = float((codes != unique).any(1).double().mean())
    added = measure_error(tree, vectors, unique) / measure_error(tree, vectors, codes)
    moving["added"] = added - 1

    # residual k-means
    theirs: Row = {}
    bits = codewords.bit_length() - 1
    encode = timed(theirs, "fit_seconds", lambda: fit_residual(vectors, bits, levels, seed))
    their_codes = timed(theirs, "encode_seconds", encode)
    sides: dict[str, tuple[Codes, Row]] = {
        "TreeVQ": (codes.numpy(), spent),
        "TreeVQ, unique": (unique.numpy(), moving),
        "residual k-means": (their_codes, theirs),
    }
    return [
        {
            "side": side,
            "collisions": collisions(ids),
            "kept_1": neighbours_kept(vectors, ids, seed, 1),
            "kept_2": neighbours_kept(vectors, ids, seed, 2),
            "bits": bits_per_code(ids, codewords),
            "seed": seed,
            **measured,
        }
        for side, (ids, measured) in sides.items()
    ]


COLUMNS = {
    "IDs by": "{side}",
    "seed": "{seed}",
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
}


def main(argv: Sequence[str] | None = None) -> None:
    """Give IDs to items, and measure them."""
    parser = options(__doc__)
    parser.add_argument("--synthetic", type=positive, metavar="N", help="take synthetic vectors")
    parser.add_argument("--size", type=positive, nargs=2, default=(64, 3), metavar=("M", "L"))
    parser.add_argument("--passes", type=positive, default=10, metavar="N", help="of the fit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    vectors = synthetic(arguments.synthetic) if arguments.synthetic else features()
    codewords, levels = arguments.size
    rows = list[Row]()
    for seed in arguments.seeds:
        rows += bench_ids(vectors, codewords, levels, arguments.passes, seed)
    finish(rows, COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
