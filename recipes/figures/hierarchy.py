"""Figure 10: the codebooks that the search compares, of a trained run or of synthetic vectors.

python recipes/figures/hierarchy.py [RUN] -o FIG.png [--position Y X | --path K,K,K]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from hrvqvae.checkpoints.run import Run
from hrvqvae.data.loading import load_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.plots import hierarchy
from hrvqvae.plots.curves import save_figure
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize.search import search
from hrvqvae.utils.errors import InputError


def draw(
    run: str | None, out: Path, position: Sequence[int] | None, path: Sequence[int] | None
) -> str:
    """Write the figure and return its title.

    Raises:
        InputError: The run has no linked codebooks, the position or path is out of range, or the
            file can't be written.
    """
    if run is None:
        tree = synthetic_tree()
        if path is not None:
            tree = hierarchy.Tree(tree.codebooks, None, tree.name, path)
    else:
        model, config = Run(run).load()
        books = hierarchy.get_codebooks(model)
        if position is not None:
            name = f"{config.name}, position ({position[0]}, {position[1]}) of the first test image"
            image = torch.from_numpy(load_images(config.data, "test").decode(0, None).pixels)
            tree = hierarchy.make_tree(model, image, (position[0], position[1]), name)
        elif path is not None:
            tree = hierarchy.Tree(books, None, f"{config.name}, the path given", path)
        else:
            assert isinstance(model, SingleGridAutoencoder)
            tree = hierarchy.Tree(books, None, f"{config.name}, most used path", most_used(model))
    save_figure(hierarchy.draw(tree), out)
    return tree.name


def synthetic_tree(levels: int = 3, codewords: int = 4, seed: int = 3) -> hierarchy.Tree:
    """Return codebooks in the plane that shrink from level to level, and a vector near one of their
    leaves.
    """
    generator = np.random.default_rng(seed)
    books = []
    for level in range(levels):
        shape = (codewords**level, codewords)
        angle = (
            2 * np.pi * (np.arange(codewords) / codewords + generator.uniform(0, 1, (shape[0], 1)))
        )
        angle = angle + generator.normal(0, 0.18, shape)
        radius = generator.uniform(0.75, 1.1, shape) * 0.42**level
        books.append(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1))
    leaf = hierarchy.sum_choices(books)[-1][generator.integers(codewords**levels)]
    target = leaf + generator.normal(0, 0.02, 2)
    nearest = search(
        torch.from_numpy(target).float()[None], [torch.from_numpy(book).float() for book in books]
    )[:, 0]
    codes = [int(index) % codewords for index in nearest]
    return hierarchy.Tree(
        books, target, f"{levels} levels of {codewords} codewords, synthetic", codes
    )


def most_used(model: SingleGridAutoencoder) -> list[int]:
    """Return the indices of the most used child at every level, by the moving averages of
    training.
    """
    place, path = 0, []
    for codebook in cast(ResidualQuantizer, model.quantizer).levels:
        child = int(codebook.count[place].argmax())
        place = place * codebook.count.shape[1] + child
        path.append(child)
    return path


def children(text: str) -> list[int]:
    """Return the child indices of --path."""
    return [int(child) for child in text.split(",")]


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="draw a trained run (default: synthetic vectors)"
    )
    parser.add_argument(
        "-o", "--out", required=True, type=Path, metavar="FIG.png", help="PNG or SVG"
    )
    place = parser.add_mutually_exclusive_group()
    what = "quantize the latent at row Y, column X of the first test image"
    place.add_argument("--position", nargs=2, type=int, metavar=("Y", "X"), help=what)
    place.add_argument(
        "--path",
        type=children,
        metavar="K,K,K",
        help="draw this path: child indices from level 1 on, such as 2,1,3",
    )
    arguments = parser.parse_args(argv)
    if arguments.run is None and arguments.position is not None:
        parser.error("--position is a place on a run's latent grid; name a RUN")
    try:
        print(
            f"{draw(arguments.run, arguments.out, arguments.position, arguments.path)}:"
            f" {arguments.out}"
        )
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
