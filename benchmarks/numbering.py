"""Bits per code of entropy models, for children numbered as saved and at random.

python -m benchmarks.numbering RUN RUN fits entropy models, with a quarter of the usual updates, to
the codes of test images; the bits are those of held-out images. In a saved model whose children are
aligned, a code means about the same below every parent. The random numbers are drawn for each
parent apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.common import Row, as_script, finish, options, positive, read_images
from hrvqvae.checkpoints.run import Run
from hrvqvae.compression.learning import learn_level
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import ResidualQuantizer

COLUMNS = {
    "run": "{run}",
    "children": "{numbers}",
    "bits per code": "{bits:.3f}",
    "by level": "{levels}",
}


@torch.inference_mode()
def bench_numbering(run: str, levels: int, limit: int, effort: float) -> list[Row]:
    """Return rows with run, numbers ("saved" or "random"), bits (per code, mean of the first
    `levels`) and levels.
    """
    model, config = Run(run).load()
    assert isinstance(model, SingleGridAutoencoder)
    images = read_images(config.data, limit)
    quantizer = model.quantizer
    assert isinstance(quantizer, ResidualQuantizer)
    parts = [torch.stack(model.encode(part.float() / 255)) for part in torch.split(images, 100)]
    codes = torch.cat(parts, 1)  # (L, N, H, W)
    generator = torch.Generator().manual_seed(0)
    drawn = [codes[0]]
    indices = quantizer.codeword_indices(tuple(codes))
    for index, size, book in zip(
        indices[1:], config.model.num_symbols[1:], quantizer.levels[1:], strict=True
    ):
        numbers = torch.rand(book.num_books, size, generator=generator).argsort(1)
        drawn.append(numbers.flatten()[index])
    rows: list[Row] = []
    for name, numbered in {"saved": list(codes), "random": drawn}.items():
        arrays = [level.numpy() for level in numbered]
        symbols = config.model.num_symbols
        bits = [
            learn_level(arrays[: n + 1], symbols[: n + 1], effort)[1]
            for n in range(min(levels, len(arrays)))
        ]
        rows.append({"run": run, "numbers": name, "bits": float(np.mean(bits))})
        rows[-1]["levels"] = " ".join(f"{each:.3f}" for each in bits)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the entropy of codes, with the numbers of children as saved and at random."""
    parser = options(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument(
        "--levels", type=positive, default=4, metavar="N", help="the first N levels (default: 4)"
    )
    parser.add_argument(
        "--images", type=positive, default=5_000, metavar="N", help="test images (default: 5000)"
    )
    parser.add_argument(
        "--effort", type=float, default=0.25, metavar="X", help="of each fit (default: 0.25)"
    )
    given = parser.parse_args(argv)
    rows = [
        row
        for run in given.runs
        for row in bench_numbering(run, given.levels, given.images, given.effort)
    ]
    finish(rows, COLUMNS, given.json)


if __name__ == "__main__":
    as_script(main)
