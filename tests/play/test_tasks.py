"""What the page shows is what the model gives: files and errors, samples, what is kept, usage, positions."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.compression.entropy_model import Geometry
from hrvqvae.play import tasks
from hrvqvae.plots import hierarchy
from hrvqvae.plots.curves import png
from hrvqvae.utils.errors import InputError
from tests.conftest import drawn_digits
from tests.trained_run import tiny_run_with_priors


@cache
def loaded(run: Path) -> TrainedModel:
    return TrainedModel(run)


@pytest.fixture
def model(mnist_root: Path) -> TrainedModel:
    return loaded(tiny_run_with_priors(mnist_root))


@pytest.fixture
def image() -> Tensor:
    return torch.from_numpy(drawn_digits(1, 7)[0])


def test_a_reconstruction_is_of_its_file(model: TrainedModel, image: Tensor) -> None:
    sizes = []
    for levels in model.autoencoder.prefixes:
        made, length, psnr = tasks.reconstruct(model, image, levels)
        assert length == len(model.compress([image], levels)[0])
        decoded = model.decode(model.encode(image[None]), levels, (12, 12))[0]
        assert torch.allclose(made, decoded, atol=1e-5)
        error = np.mean((made.numpy().astype(float) - image.numpy() / 255) ** 2)
        assert math.isclose(psnr, 10 * math.log10(1 / error), rel_tol=1e-6)
        sizes.append(length)
    assert sizes == sorted(set(sizes))
    assert tasks.reconstruct(model, image)[1] == sizes[-1]
    with pytest.raises(InputError, match="levels is 9"):
        tasks.reconstruct(model, image, 9)


@given(st.data())
def test_what_is_kept_by_counting_pixels(data: st.DataObject) -> None:
    """Pixel by pixel: each position's share of painted pixels; pixels outside the image are those of its border."""
    unit, padding = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 3))
    height, width = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 14))
    where = Geometry(unit, 2 * padding, (1, 2))
    painted = np.array(data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width)))
    painted = painted.reshape(height, width)
    coarse, fine = tasks.kept_codes(torch.from_numpy(painted), where)
    assert [tuple(coarse.shape), tuple(fine.shape)] == list(where.grids(height, width))
    for row, column in np.ndindex(*coarse.shape):
        ys = np.clip(np.arange(row * unit, (row + 1) * unit) - padding, 0, height - 1)
        xs = np.clip(np.arange(column * unit, (column + 1) * unit) - padding, 0, width - 1)
        most = 2 * int(painted[np.ix_(ys, xs)].sum()) > unit * unit
        assert bool(coarse[row, column]) is most
        assert fine[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].unique().tolist() == [most]


def test_a_completion_keeps_what_is_painted(model: TrainedModel, image: Tensor) -> None:
    painted = torch.zeros(6, 6, dtype=torch.bool)  # stretched over 12x12
    painted[1:4, :3] = True
    shown, share, images = tasks.complete(model, image, painted, 4, "3", 1.0, 2)
    pixels = painted.repeat_interleave(2, 0).repeat_interleave(2, 1)
    kept = tasks.kept_codes(pixels, tasks.geometry(model))
    assert share == pytest.approx(float(kept[0].float().mean()))
    assert images.shape == (4, 1, 12, 12)
    assert torch.equal(shown[0][4, :3], image[0][4, :3] / 255)
    assert shown[0][-1].tolist() == [0.5] * 12
    assert torch.equal(images, tasks.complete(model, image, painted, 4, "3", 1.0, 2)[2])
    assert len({one.numpy().tobytes() for one in images}) > 1


def test_the_upper_half_painted_is_the_upper_half_kept(model: TrainedModel, image: Tensor) -> None:
    painted = torch.zeros(12, 12, dtype=torch.bool)
    rows = tasks.geometry(model).grids(12, 12)[0][0]
    edge = round(rows * 0.5) * tasks.geometry(model).unit - tasks.geometry(model).margin // 2
    painted[:edge] = True
    images = tasks.complete(model, image, painted, 2, None, 1.0, 1)[2]
    assert torch.equal(images, model.complete(image, 2, keep="top", seed=1))


@pytest.mark.parametrize(("value", "line"), [(False, "nothing is kept"), (True, "everything is kept")])
def test_nothing_and_everything_are_refused(model: TrainedModel, image: Tensor, value: bool, line: str) -> None:
    with pytest.raises(InputError, match=line):
        tasks.complete(model, image, torch.full((12, 12), value), 1, None, 1.0, 0)


def test_usage_by_counting_paths(model: TrainedModel, image: Tensor) -> None:
    paths = model.autoencoder.paths(model.encode(image[None]))
    for level, (found, path) in enumerate(zip(tasks.usage(model, image), paths, strict=True), start=1):
        codewords, used, perplexity, trained = found
        counted = Counter(path.flatten().tolist())
        shares = [count / path.numel() for count in counted.values()]
        assert (codewords, used) == (3**level, len(counted))
        assert perplexity == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)))
        assert trained is not None
        assert 1 <= trained <= 3**level


def test_the_figure_of_a_position_shows_the_codes_there(
    model: TrainedModel, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, draw, where = model.encode(image[None]), hierarchy.draw, tasks.geometry(model)
    drawn: list[Any] = []
    monkeypatch.setattr(hierarchy, "draw", lambda tree: drawn.append(tree) or draw(tree))
    for x, y in ((0, 0), (5, 3), (11, 11)):
        assert png(tasks.hierarchy_at(model, image, x, y)).startswith(b"\x89PNG")
        row, column = (y + where.margin // 2) // where.unit, (x + where.margin // 2) // where.unit
        assert hierarchy.nearest_path(drawn[-1]) == [int(code[0, row, column]) for code in codes]
    with pytest.raises(InputError, match="not on the latent grid"):
        tasks.hierarchy_at(model, image, 99, 0)
