"""Figure 10: the codebooks that each choice leaves within reach, in a panel per level.

A codeword of level l is drawn at the sum e_1 + ... + e_l of the choices that lead to it. So the
codebook within reach lies around the sum chosen so far. Each level has a colour and a marker. The
chosen codeword has a ring and a label; codewords out of reach are small and grey.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.models.base import Autoencoder
from hrvqvae.models.single_grid import SingleGridAutoencoder
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
    if not isinstance(model, SingleGridAutoencoder) or not model.linked_codebooks:
        raise InputError("this model has no linked codebooks")
    return [codebook.cpu().numpy().astype(np.float64) for codebook in model.linked_codebooks]


@torch.inference_mode()
def make_tree(model: Autoencoder, image: Tensor, position: tuple[int, int], name: str) -> Tree:
    """Return the linked codebooks, with the latent of an image (C, Y, X) uint8 at a position (row,
    column) as target.

    Raises InputError as `get_codebooks`, or if the position is not on the latent grid.
    """
    books = get_codebooks(model)
    assert isinstance(model, SingleGridAutoencoder)
    latents = model.latents(image[None].to(model.linked_codebooks[0].device).float() / 255)[0]
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


def draw(tree: Tree) -> Figure:
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
