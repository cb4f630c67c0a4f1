"""The paper's figures, from a trained run or from synthetic vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.nearest import nearest_training_images
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.plots import hierarchy, sheets
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.utils.errors import InputError


def _linked(model: Autoencoder, system: str) -> SingleGridAutoencoder:
    if not isinstance(model, SingleGridAutoencoder) or not model.linked_codebooks:
        raise InputError(f"this is a model of {system}: it has no linked codebooks")
    return model


def _codebooks(model: SingleGridAutoencoder) -> list[hierarchy.Points]:
    return [codebook.cpu().numpy().astype(np.float64) for codebook in model.linked_codebooks]


@torch.inference_mode()
def tree_at(model: Autoencoder, system: str, image: Tensor, position: tuple[int, int], name: str) -> hierarchy.Tree:
    """The linked codebooks, and the vector at a position (row, column) of the latent grid of an image (C, Y, X) uint8.

    Raises:
        InputError: the model, which is of that system, has no linked codebooks; the position is not on the grid.
    """
    linked = _linked(model, system)
    device = linked.linked_codebooks[0].device
    latents = linked.latents(image[None].to(device).float() / 255)[0]
    row, column = position
    if not (0 <= row < latents.shape[0] and 0 <= column < latents.shape[1]):
        raise InputError(f"position {row} {column} is not on the latent grid of {latents.shape[0]}x{latents.shape[1]}")
    return hierarchy.Tree(_codebooks(linked), latents[row, column].cpu().numpy().astype(np.float64), name)


def _most_used(model: SingleGridAutoencoder) -> list[int]:
    """The path that takes the most used child at every level, by the moving averages of training."""
    place, path = 0, []
    for codebook in cast(ResidualQuantizer, model.quantizer).levels:
        child = int(codebook.count[place].argmax())
        place = place * codebook.count.shape[1] + child
        path.append(child)
    return path


def figure_hierarchy(
    run: str | None, out: Path, position: tuple[int, int] | None = None, path: Sequence[int] | None = None
) -> str:
    """Figure 10: write the codebooks within reach, level by level; -> what was drawn, in words.

    Args:
        run: a run folder, or None for synthetic vectors.
        out: PNG or SVG, by its suffix.
        position: row and column on the latent grid of the run's first test image, whose vector is then quantized.
        path: child indices from level 1 on; without either, a run's most used path.

    Raises:
        InputError: the run has no linked codebooks, the position or path is out of range, the file can't be written.
    """
    if position is not None and path is not None:
        raise InputError("give --position or --path, not both")
    if run is None:
        if position is not None:
            raise InputError("--position is a place on a run's latent grid; name a RUN")
        tree = hierarchy.synthetic_tree()
        if path is not None:
            tree = hierarchy.Tree(tree.codebooks, None, tree.name)
    else:
        tree, path = _tree_of_run(run, position, path)
    hierarchy.save(hierarchy.draw(tree, path), out)
    return tree.name


def _tree_of_run(
    run: str, position: tuple[int, int] | None, path: Sequence[int] | None
) -> tuple[hierarchy.Tree, Sequence[int] | None]:
    model, config = load_with_config(run)
    if position is None:
        linked = _linked(model, config.model.system)
        name = f"{config.name}, " + ("the path given" if path is not None else "most used path")
        return hierarchy.Tree(_codebooks(linked), None, name), path if path is not None else _most_used(linked)
    image = torch.from_numpy(load_images(config.data, "test").read(0, None))
    name = f"{config.name}, position ({position[0]}, {position[1]}) of the first test image"
    return tree_at(model, config.model.system, image, position, name), None


def figure_classes(run: str, out: Path, count: int = 8, *, seed: int = 0, params: SamplingParams | None = None) -> int:
    """Write a row of samples for each class, under its name; -> how many classes there are.

    Raises:
        InputError: as `TrainedModel`; the priors know no classes, or can't be guided; the file can't be written.
    """
    sheets.check_name(out)
    model = TrainedModel(run)
    classes = model.classes
    if not classes:
        raise InputError(f"the priors of {run} know no classes; draw samples: hrvqvae sample {run} -o {out}")
    rows = [
        sheets.SheetRow(name, list(model.draw(count, seed=seed + number, class_name=name, params=params).images))
        for number, name in enumerate(classes)
    ]
    sheets.save(sheets.draw(rows), out)
    return len(classes)


def figure_nearest(run: str, out: Path, count: int = 64, *, seed: int = 0, root: str | None = None) -> list[float]:
    """Write samples, each beside the training image that is nearest in pixels: a copy would show; -> their MSEs.

    Raises:
        InputError: as `TrainedModel`; the data is not there; the file can't be written.
    """
    sheets.check_name(out)
    model = TrainedModel(run)
    drawn = model.draw(count, seed=seed)
    found, errors = nearest_training_images(drawn.images, model.config.with_root(root))
    pairs = [torch.cat([sample, near], dim=2) for sample, near in zip(drawn.images, found, strict=True)]
    sheets.save(sheets.grid(pairs), out)
    return errors
