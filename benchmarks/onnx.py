"""A trained model as ONNX beside torch: whether both say the same of a split's images, and how fast each is."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Row, as_script, options, positive, show, side_by_side
from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.cli.console import print_json
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import load_images
from hrvqvae.export.graphs import Agreement, OnnxModel, compare, export_graphs
from hrvqvae.models.base import Autoencoder
from hrvqvae.utils.errors import InputError

_BATCH = 100


def bench_onnx(
    run: str | Path, *, images: int = 1000, data: str | None = None, batches: Sequence[int] = (1, 100), rounds: int = 20
) -> tuple[Agreement, list[Row]]:
    """Compare on so many test images, and time both sides by turns: rows with task, batch, method, seconds_per_image.

    Both have as many threads as torch. ratio is torch's time over that of the row.

    Raises:
        InputError: as `export_graphs`; or the data is not there.
    """
    model, config = load_with_config(run)
    found = load_images(config.with_root(data).data, "test")
    with tempfile.TemporaryDirectory() as folder:
        export_graphs(run, Path(folder) / "onnx")
        graphs = OnnxModel(Path(folder) / "onnx")
        batched = evaluation_batches(found, batch_size=_BATCH, limit=images, workers=0)
        units = [batch.images.float() / 255 for batch in batched]
        if not units:
            raise InputError(f"no test image of {run} could be read")
        agreement = compare(model, graphs, units)
        rows = [row for size in batches for row in _timed(model, graphs, _so_many(units[0], size), rounds)]
    return agreement, rows


def _so_many(images: Tensor, count: int) -> Tensor:
    """(B, C, Y, X) -> (count, C, Y, X): the first ones, or all of them again and again."""
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]


def _timed(model: Autoencoder, graphs: OnnxModel, images: Tensor, rounds: int) -> list[Row]:
    levels = model.prefixes[-1]
    with torch.inference_mode():
        codes = model.encode(images)
        tasks: dict[str, dict[str, Callable[[], Any]]] = {
            "encode": {"torch": lambda: model.encode(images), "onnxruntime": lambda: graphs.encode(images)},
            "decode": {"torch": lambda: model.decode(codes), "onnxruntime": lambda: graphs.decode(codes, levels)},
        }
        rows = []
        for task, calls in tasks.items():
            seconds = side_by_side(calls, rounds)
            rows += [
                {
                    "task": task, "batch": len(images), "method": method, "seconds_per_image": spent / len(images),
                    "ratio": seconds["torch"] / spent,
                }
                for method, spent in seconds.items()
            ]  # fmt: skip
    return rows


COLUMNS = {
    "task": "{task}", "batch": "{batch}", "method": "{method}", "ms per image": "{ms_per_image:.3f}",
    "ratio": "{ratio:.2f}",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Export a run, compare and time it."""
    parser = options(__doc__)
    parser.add_argument("run", nargs="?", default="mnist", metavar="RUN", help="default: the model in the package")
    parser.add_argument("--images", type=positive, default=1000, metavar="N", help="test images (default: 1000)")
    parser.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")
    parser.add_argument("--rounds", type=positive, default=20, metavar="N", help="calls of each row (default: 20)")
    arguments = parser.parse_args(argv)
    agreement, rows = bench_onnx(arguments.run, images=arguments.images, data=arguments.data, rounds=arguments.rounds)
    if arguments.json:
        print_json({"agreement": dataclasses.asdict(agreement), "rows": rows})
        return
    print(f"{agreement}\n")
    show(rows, COLUMNS)


if __name__ == "__main__":
    as_script(main)
