"""Pictures show what they claim: pixels where they belong, every codeword drawn, the right ones in colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from hrvqvae.cli import main
from hrvqvae.config import Config
from hrvqvae.data.images import read_image, write_image
from hrvqvae.plots import curves, hierarchy, sheets
from hrvqvae.plots.curves import draw_training
from hrvqvae.utils.errors import InputError
from tests.conftest import with_training
from tests.trained_run import train_autoencoder


def test_a_sheet_holds_every_image_at_its_pixels() -> None:
    images = [torch.full((1, 8, 8), value) for value in (0.2, 0.8)]
    colour = torch.zeros(3, 5, 12, dtype=torch.uint8)
    colour[0] = 200
    sheet = np.asarray(sheets.draw([sheets.SheetRow("grey", images), sheets.SheetRow("red", [colour])], zoom=2))
    colours = {tuple(pixel): int(count) for pixel, count in zip(*np.unique(
        sheet.reshape(-1, 3), axis=0, return_counts=True), strict=True)}  # fmt: skip
    assert colours[(51, 51, 51)] == colours[(204, 204, 204)] == 16 * 16
    assert colours[(200, 0, 0)] == 10 * 24


def test_a_sheet_that_can_not_be_written(tmp_path: Path) -> None:
    sheet = sheets.draw([sheets.SheetRow("x", [torch.zeros(1, 8, 8)])])
    with pytest.raises(InputError, match="can't be written"):
        write_image(sheet, tmp_path / "nowhere" / "sheet.png")


def test_curves_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    curves.training_curves([], tmp_path / "curves.png")
    curves.codeword_usage([torch.tensor([3, 0, 1]), torch.zeros(9, dtype=torch.long)], tmp_path / "usage.png")
    assert read_image(tmp_path / "curves.png", 3).shape[0] == 3
    assert read_image(tmp_path / "usage.png", 3).shape[0] == 3


def test_curves_of_one_point_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = list[Figure]()
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: figures.append(figure))
    records = [
        {"kind": "train", "step": step, "loss": 0.5, "reconstruction": 0.4, "bits_per_code": 2.0} for step in (9, 18)
    ]
    for some in (records[:1], records):
        curves.training_curves(some, tmp_path / "curves.png")
        curves.prior_curves(some, tmp_path / "curves.png")
    markers = [{line.get_marker() for line in figure.axes[0].lines} for figure in figures]
    assert markers == [{"."}, {"."}, {""}, {""}]


def test_figure_10_has_its_codewords() -> None:
    figure = hierarchy.draw(hierarchy.synthetic_tree())
    assert len(figure.axes) == 3
    for level, axes in enumerate(figure.axes):
        sizes = [len(points.get_offsets()) for points in axes.collections]
        assert sizes[:2] == [4 ** (level + 1) - 4, 4], "out of reach in grey, within reach in colour"
        assert f"4 of {4 ** (level + 1)} codewords" in axes.get_title()
    reachable = [axes.collections[1] for axes in figure.axes]
    assert len({tuple(points.get_facecolor()[0]) for points in reachable}) == 3
    assert len({len(points.get_paths()[0].vertices) for points in reachable}) == 3, "shapes differ without colour"


def test_the_chosen_codebooks_lie_around_what_was_chosen() -> None:
    tree = hierarchy.synthetic_tree()
    figure = hierarchy.draw(tree, [2, 1, 3])
    total, place = np.zeros(2), 0
    for level, axes in enumerate(figure.axes):
        within = np.asarray(axes.collections[1].get_offsets())
        np.testing.assert_allclose(within, total + tree.codebooks[level][place])
        child = [2, 1, 3][level]
        total, place = total + tree.codebooks[level][place, child], place * 4 + child


def test_the_search_of_the_figure_is_the_tree_search() -> None:
    from hrvqvae.quantize.search import search_tree

    tree = hierarchy.synthetic_tree()
    assert tree.target is not None
    found = search_tree(torch.from_numpy(tree.target)[None], [torch.from_numpy(book) for book in tree.codebooks])
    assert hierarchy.nearest_path(tree) == [int(path) % 4 for path in found.paths[:, 0]]


def test_wide_vectors_are_projected_by_a_named_projection() -> None:
    generator = np.random.default_rng(0)
    books = [generator.normal(size=(3**level, 3, 6)) for level in range(2)]
    figure = hierarchy.draw(hierarchy.Tree(books, None, "six"), [0, 2])
    assert "first two principal components" in figure.get_supxlabel()


@pytest.mark.parametrize(
    ("path", "message"),
    [([0, 1], "2 levels; this tree has 3"), ([0, 1, 4], "child 4 at level 3"), ([0, -1, 0], "child -1 at level 2")],
)
def test_paths_out_of_range(path: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hierarchy.draw(hierarchy.synthetic_tree(), path)


def test_the_figure_by_command(tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_autoencoder(with_training(tiny, max_steps=6), tmp_path / "run", callbacks=[draw_training])
    run, out = str(tmp_path / "run"), str(tmp_path / "figure.png")
    for arguments, drawn in (
        (["-o", out], "3 levels of 4 codewords, synthetic"),
        (["-o", str(tmp_path / "figure.svg"), "--path", "2,1,3"], "synthetic"),
        ([run, "-o", out], "tiny, most used path"),
        ([run, "-o", out, "--path", "1,2"], "tiny, the path given"),
        ([run, "-o", out, "--position", "3", "2"], "tiny, position (3, 2) of the first test image"),
    ):
        capsys.readouterr()
        assert main(["figure", "hierarchy", *arguments]) == 0
        assert drawn in capsys.readouterr().out
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")
    assert read_image(Path(out), 3).shape[2] > 500
    for arguments, message in (
        (["-o", str(tmp_path / "figure.pdf")], "must end in .png or .svg"),
        (["-o", out, "--position", "1", "1"], "name a RUN"),
        (["-o", out, "--path", "1,x"], "child indices such as 2,1,3"),
        ([run, "-o", out, "--position", "9", "0"], "position 9 0 is not on the latent grid of 7x7"),
        ([run, "-o", out, "--position", "1", "1", "--path", "0,0"], "not both"),
    ):
        assert main(["figure", "hierarchy", *arguments]) == 2
        assert message in capsys.readouterr().err
