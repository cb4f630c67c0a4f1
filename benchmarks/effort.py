"""Measure error, bits and time of encoding by effort, on test images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Row, as_script, finish, options, positive, preset_of, read_images
from hrvqvae.compression.decoder_search import EFFORTS
from hrvqvae.compression.hrv import write
from hrvqvae.compression.images import flat_codes
from hrvqvae.model import Model
from hrvqvae.utils.quantities import psnr

_BATCH = 32
_WORSE = 1.001  # times the error of effort 0 from which an image counts as worse


def _squared_errors(decoded: Tensor, images: Tensor) -> Tensor:
    """Return the mean squared error of each image (B,) on the scale [0, 1]."""
    return (decoded.cpu().double() - images / 255).square().mean((1, 2, 3))


def _run_batches(encode: Callable[[Tensor], Any], images: Tensor) -> tuple[list[Any], float]:
    """Return what `encode` makes of each batch, and its CPU seconds per image."""
    encode(images[:_BATCH])  # loads compiled code
    begun = time.process_time()
    made = [encode(batch) for batch in torch.split(images, _BATCH)]
    return made, (time.process_time() - begun) / len(images)


def bench_effort(
    name: str, images: Tensor, lmbda: float | None = None, limits: Sequence[int] = ()
) -> list[Row]:
    """Return a row per effort, then with lambda, then per limit of bytes, of a model.

    Args:
        name: Run folder, or a model in the package.
        images: Test images (N, C, Y, X) uint8.
        lmbda: Weight of a bit, measured with effort 2.
        limits: Largest numbers of bytes of a file.
    """
    model = Model(name)
    size = (images.shape[-2], images.shape[-1])
    codings = {f"effort {effort}": partial(model.encode, effort=effort) for effort in EFFORTS}
    if lmbda is not None:
        codings[f"lambda {lmbda:g}"] = partial(model.encode, lmbda=lmbda)
    runs: dict[str, Callable[[Tensor], Any]] = dict(codings)
    runs |= {f"{limit} bytes": partial(model.compress, max_bytes=limit) for limit in limits}
    rows: list[Row] = []
    for coding, encode in runs.items():
        made, spent = _run_batches(encode, images)
        if coding in codings:
            codes = [torch.cat(level) for level in zip(*made, strict=True)]
            files = write(model.entropy_model, flat_codes(tuple(codes)), size)
        else:
            files = [file for batch in made for file in batch]
        decoded = torch.stack(model.decompress(files))
        errors = _squared_errors(decoded, images)
        if not rows:
            usual_errors = errors
            usual_seconds = spent
        mse = float(errors.mean())
        row: Row = {"model": name, "coding": coding, "images": len(images), "mse": mse}
        row["psnr"] = psnr(mse)
        row["mean_psnr"] = sum(map(psnr, errors.tolist())) / len(errors)
        row["bits"] = 8 * sum(map(len, files)) / len(files)
        row["worse"] = int((errors > _WORSE * usual_errors).sum())
        row["change"] = mse / float(usual_errors.mean()) - 1
        row["seconds"] = spent
        row["ratio"] = spent / usual_seconds
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure models by effort, with one thread."""
    parser = options(__doc__)
    parser.add_argument("preset", metavar="DATASET", help="mnist, cifar10, photos, ...")
    parser.add_argument("--models", nargs="+", required=True, metavar="RUN")
    parser.add_argument("--images", type=positive, default=500, metavar="N", help="default: 500")
    parser.add_argument("--lmbda", type=float, metavar="V", help="also with this lambda")
    parser.add_argument("--bytes", type=positive, nargs="+", default=(), metavar="N")
    parser.add_argument("--data", metavar="DIR", help="root folder, or a folder of images")
    arguments, config = preset_of(parser, argv, "hrvqvae/")
    torch.set_num_threads(1)
    images = read_images(config.with_root(arguments.data).data, arguments.images)
    rows = [
        row
        for name in arguments.models
        for row in bench_effort(name, images, arguments.lmbda, arguments.bytes)
    ]
    columns = {
        "model": "{model}",
        "coding": "{coding}",
        "MSE * 1e4": "{scaled:.3f}",
        "change": "{change:+.1%}",
        "PSNR": "{psnr:.2f}",
        "mean PSNR": "{mean_psnr:.2f}",
        "bits": "{bits:,.0f}",
        "worse": "{worse}",
        "CPU ms": "{ms:.2f}",
        "ratio": "{ratio:.2f}",
    }
    shown = [row | {"scaled": 1e4 * row["mse"], "ms": 1e3 * row["seconds"]} for row in rows]
    finish(rows if arguments.json else shown, columns, arguments.json)


if __name__ == "__main__":
    as_script(main)
