"""Measure error, bits and time of encoding by effort, on test images."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    Row,
    as_script,
    finish,
    options,
    parse_lines,
    positive,
    preset_of,
    read_images,
)
from hrvqvae.compression.decoder_search import EFFORTS
from hrvqvae.compression.hrv import write
from hrvqvae.compression.levels import flat_codes
from hrvqvae.model import Model
from hrvqvae.utils.quantities import psnr

_BATCH = 32
_WORSE = 1.001  # times the error of effort 0 from which an image counts as worse


def _run_batches(encode: Callable[[Tensor], Any], images: Tensor) -> tuple[list[Any], float]:
    """Return what `encode` makes of each batch, and its CPU seconds per image."""
    encode(images[:_BATCH])  # loads compiled code
    begun = time.process_time()
    results = [encode(batch) for batch in torch.split(images, _BATCH)]
    return results, (time.process_time() - begun) / len(images)


def bench_effort(
    name: str,
    images: Tensor,
    limits: Sequence[int] = (),
    beams: Sequence[int] = (),
) -> list[Row]:
    """Return a row per effort, also with each beam, then per limit of bytes.

    Args:
        name: Run folder, or a model in the package.
        images: Test images (N, C, Y, X) uint8.
        limits: Largest numbers of bytes of a file.
        beams: Candidates of the search per level, in place of those of the training.
    """
    model = Model(name)
    runs: dict[str, Callable[[Tensor], Any]] = {
        f"effort {effort}": partial(model.encode, effort=effort) for effort in EFFORTS
    }
    for beam in beams:
        wide = Model(name, beam=beam)
        for effort in EFFORTS:
            runs[f"effort {effort}, beam {beam}"] = partial(wide.encode, effort=effort)
    runs |= {f"{limit} bytes": partial(model.compress, max_bytes=limit) for limit in limits}
    size = (images.shape[-2], images.shape[-1])
    rows: list[Row] = []
    for coding, encode in runs.items():
        results, spent = _run_batches(encode, images)
        if coding.endswith("bytes"):
            files = [file for batch in results for file in batch]
        else:
            codes = tuple(torch.cat(level) for level in zip(*results, strict=True))
            files = write(model.entropy_model, flat_codes(codes), size)
        decoded = torch.stack(model.decompress(files))
        differences = decoded.double() - images / 255
        errors = differences.square().mean((1, 2, 3))
        if not rows:
            usual_errors = errors
            usual_seconds = spent
        mse = float(errors.mean())
        rows.append(
            {
                "model": name,
                "coding": coding,
                "images": len(images),
                "mse": mse,
                "psnr": psnr(mse),
                "mean_psnr": sum(map(psnr, errors.tolist())) / len(errors),
                "bits": 8 * sum(map(len, files)) / len(files),
                "worse": int((errors > _WORSE * usual_errors).sum()),
                "change": mse / float(usual_errors.mean()) - 1,
                "seconds": spent,
                "ratio": spent / usual_seconds,
            }
        )
    return rows


COLUMNS = parse_lines("""
model: {model}
coding: {coding}
MSE: {mse:.3e}
change: {change:+.1%}
PSNR: {psnr:.2f}
mean PSNR: {mean_psnr:.2f}
bits: {bits:,.0f}
worse: {worse}
CPU ms: {ms:.2f}
ratio: {ratio:.2f}
""")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure models by effort, with one thread."""
    parser = options(__doc__, images=(500, "images"))
    parser.add_argument("preset", metavar="DATASET", help="mnist, cifar10, photos, ...")
    parser.add_argument("--models", nargs="+", required=True, metavar="RUN")
    parser.add_argument("--bytes", type=positive, nargs="+", default=(), metavar="N")
    parser.add_argument("--beams", type=positive, nargs="+", default=(), metavar="N")
    parser.add_argument("--data", metavar="DIR", help="root folder, or a folder of images")
    arguments, config = preset_of(parser, argv, "hrvqvae/")
    torch.set_num_threads(1)
    data = config.with_root(arguments.data).data
    images = read_images(data, arguments.images)
    rows: list[Row] = []
    for name in arguments.models:
        rows += bench_effort(name, images, arguments.bytes, arguments.beams)
    finish(rows, COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
