"""Encoding with a beam: error of each prefix and time of the search by width and weight; what a rate term brings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hrvqvae.bench.timing import Timing, side_by_side
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import load_images
from hrvqvae.errors import InputError
from hrvqvae.quantize.search import Beam
from hrvqvae.runs.loading import load_with_config
from hrvqvae.systems.one_grid import OneGrid

WIDTHS, WEIGHTS = (1, 2, 4, 8, 16, 64), (0.0, 0.1, 0.3)
RATES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Weights of a bit, as shares of the error that the greedy search leaves a position for each of its bits."""
_BATCH = 100


def bench_beam(
    run: str | Path, *, images: int = 1000, data: str | None = None, widths: Sequence[int] = WIDTHS,
    weights: Sequence[float] = WEIGHTS, rates: Sequence[float] = RATES, rounds: int = 5,
) -> tuple[list[Timing], list[Timing]]:  # fmt: skip
    """Encode so many test images of a trained model with linked codebooks in many ways.

    Returns:
        Rows with width, coarse_weight, level_mse, milliseconds (of the search for the latents of 100 images, all widths
        by turns) and ratio (to the greedy search's); and rows with width, rate_weight, bits_per_image and mse, where
        bits are those of the codes under the model's own frequencies of codewords given the path.

    Raises:
        InputError: the model has no linked codebooks, or the data is not there.
    """
    model, config = load_with_config(run)
    if not (isinstance(model, OneGrid) and model.linked_codebooks):
        raise InputError(f"{run} has no linked codebooks, which a beam searches")
    found = load_images(config.with_root(data).data, "test")
    units = [batch.images.float() / 255 for batch in evaluation_batches(found, batch_size=_BATCH, limit=images)]
    if not units:
        raise InputError(f"no test image of {run} could be read")
    first = _flat(model, units[0])
    books = model.linked_codebooks
    seconds = side_by_side({str(width): lambda width=width: Beam(width)(first, books) for width in widths}, rounds)  # type: ignore[misc]
    rows = []
    for width in widths:
        for weight in weights if width > 1 else weights[:1]:
            errors, _ = _measured(model, units, Beam(width, weight), ())
            spent = seconds[str(width)]
            rows.append(
                {
                    "width": width, "coarse_weight": weight, "level_mse": errors, "milliseconds": spent * 1e3,
                    "ratio": spent / seconds[str(widths[0])],
                }
            )  # fmt: skip
    costs = _bits_of_codewords(model)
    greedy = Beam(1)(first, books)
    unit = float((first - greedy.quantized).square().sum(1).mean()) / float(_bits(costs, greedy.paths).mean())
    rate_rows = []
    for width, rate in [(1, 0.0), *((widths[-1], rate) for rate in rates)]:
        penalties = [rate * unit * cost for cost in costs] if rate else []
        errors, bits = _measured(model, units, Beam(width, 0.0, penalties), costs)
        rate_rows.append({"width": width, "rate_weight": rate, "bits_per_image": bits, "mse": errors[-1]})
    return rows, rate_rows


def _flat(model: OneGrid, unit: Tensor) -> Tensor:
    """Latents (N, D) of images in [0, 1]."""
    with torch.inference_mode():
        return model.latents(unit).flatten(0, -2).clone()


def _bits_of_codewords(model: OneGrid) -> list[Tensor]:
    """Of each level (m^l,): -log2 of a codeword's share of its codebook's vectors, by the counts of the training."""
    counts = [count.float() + 1e-3 for count in model.codeword_counts]
    return [-(count / count.sum(1, keepdim=True)).log2().flatten() for count in counts]


def _bits(costs: Sequence[Tensor], paths: Tensor) -> Tensor:
    """Bits that each position's codes take: paths (L, N) -> (N,)."""
    return torch.stack([cost[path] for cost, path in zip(costs, paths, strict=True)]).sum(0)


def _measured(
    model: OneGrid, units: Sequence[Tensor], search: Beam, costs: Sequence[Tensor]
) -> tuple[list[float], float]:
    """Test MSE of each prefix, and bits an image (0 without costs)."""
    pixels, images = sum(unit.numel() for unit in units), sum(len(unit) for unit in units)
    errors, bits = [0.0] * len(model.prefixes), 0.0
    for unit, codes, paths in _encoded(model, units, search):
        size = (unit.shape[-2], unit.shape[-1])
        with torch.inference_mode():
            for place, levels in enumerate(model.prefixes):
                decoded = model.decode(codes, levels, size)
                errors[place] += float((decoded - unit).square().sum().double())
        bits += float(_bits(costs, paths).sum()) if costs else 0.0
    return [error / pixels for error in errors], bits / images


def _encoded(
    model: OneGrid, units: Sequence[Tensor], search: Beam
) -> Iterator[tuple[Tensor, tuple[Tensor, ...], Tensor]]:
    """(images, codes, paths (L, N)) of each batch."""
    books = model.linked_codebooks
    for unit in units:
        with torch.inference_mode():
            latents = model.latents(unit)
            paths = search(latents.flatten(0, -2), books).paths
        codes = tuple((path % books[0].shape[1]).view(latents.shape[:-1]) for path in paths)
        yield unit, codes, paths


def as_tables(rows: Sequence[Timing], rate_rows: Sequence[Timing]) -> tuple[list[tuple[object, ...]], ...]:
    """Both kinds of rows for a person, each with a head."""
    levels = len(rows[0]["level_mse"])
    names = [f"MSE, levels 1-{level}" if level > 1 else "MSE, level 1" for level in range(1, levels + 1)]
    widths: list[tuple[object, ...]] = [("width", "coarse weight", *names, "search, ms", "ratio")]
    for row in rows:
        errors = (f"{error:.3e}" for error in row["level_mse"])
        spent = f"{row['milliseconds']:.2f}", f"{row['ratio']:.1f}"
        widths.append((row["width"], f"{row['coarse_weight']:g}", *errors, *spent))
    rates: list[tuple[object, ...]] = [("width", "weight of a bit", "bits an image", "MSE")]
    for row in rate_rows:
        bits, error = f"{row['bits_per_image']:,.1f}", f"{row['mse']:.3e}"
        rates.append((row["width"], f"{row['rate_weight']:g}", bits, error))
    return widths, rates
