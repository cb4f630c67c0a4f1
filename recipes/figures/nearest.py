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
    """Return the nearest training image of each image (B, C, Y, X) in [0, 1], and its MSE."""
    best = torch.full((len(images),), float("inf"))
    nearest = torch.zeros_like(images)
    flat, data = images.flatten(1), config.data
    train = load_images(data, "train")
    for batch in evaluation_batches(train, batch_size=BLOCK, workers=data.workers):
        candidates = batch.images.float() / 255
        errors = torch.cdist(flat, candidates.flatten(1)).square() / flat.shape[1]
        error, index = errors.min(1)
        better = error < best
        best[better], nearest[better] = error[better], candidates[index[better]]
    return nearest, best.tolist()


def draw(run: str, out: Path, count: int, seed: int, root: str | None) -> list[float]:
    """Write the figure and return the MSE of each pair.

    Raises:
        InputError: The run or its data is missing, or the file can't be written.
    """
    check_output(out, force=True, suffix=".png")
    model = Model(run)
    samples = model.sample(count, seed=seed)
    nearest, errors = nearest_training_images(samples, model.config.with_root(root))
    pairs = [
        torch.cat([sample, near], dim=2) for sample, near in zip(samples, nearest, strict=True)
    ]
    write_image(sheets.draw_grid(pairs), out)
    return errors


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FIG.png")
    parser.add_argument(
        "-n", dest="count", type=int, default=64, metavar="N", help="draw N samples (default: 64)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument(
        "--data", metavar="DIR", help="read the training images from DIR (default: as in training)"
    )
    arguments = parser.parse_args(argv)
    try:
        errors = draw(arguments.run, arguments.out, arguments.count, arguments.seed, arguments.data)
    except InputError as error:
        parser.error(str(error))
    print(f"{len(errors)} samples, MSE {min(errors):.2e} to {max(errors):.2e}: {arguments.out}")


if __name__ == "__main__":
    main()
