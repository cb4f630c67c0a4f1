"""Measure error, bits and time of encoding by effort, on test images.

--choose tries values of the search's constants on training images instead; with --lmbda, those of
the search with a lambda, one after the other. --adapt trains the decoder on codes of effort 2, and
measures how much less error there is.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, cast
from unittest.mock import patch

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
from hrvqvae.compression import decoder_search
from hrvqvae.compression.decoder_search import EFFORTS
from hrvqvae.compression.hrv import write
from hrvqvae.compression.images import flat_codes
from hrvqvae.model import Model
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import Codes
from hrvqvae.utils.quantities import psnr

_BATCH = 32
_WORSE = 1.001  # times the error of effort 0 from which an image counts as worse
_TAUGHT_IMAGES = 2000  # training images of an adapted decoder
_TRIED = {
    "_FIRST_WEIGHT": (1.9, 2.2, 2.4, 2.6),
    "_CARRY": (0.6, 0.7),
    "_DECAY": (0.95, 0.98),
    "_WHOLE_TURNS": (0, 1, 2),
}
_TRIED_WITH_LAMBDA = {
    "_LAMBDA_TURNS": (6, 8, 10),
    "_LAMBDA_WEIGHT": (1.0, 1.2, 1.6),
    "_LAMBDA_CARRY": (0.0, 0.2, 0.4, 0.6),
    "_OPTIONS": (8, 16, 32),
    "_MIN_BEAM": (2, 4, 8),
}


def _squared_errors(decoded: Tensor, images: Tensor) -> Tensor:
    """Return the mean squared error of each image (B,) on the scale [0, 1]."""
    return (decoded.cpu().double() - images / 255).square().mean((1, 2, 3))


def _measure(model: Model, images: Tensor, effort: int) -> float:
    """Return the mean squared error of the images' codes."""
    errors = [
        _squared_errors(model.decode(model.encode(batch, effort=effort)), batch)
        for batch in torch.split(images, _BATCH)
    ]
    return float(torch.cat(errors).mean())


def _run_batches(encode: Callable[[Tensor], Any], images: Tensor) -> tuple[list[Any], float]:
    """Return what `encode` makes of each batch, and its CPU seconds per image."""
    encode(images[:_BATCH])  # loads compiled code
    begun = time.process_time()
    results = [encode(batch) for batch in torch.split(images, _BATCH)]
    return results, (time.process_time() - begun) / len(images)


def _write(model: Model, batches: list[Codes], images: Tensor) -> tuple[Codes, list[bytes]]:
    """Return the codes of all batches together, and their files."""
    codes = tuple(torch.cat(level) for level in zip(*batches, strict=True))
    size = (images.shape[-2], images.shape[-1])
    return codes, write(model.entropy_model, flat_codes(codes), size)


def _mean_bits(files: Sequence[bytes]) -> float:
    return 8 * sum(map(len, files)) / len(files)


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
    runs: dict[str, Callable[[Tensor], Any]] = {
        f"effort {effort}": partial(model.encode, effort=effort) for effort in EFFORTS
    }
    if lmbda is not None:
        runs[f"lambda {lmbda:g}"] = partial(model.encode, lmbda=lmbda)
    runs |= {f"{limit} bytes": partial(model.compress, max_bytes=limit) for limit in limits}
    rows: list[Row] = []
    for coding, encode in runs.items():
        results, spent = _run_batches(encode, images)
        if coding.endswith("bytes"):
            files = [file for batch in results for file in batch]
        else:
            _, files = _write(model, results, images)
        decoded = torch.stack(model.decompress(files))
        errors = _squared_errors(decoded, images)
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
                "bits": _mean_bits(files),
                "worse": int((errors > _WORSE * usual_errors).sum()),
                "change": mse / float(usual_errors.mean()) - 1,
                "seconds": spent,
                "ratio": spent / usual_seconds,
            }
        )
    return rows


def try_constants(name: str, images: Tensor) -> list[Row]:
    """Return the change of a model's error with efforts 1 and 2, for all constants of the search.

    Args:
        name: As for `bench_effort`.
        images: Training images (N, C, Y, X) uint8.
    """
    model = Model(name)
    usual = _measure(model, images, 0)
    rows = list[Row]()
    for values in product(*_TRIED.values()):
        constants: Row = dict(zip(_TRIED, values, strict=True))
        row: Row = {"model": name, **constants}
        with patch.multiple(decoder_search, **constants):
            for effort in (1, 2):
                row[f"effort {effort}"] = _measure(model, images, effort) / usual - 1
        rows.append(row)
    return rows


