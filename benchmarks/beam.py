"""Encoding with another beam than in training, by width and weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import Row, as_script, finish, options, positive, read_images, side_by_side
from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import Codes
from hrvqvae.quantize.search import Search, search
from hrvqvae.utils.errors import InputError

WIDTHS, WEIGHTS = (1, 2, 4, 8, 16, 32, 64), (0.0, 0.1, 0.3)
_BATCH = 100


def bench_beam(
    run: str | Path, *, images: int = 1000, data: str | None = None, widths: Sequence[int] = WIDTHS,
    weights: Sequence[float] = WEIGHTS, rounds: int = 5,
) -> list[Row]:  # fmt: skip
    """Encode so many test images of a trained model with linked codebooks in many ways.

    Returns:
        Rows with width, coarse_weight, level_mse, milliseconds (of the search for the latents of 100 images, all widths
        by turns) and ratio (to the greedy search's).

    Raises:
        InputError: the model has no linked codebooks, or the data is not there.
    """
    trained = TrainedModel(run)
    model = trained.autoencoder
    if not (isinstance(model, SingleGridAutoencoder) and model.linked_codebooks):
        raise InputError(f"{run} has no linked codebooks, which a beam searches")
    units = torch.split(read_images(trained.config.with_root(data).data, images).float() / 255, _BATCH)
    books = model.linked_codebooks
    with torch.no_grad():
        latents = [model.latents(unit).flatten(0, -2) for unit in units]
    seconds = side_by_side({str(width): partial(search, latents[0], books, width) for width in widths}, rounds)
    rows = []
    for width in widths:
        for weight in weights if width > 1 else weights[:1]:
            by_beam = partial(search, width=width, coarse_weight=weight)
            codes = [_codes(model, by_beam, flat, unit) for flat, unit in zip(latents, units, strict=True)]
            spent = seconds[str(width)]
            rows.append(
                {
                    "width": width, "coarse_weight": weight, "level_mse": _level_mse(model, units, codes),
                    "milliseconds": spent * 1e3, "ratio": spent / seconds[str(widths[0])],
                }
            )  # fmt: skip
    return rows


def _codes(model: SingleGridAutoencoder, find: Search, flat: Tensor, unit: Tensor) -> Codes:
    """Of images, by their latents."""
    grid = (len(unit), *model.config.grid(unit.shape[-2], unit.shape[-1]))
    size = model.linked_codebooks[0].shape[1]
    return tuple((path % size).view(grid) for path in find(flat, model.linked_codebooks))


@torch.inference_mode()
def _level_mse(model: SingleGridAutoencoder, units: Sequence[Tensor], codes: Sequence[Codes]) -> list[float]:
    """MSE of each prefix of the codes of batches of images (B, C, Y, X) in [0, 1]."""
    totals = torch.zeros(len(model.prefixes), dtype=torch.float64)
    for unit, some in zip(units, codes, strict=True):
        size = (unit.shape[-2], unit.shape[-1])
        for place, levels in enumerate(model.prefixes):
            totals[place] += (model.decode(some, levels, size) - unit).double().square().mean() * len(unit)
    return (totals / sum(map(len, units))).tolist()


def main(argv: Sequence[str] | None = None) -> None:
    """Encode the test images of a run in every way."""
    parser = options(__doc__)
    parser.add_argument("run", nargs="?", default="cifar10", metavar="RUN", help="default: the model in the package")
    parser.add_argument("--images", type=positive, default=1000, metavar="N", help="test images (default: 1000)")
    parser.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")
    parser.add_argument("--widths", type=positive, nargs="+", default=WIDTHS, metavar="W", help="paths that are kept")
    arguments = parser.parse_args(argv)
    rows = bench_beam(arguments.run, images=arguments.images, data=arguments.data, widths=arguments.widths)
    levels = range(1, len(rows[0]["level_mse"]) + 1)
    errors = {f"MSE, levels 1-{level}": f"{{level_mse[{level - 1}]:.3e}}" for level in levels}
    times = {"search, ms": "{milliseconds:.2f}", "ratio": "{ratio:.1f}"}
    finish(rows, {"width": "{width}", "coarse weight": "{coarse_weight:g}", **errors, **times}, arguments.json)


if __name__ == "__main__":
    as_script(main)
