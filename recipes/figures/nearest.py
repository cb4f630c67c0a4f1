"""Samples, each beside the training image that is nearest in pixels: a copy would show.

python recipes/figures/nearest.py RUN -o FIG.png [-n N] [--seed S] [--data DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hrvqvae.config import Config
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.images import write_image
from hrvqvae.data.loading import load_images
from hrvqvae.model import Model
from hrvqvae.plots import sheets
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import check_output

BLOCK = 2_048  # training images that are compared at once


def nearest_training_images(images: Tensor, config: Config) -> tuple[Tensor, list[float]]:
    """For each image (B, C, Y, X) in [0, 1] the training image with the least squared error, and its MSE."""
    best = torch.full((len(images),), float("inf"))
    found = torch.zeros_like(images)
    flat, data = images.flatten(1), config.data
    train = load_images(data, "train")
    for batch in evaluation_batches(train, batch_size=BLOCK, workers=data.workers):
        candidates = batch.images.float() / 255
        errors = torch.cdist(flat, candidates.flatten(1)).square() / flat.shape[1]
        error, index = errors.min(1)
        better = error < best
        best[better], found[better] = error[better], candidates[index[better]]
    return found, best.tolist()


def draw(run: str, out: Path, count: int, seed: int, root: str | None) -> list[float]:
    """Write the figure; -> the MSE of each pair.

    Raises:
        InputError: as `Model`; the data is not there; the file can't be written.
    """
    check_output(out, force=True, suffix=".png")
    model = Model(run)
    samples = model.sample(count, seed=seed)
    found, errors = nearest_training_images(samples, model.config.with_root(root))
    pairs = [torch.cat([sample, near], dim=2) for sample, near in zip(samples, found, strict=True)]
    write_image(sheets.draw_grid(pairs), out)
    return errors


def main(argv: Sequence[str] | None = None) -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FIG.png")
    parser.add_argument("-n", dest="count", type=int, default=64, metavar="N", help="how many (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")
    arguments = parser.parse_args(argv)
    try:
        errors = draw(arguments.run, arguments.out, arguments.count, arguments.seed, arguments.data)
    except InputError as error:
        parser.error(str(error))
    print(f"{len(errors)} samples, MSE {min(errors):.2e} to {max(errors):.2e}: {arguments.out}")


if __name__ == "__main__":
    main()
