"""Figure 10: the codebooks that a choice leaves within reach, of a trained run or of synthetic vectors.

python recipes/figures/hierarchy.py [RUN] -o FIG.png [--position Y X | --path K,K,K]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.data.loading import load_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.plots import hierarchy
from hrvqvae.plots.curves import save_figure
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.utils.errors import InputError


def draw(run: str | None, out: Path, position: Sequence[int] | None, path: Sequence[int] | None) -> str:
    """Write the figure; -> what was drawn, in words.

    Raises:
        InputError: the run has no linked codebooks, the position or path is out of range, the file can't be written.
    """
    if run is None:
        tree = hierarchy.synthetic_tree()
        if path is not None:
            tree = hierarchy.Tree(tree.codebooks, None, tree.name)
    else:
        model, config = load_with_config(run)
        books = hierarchy.codebooks_of(model, config.model.system)
        if position is not None:
            name = f"{config.name}, position ({position[0]}, {position[1]}) of the first test image"
            image = torch.from_numpy(load_images(config.data, "test").read(0, None))
            tree = hierarchy.tree_at(model, config.model.system, image, (position[0], position[1]), name)
        elif path is not None:
            tree = hierarchy.Tree(books, None, f"{config.name}, the path given")
        else:
            assert isinstance(model, SingleGridAutoencoder)
            tree, path = hierarchy.Tree(books, None, f"{config.name}, most used path"), most_used(model)
    save_figure(hierarchy.draw(tree, path), out)
    return tree.name


def most_used(model: SingleGridAutoencoder) -> list[int]:
    """The path that takes the most used child at every level, by the moving averages of training."""
    place, path = 0, []
    for codebook in cast(ResidualQuantizer, model.quantizer).levels:
        child = int(codebook.count[place].argmax())
        place = place * codebook.count.shape[1] + child
        path.append(child)
    return path


def children(text: str) -> list[int]:
    """The type of --path."""
    return [int(child) for child in text.split(",")]


def main(argv: Sequence[str] | None = None) -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("run", nargs="?", metavar="RUN", help="a trained run (default: synthetic vectors)")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FIG.png", help="PNG or SVG")
    place = parser.add_mutually_exclusive_group()
    what = "of the first test image's latents, whose vector is quantized"
    place.add_argument("--position", nargs=2, type=int, metavar=("Y", "X"), help=what)
    place.add_argument("--path", type=children, metavar="K,K,K", help="child indices from level 1 on, such as 2,1,3")
    arguments = parser.parse_args(argv)
    if arguments.run is None and arguments.position is not None:
        parser.error("--position is a place on a run's latent grid; name a RUN")
    try:
        print(f"{draw(arguments.run, arguments.out, arguments.position, arguments.path)}: {arguments.out}")
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
