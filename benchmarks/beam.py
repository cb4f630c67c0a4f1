"""Encoding in other ways than in training: a beam by width and weight, and codes that weigh error against bits.

With --photo FILE: the search by rate and distortion of one image with fewer or more candidates and sweeps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Row, as_script, options, positive, show, side_by_side
from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.cli.console import print_json
from hrvqvae.compression import rate_distortion
from hrvqvae.compression.hrv import write
from hrvqvae.compression.images import flat_codes
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.images import read_image
from hrvqvae.data.loading import load_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import Codes
from hrvqvae.quantize.search import Search, search
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import psnr

WIDTHS, WEIGHTS = (1, 2, 4, 8, 16, 32, 64), (0.0, 0.1, 0.3)
RATES = (None, 0.0, 0.0025, 0.005, 0.01)
"""Rate-distortion lambda; None is the usual search."""
EFFORTS = ((16, 2), (8, 2), (4, 2), (16, 1), (8, 1), (4, 1))
"""Leaves near a latent, and sweeps."""
_SHOWN = {"bytes": ",", "psnr": ".2f", "gain": "+.2f"}
_BATCH, _WEIGHED = 100, 100


def bench_beam(
    run: str | Path, *, images: int = 1000, data: str | None = None, widths: Sequence[int] = WIDTHS,
    weights: Sequence[float] = WEIGHTS, rates: Sequence[float | None] = RATES, rounds: int = 5,
) -> tuple[list[Row], list[Row]]:  # fmt: skip
    """Encode so many test images of a trained model with linked codebooks in many ways.

    Returns:
        Rows with width, coarse_weight, level_mse, milliseconds (of the search for the latents of 100 images, all widths
        by turns) and ratio (to the greedy search's); and rows with lmbda, bytes_per_image (of files), level_mse
        and milliseconds of processor time an image, of the first 100 images at most.

    Raises:
        InputError: the model has no linked codebooks, or the data is not there.
    """
    trained = TrainedModel(run)
    model = trained.autoencoder
    if not (isinstance(model, SingleGridAutoencoder) and model.linked_codebooks):
        raise InputError(f"{run} has no linked codebooks, which a beam searches")
    found = load_images(trained.config.with_root(data).data, "test")
    units = [batch.images.float() / 255 for batch in evaluation_batches(found, batch_size=_BATCH, limit=images)]
    if not units:
        raise InputError(f"no test image of {run} could be read")
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
    some = units[0][:_WEIGHED]
    trained.encode(some[:1], 0.0)  # what is compiled is compiled now
    return rows, [_weighed(trained, model, some, rate) for rate in rates]


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


def _weighed(trained: TrainedModel, model: SingleGridAutoencoder, unit: Tensor, weight: float | None) -> Row:
    """A row of images that are encoded with a lambda."""
    begin = time.process_time()
    codes = trained.encode(unit, weight)
    spent = time.process_time() - begin
    files = write(trained.codec, flat_codes(codes), (unit.shape[-2], unit.shape[-1]))
    return {
        "lmbda": weight, "bytes_per_image": sum(len(b"".join(parts)) for parts in files) / len(unit),
        "level_mse": _level_mse(model, [unit], [codes]), "milliseconds": spent * 1e3 / len(unit),
    }  # fmt: skip


def bench_effort(
    run: str | Path, photo: Path, efforts: Sequence[tuple[int, int]] = EFFORTS, rates: Sequence[float] = RATES[2:]
) -> list[Row]:
    """The search of an image by each effort: leaves near a latent, and sweeps.

    Returns:
        Rows with near, sweeps, seconds (of the processor for one lambda), and for each lambda bytes, psnr, and gain:
        the decibels above the codes of the first effort in as many bytes, None beyond what was measured.

    Raises:
        InputError: the model takes no lambda, or the image can't be read.
    """
    trained = TrainedModel(run)
    image = torch.from_numpy(read_image(photo, trained.autoencoder.channels))[None]
    size, rows = (image.shape[-2], image.shape[-1]), list[Row]()
    trained.encode(image[..., :32, :32], 0.01)  # what is compiled is compiled now
    for near, sweeps in efforts:
        row: Row = {"near": near, "sweeps": sweeps, "bytes": [], "psnr": []}
        begin = time.process_time()
        with patch.multiple(rate_distortion, _NEAR=near, _SWEEPS=sweeps):
            found = [trained.encode(image, rate) for rate in rates]
        row["seconds"] = (time.process_time() - begin) / len(rates)
        for codes in found:
            row["bytes"].append(len(b"".join(write(trained.codec, flat_codes(codes), size)[0])))
            row["psnr"].append(psnr(float((trained.decode(codes, size=size) - image / 255).square().mean())))
        rows.append(row)
        order = np.argsort(rows[0]["bytes"])
        sizes, best = np.log(rows[0]["bytes"])[order], np.array(rows[0]["psnr"])[order]
        there = np.interp(np.log(row["bytes"]), sizes, best, left=np.nan, right=np.nan)
        row["gain"] = (np.array(row["psnr"]) - there).tolist()
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Encode the test images of a run in every way."""
    parser = options(__doc__)
    parser.add_argument("run", nargs="?", default="cifar10", metavar="RUN", help="default: the model in the package")
    parser.add_argument("--images", type=positive, default=1000, metavar="N", help="test images (default: 1000)")
    parser.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")
    parser.add_argument("--widths", type=positive, nargs="+", default=WIDTHS, metavar="W", help="paths that are kept")
    parser.add_argument("--photo", type=Path, metavar="FILE", help="search this image with several efforts instead")
    arguments = parser.parse_args(argv)
    if arguments.photo:
        rows = bench_effort(arguments.run, arguments.photo)
        if arguments.json:
            print_json(rows)
            return
        for row in rows:
            row |= {name: ", ".join(f"{one:{form}}" for one in row[name]) for name, form in _SHOWN.items()}
        columns = {"leaves": "{near}", "sweeps": "{sweeps}", "CPU s": "{seconds:.1f}"}
        show(rows, columns | {name: f"{{{name}}}" for name in _SHOWN})
        return
    rows, rate_rows = bench_beam(arguments.run, images=arguments.images, data=arguments.data, widths=arguments.widths)
    if arguments.json:
        print_json({"beams": rows, "rates": rate_rows})
        return
    levels = range(1, len(rows[0]["level_mse"]) + 1)
    errors = {f"MSE, levels 1-{level}": f"{{level_mse[{level - 1}]:.3e}}" for level in levels}
    times = {"search, ms": "{milliseconds:.2f}", "ratio": "{ratio:.1f}"}
    show(rows, {"width": "{width}", "coarse weight": "{coarse_weight:g}", **errors, **times})
    print()
    sizes = {"lambda": "{lmbda}", "bytes per image": "{bytes_per_image:.1f}"}
    show(rate_rows, {**sizes, **errors, "ms per image": "{milliseconds:.0f}"})


if __name__ == "__main__":
    as_script(main)
