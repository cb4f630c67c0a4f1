"""Figure 10: the codebooks that each choice leaves within reach, of a trained run or of synthetic
vectors.

python recipes/figures/hierarchy.py [RUN] -o FIG.png [--position Y X | --path K,K,K]

A panel per level. A codeword of level l is drawn at the sum e_1 + ... + e_l of the choices that
lead to it, so the codebook within reach lies around the sum chosen so far. Each level has a colour
and a marker. The chosen codeword has a ring and a label; codewords out of reach are small and grey.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.checkpoints.folder import open_run
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import load_images
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.plots.curves import save_figure
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize.search import search
from hrvqvae.utils.errors import InputError

Points = NDArray[np.float64]

# Vermilion, bluish green, blue (Okabe and Ito): distinct for the colour-blind, and of different
# lightness.
_COLOURS = ("#d55e00", "#009e73", "#0072b2", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_GREY = "#b8b8b8"
_MOST_DRAWN = 4_096


class Tree(NamedTuple):
    """Codewords to draw."""

    codebooks: Sequence[Points]  # of level l at index l - 1, (m^(l-1), m, D)
    target: Points | None  # (D,), the vector to quantize; None shows the codes without a vector
    name: str  # for the title
    codes: Sequence[int]  # the chosen child per level


def sum_choices(codebooks: Sequence[Points]) -> list[Points]:
    """Return the sum of choices that leads to each codeword, (m^l, D) per level."""
    sums: list[Points] = [np.zeros((1, codebooks[0].shape[-1]))]
    for book in codebooks:
        sums.append((sums[-1][:, None] + book).reshape(-1, book.shape[-1]))
    return sums[1:]


def get_codebooks(model: Autoencoder) -> list[Points]:
    """Return the linked codebooks of a model. Raises InputError if it has no linked codebooks."""
    quantizer = getattr(model, "quantizer", None)
    if not isinstance(quantizer, ResidualQuantizer):
        raise InputError("this model has no linked codebooks")
    if quantizer.config.levels == 1 or quantizer.config.levels != quantizer.config.group_size:
        raise InputError("this model has no linked codebooks")
    return [level.codewords.cpu().numpy().astype(np.float64) for level in quantizer.levels]


@torch.inference_mode()
def make_tree(model: Autoencoder, image: Tensor, position: tuple[int, int], name: str) -> Tree:
    """Return the linked codebooks, with the latent of an image (C, Y, X) uint8 at a position (row,
    column) as target.

    Raises InputError as `get_codebooks`, or if the position is not on the latent grid.
    """
    books = get_codebooks(model)
    assert isinstance(model, SingleGridAutoencoder)
    device = next(model.parameters()).device
    latents = model.latents(image[None].to(device).float() / 255)[0]
    row, column = position
    if not (0 <= row < latents.shape[0] and 0 <= column < latents.shape[1]):
        raise InputError(
            f"position {row} {column} is not on the latent grid of"
            f" {latents.shape[0]}x{latents.shape[1]}"
        )
    codes = [
        int(code)
        for code in model.quantizer.encode(latents[None, row : row + 1, column : column + 1])
    ]
    return Tree(books, latents[row, column].cpu().numpy().astype(np.float64), name, codes)


def _draw_dots(axes: Axes, points: Points, **style: Any) -> None:
    axes.scatter(points[..., 0], points[..., 1], **style)


def _draw_level(
    axes: Axes, level: int, points: Points, within: slice, chosen: int, previous: Points
) -> None:
    """Draw a level: codewords within reach in colour, the chosen codeword with a ring, the others
    grey.
    """
    colour = _COLOURS[level % len(_COLOURS)]
    marker = _MARKERS[level % len(_MARKERS)]
    grey = np.delete(points, np.arange(within.start, within.stop), axis=0)
    _draw_dots(
        axes,
        grey,
        s=14,
        marker=marker,
        facecolors="none",
        edgecolors=_GREY,
        linewidths=0.8,
        zorder=1,
    )
    reach = points[within]
    for child, point in enumerate(reach):
        line = (colour, 1.8, "-") if child == chosen else (_GREY, 0.8, ":")
        axes.plot(
            *zip(previous, point, strict=True),
            color=line[0],
            linewidth=line[1],
            linestyle=line[2],
            zorder=2,
        )
    _draw_dots(
        axes, reach, s=46, marker=marker, color=colour, edgecolors="black", linewidths=0.6, zorder=3
    )
    choice = reach[chosen]
    _draw_dots(
        axes,
        choice,
        s=190,
        marker="o",
        facecolors="none",
        edgecolors="black",
        linewidths=1.8,
        zorder=4,
    )
    away = choice - previous
    away = away / max(float(np.linalg.norm(away)), 1e-9)
    axes.annotate(
        f"$k_{level + 1}={chosen}$",
        choice,
        xytext=tuple(away * 26),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=10,
        zorder=5,
        bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"},
    )
    _draw_dots(axes, previous, s=30, marker="+", color="black", zorder=4)
    axes.set_title(
        f"level {level + 1}: {len(reach)} of {len(points)} codewords within reach", fontsize=11
    )


def draw_tree(tree: Tree) -> Figure:
    """Return the panels side by side.

    Raises InputError if the codes do not fit the tree, or there are too many codewords to draw.
    """
    sizes = [book.shape[1] for book in tree.codebooks]
    levels = len(tree.codebooks)
    if (leaves := math.prod(sizes)) > _MOST_DRAWN:
        raise InputError(f"{leaves} leaves are too many to draw; at most {_MOST_DRAWN}")
    if len(tree.codes) != levels:
        raise InputError(f"the path has {len(tree.codes)} levels; this tree has {levels}")
    for child, size in zip(tree.codes, sizes, strict=True):
        if not 0 <= child < size:
            raise InputError(
                f"the path is {list(tree.codes)}; where {child} is, children are 0 to {size - 1}"
            )
    sums = sum_choices(tree.codebooks)
    dim = sums[-1].shape[1]
    origin = np.zeros(dim)
    plane = np.eye(2, dim)
    projection = ""
    if dim > 2:
        origin = sums[-1].mean(0)
        _, strength, axes_of_leaves = np.linalg.svd(sums[-1] - origin, full_matrices=False)
        share = np.square(strength[:2]).sum() / max(np.square(strength).sum(), 1e-30)
        plane = axes_of_leaves[:2]
        projection = (
            f"projection: first two principal components of the leaves ({share:.0%} of their"
            " variance)"
        )
    flat = [(points - origin) @ plane.T for points in sums]
    all_points = np.concatenate(flat)
    margin = 0.08 * np.ptp(all_points, axis=0).max()
    low = all_points.min(0) - margin
    high = all_points.max(0) + margin
    shape = min(1.2, max(0.4, float((high - low)[1] / (high - low)[0])))
    figure = Figure(figsize=(4.2 * levels, 4.2 * shape + 0.9), dpi=110, layout="constrained")
    previous = (np.zeros(tree.codebooks[0].shape[-1]) - origin) @ plane.T
    index = 0
    for level, axes in enumerate(figure.subplots(1, levels, squeeze=False)[0]):
        first = index * sizes[level]
        _draw_level(
            axes,
            level,
            flat[level],
            slice(first, first + sizes[level]),
            tree.codes[level],
            previous,
        )
        index = first + tree.codes[level]
        previous = flat[level][index]
        if tree.target is not None:
            target = (tree.target - origin) @ plane.T
            _draw_dots(axes, target, s=70, marker="x", color="black", linewidths=2, zorder=6)
        axes.set(
            xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[]
        )
    vector = "" if tree.target is None else "; x: the vector z"
    figure.suptitle(
        f"{tree.name}   (ring: chosen; +: chosen so far; grey: out of reach{vector})", fontsize=11
    )
    if projection:
        figure.supxlabel(projection, fontsize=9)
    return figure


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
            tree = Tree(tree.codebooks, None, tree.name, path)
    else:
        model, config = open_run(run).load()
        books = get_codebooks(model)
        if position is not None:
            name = f"{config.name}, position ({position[0]}, {position[1]}) of the first test image"
            images = load_images(config.data, "test")
            image = next(evaluation_batches(images, batch_size=1, limit=1)).images[0]
            tree = make_tree(model, image, (position[0], position[1]), name)
        elif path is not None:
            tree = Tree(books, None, f"{config.name}, the path given", path)
        else:
            assert isinstance(model, SingleGridAutoencoder)
            tree = Tree(books, None, f"{config.name}, most used path", most_used(model))
    save_figure(draw_tree(tree), out)
    return tree.name


def synthetic_tree(levels: int = 3, codewords: int = 4, seed: int = 3) -> Tree:
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
    leaf = sum_choices(books)[-1][generator.integers(codewords**levels)]
    target = leaf + generator.normal(0, 0.02, 2)
    nearest = search(
        torch.from_numpy(target).float()[None], [torch.from_numpy(book).float() for book in books]
    )[:, 0]
    codes = [int(index) % codewords for index in nearest]
    return Tree(books, target, f"{levels} levels of {codewords} codewords, synthetic", codes)


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
    text = "quantize the latent at row Y, column X of the first test image"
    place.add_argument("--position", nargs=2, type=int, metavar=("Y", "X"), help=text)
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