def try_lambda_constants(name: str, images: Tensor, lmbda: float) -> list[Row]:
    """Return the cost of a model's codes with a lambda, error + lambda * bits, and the time: with
    the constants of the search, and with each of them changed in turn.

    Args:
        name: As for `bench_effort`.
        images: Training images (N, C, Y, X) uint8.
        lmbda: Weight of a bit.
    """
    model = Model(name)
    usual: Row = {constant: getattr(decoder_search, constant) for constant in _TRIED_WITH_LAMBDA}
    changes = [
        {constant: value}
        for constant, values in _TRIED_WITH_LAMBDA.items()
        for value in values
        if value != usual[constant]
    ]
    rows = list[Row]()
    for change in ({}, *changes):
        constants = usual | change
        with patch.multiple(decoder_search, **constants):
            batches, spent = _run_batches(partial(model.encode, lmbda=lmbda), images)
        codes, files = _write(model, batches, images)
        error = images[0].numel() * float(_squared_errors(model.decode(codes), images).mean())
        bits = _mean_bits(files)
        row: Row = {"model": name, "images": len(images), "lmbda": lmbda, **constants}
        rows.append({**row, "cost": error + lmbda * bits, "bits": bits, "seconds": spent})
    return rows


def adapt_decoder(name: str, images: Tensor, training_images: Tensor, steps: int) -> list[Row]:
    """Return a row per effort: the error before and after the decoder is adapted to effort 2.

    The codes of the training images are searched once. Encoder and codebooks stay.

    Args:
        name: As for `bench_effort`.
        images: Test images (N, C, Y, X) uint8.
        training_images: As `images`.
        steps: Steps of Adam, of 32 images each; the rate falls from 3e-4 to 0 by a cosine.
    """
    model = Model(name)
    autoencoder = cast(SingleGridAutoencoder, model.autoencoder)
    decoder = autoencoder.decoder.requires_grad_(True)

    before = [_measure(model, images, effort) for effort in EFFORTS]
    codes = torch.stack(model.encode(training_images, effort=2), 1)
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = torch.Generator().manual_seed(0)
    size = (images.shape[-2], images.shape[-1])
    for _ in range(steps):
        chosen = torch.randint(len(codes), (_BATCH,), generator=rng)
        vectors = autoencoder.quantizer.lookup(tuple(codes[chosen].unbind(1))).detach()
        decoded = (autoencoder.pixels(vectors, size) + 1) / 2
        optimizer.zero_grad()
        loss = (decoded - training_images[chosen] / 255).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    decoder.requires_grad_(False)
    rows = list[Row]()
    for effort, old in zip(EFFORTS, before, strict=True):
        new = _measure(model, images, effort)
        row: Row = {"model": name, "steps": steps, "coding": f"effort {effort}", "mse": old}
        rows.append({**row, "adapted": new, "change": new / old - 1, "images": len(images)})
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
    parser.add_argument("--lmbda", type=float, metavar="V", help="also with this lambda")
    parser.add_argument("--bytes", type=positive, nargs="+", default=(), metavar="N")
    parser.add_argument("--data", metavar="DIR", help="root folder, or a folder of images")
    parser.add_argument("--choose", action="store_true", help="try constants on training images")
    parser.add_argument("--adapt", type=positive, metavar="STEPS", help="train the decoder")
    arguments, config = preset_of(parser, argv, "hrvqvae/")
    torch.set_num_threads(1)
    data = config.with_root(arguments.data).data
    images = read_images(data, arguments.images, "train" if arguments.choose else "test")
    measure: Callable[[str, Tensor], list[Row]]
    if arguments.choose and arguments.lmbda is None:
        measure = try_constants
    elif arguments.choose:
        measure = partial(try_lambda_constants, lmbda=arguments.lmbda)
    elif arguments.adapt:
        training_images = read_images(data, _TAUGHT_IMAGES, "train")
        measure = partial(adapt_decoder, training_images=training_images, steps=arguments.adapt)
    else:
        measure = partial(bench_effort, lmbda=arguments.lmbda, limits=arguments.bytes)
    rows = [row for name in arguments.models for row in measure(name, images)]
    is_plain = arguments.choose or arguments.adapt
    columns = {name: f"{{{name}}}" for name in rows[0]} if is_plain else COLUMNS
    finish(rows, columns, arguments.json)


if __name__ == "__main__":
    as_script(main)
