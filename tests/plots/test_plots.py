"""Pictures show what they claim: pixels where they belong, every codeword drawn, the right ones in
colour.
"""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import hrvqvae
from hrvqvae.cli import main
from hrvqvae.data.images import read_image, write_image
from hrvqvae.pictures import complete, reconstruct
from hrvqvae.plots import curves, hierarchy, sheets
from hrvqvae.utils.errors import InputError
from tests.conftest import refused, write_picture
from tests.models.small import TREE, config_of, model_of


def test_a_sheet_holds_every_image_at_its_pixels() -> None:
    grey = [torch.full((1, 8, 8), value) for value in (0.2, 0.8)]
    colour = torch.zeros(3, 5, 12, dtype=torch.uint8)
    colour[0] = 200
    sheet = np.asarray(
        sheets.draw([sheets.SheetRow("grey", grey), sheets.SheetRow("red", [colour])], zoom=2)
    )
    colours = Counter(map(tuple, sheet.reshape(-1, 3).tolist()))
    assert colours[51, 51, 51] == colours[204, 204, 204] == 16 * 16
    assert colours[200, 0, 0] == 10 * 24
    wide = [torch.zeros(1, 1, 30_000), torch.zeros(1, 30_000, 1)]
    with pytest.raises(InputError, match="most of them empty: draw them apart"):
        sheets.draw([sheets.SheetRow("", wide)])


def test_curves_of_a_run_that_has_just_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves.plot_training([], tmp_path / "curves.png")
    curves.plot_usage(
        [torch.tensor([3, 0, 1]), torch.zeros(9, dtype=torch.long)], tmp_path / "usage.png"
    )
    assert (
        read_image(tmp_path / "curves.png", 3).shape[0]
        == read_image(tmp_path / "usage.png", 3).shape[0]
        == 3
    )
    with pytest.raises(InputError, match="can't be written"):
        curves.plot_training([], tmp_path / "nowhere" / "curves.png")
    figures = list[Figure]()
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: figures.append(figure))
    values = {"kind": "train", "loss": 0.5, "reconstruction": 0.4, "bits_per_code": 2.0}
    records = [{**values, "step": step} for step in (9, 18)]
    for some in (records[:1], records):
        curves.plot_training(some, tmp_path / "curves.png")
        curves.plot_prior(some, tmp_path / "curves.png")
    markers = [{line.get_marker() for line in figure.axes[0].lines} for figure in figures]
    assert markers == [{"."}, {"."}, {"None"}, {"None"}], "a single point is seen"


def tree_of(width: int, codewords: int) -> hierarchy.Tree:
    generator = np.random.default_rng(0)
    books = [
        generator.normal(size=(codewords**level, codewords, width)) * 0.4**level
        for level in range(3)
    ]
    return hierarchy.Tree(books, generator.normal(size=width), "random", [2, 1, codewords - 1])


def test_figure_10_has_its_codewords() -> None:
    tree = tree_of(2, 4)
    figure = hierarchy.draw(tree)
    total = np.zeros(2)
    place = 0
    for level, axes in enumerate(figure.axes):
        sizes = [len(points.get_offsets()) for points in axes.collections]
        assert sizes[:2] == [
            4 ** (level + 1) - 4,
            4,
        ], "out of reach in grey, within reach in colour"
        assert f"4 of {4 ** (level + 1)} codewords" in axes.get_title()
        within = np.asarray(axes.collections[1].get_offsets())
        np.testing.assert_allclose(within, total + tree.codebooks[level][place])
        child = [2, 1, 3][level]
        total = total + tree.codebooks[level][place, child]
        place = place * 4 + child
    reachable = [axes.collections[1] for axes in figure.axes]
    assert len({tuple(points.get_facecolor()[0]) for points in reachable}) == 3
    assert len({len(points.get_paths()[0].vertices) for points in reachable}) == 3, (
        "shapes differ without colour"
    )
    assert "first two principal components" in hierarchy.draw(tree_of(6, 3)).get_supxlabel()


def test_figure_10_shows_the_codes_of_every_search_and_size() -> None:
    image = torch.randint(
        0, 256, (3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    for config in (
        config_of("treevq"),
        config_of("hrvqvae", quantizer=dataclasses.replace(TREE, level_codewords=(4, 3, 2))),
    ):
        model = model_of(config)
        codes = model.encode(image[None])
        for row, column in np.ndindex(*codes[0].shape[1:]):
            tree = hierarchy.make_tree(model, image, (row, column), "model")
            assert tree.codes == [int(code[0, row, column]) for code in codes]
        title = hierarchy.draw(tree).axes[2].get_title()
        assert f"{config.quantizer.sizes[2]} of {config.num_codewords[2]} codewords" in title


def test_paths_out_of_range() -> None:
    for path, message in (
        ([0, 1], "2 levels; this tree has 3"),
        ([0, 1, 4], "are 0 to 3"),
        ([0, -1, 0], "are 0 to 3"),
    ):
        with pytest.raises(InputError, match=message):
            hierarchy.draw(tree_of(2, 4)._replace(codes=path))


def test_completion(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row with the original and the part that is kept, then the completions, five times as
    large.
    """
    write_picture(tmp_path / "image.png", 3, (12, 12), "L")
    out = tmp_path / "sheet.png"
    command = [
        "complete",
        str(run),
        str(tmp_path / "image.png"),
        "--class",
        "1",
        "-n",
        "3",
        "-o",
        str(out),
        "--force",
    ]
    assert main([*command, "--keep", "top"]) == 0
    assert "3 completions" in capsys.readouterr().out
    sheet = read_image(out, 1)
    image = read_image(tmp_path / "image.png", 1)
    zoom = 5
    gap = 4
    caption = 20
    top = gap + caption
    side = 12 * zoom
    shown = sheet[0, top : top + side : zoom, gap : 2 * gap + 2 * side]
    assert np.array_equal(shown[:, :side:zoom], image[0])
    kept = shown[:, side + gap :: zoom]
    assert np.array_equal(kept[:7], image[0, :7]), "four of the seven rows of codes"
    assert (kept[7:] == 128).all()
    completed = hrvqvae.load(run).complete(image, 3, class_name="1")
    below = sheet[0, 2 * top + side : 2 * top + 2 * side : zoom]
    for number, one in enumerate(completed):
        left = gap + number * (side + gap)
        assert np.array_equal(
            below[:, left : left + side : zoom], (one[0] * 255).round().byte().numpy()
        )
    mask = np.full((1, 12, 12), 255, np.uint8)
    mask[0, 9:, 9:] = 0
    write_image(Image.fromarray(mask[0]), tmp_path / "mask.png")
    assert main([*command, "--keep", str(tmp_path / "mask.png")]) == 0
    kept = read_image(out, 1)[0, top : top + side : zoom, 2 * gap + side : 2 * (gap + side) : zoom]
    assert np.array_equal(kept == image[0], mask[0] > 0)
    write_picture(tmp_path / "mask.png", 0, (9, 12), "L")
    assert "the mask has 12x9 pixels" in refused([*command, "--keep", str(tmp_path / "mask.png")])
    for keep in ("bottom", "1.0", "0"):
        assert "--keep is" in refused([*command, "--keep", keep])


def test_bad_sampling(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for option, value, message in (
        ("--class", "11", "class '11' is not one of 0, 1, 2"),
        ("--temperature", "0", "temperature is 0"),
        ("--top-k", "4", "top-k is 4, but a code has only 3"),
        ("--top-p", "2", "top-p is 2"),
        ("-n", "0", "is 0"),
        ("--seed", "-1", "seed is -1"),
        ("-o", "sheet.gif", "must end in .png"),
        ("--save-dir", "file", "written"),
    ):
        assert message in refused(["sample", run, "-o", "sheet.png", option, value])
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_colours_for_a_greyscale_model_are_converted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / f"{mode}.png" for mode in ("L", "RGB", "P", "RGBA")]
    for path in paths:
        write_picture(path, 1, (28, 28), path.stem)
    found = reconstruct("mnist", paths, tmp_path / "sheet.png")
    assert [path for path, _ in found] == paths

    def messages() -> list[str]:
        return [line for line in caplog.messages if not line.startswith("compiling")]

    assert messages() == [
        f"images converted: 3 of 4 (colour to greyscale), the first is {paths[1]}"
    ]
    assert found[1][1] == found[3][1], "an opaque RGBA image is the RGB image"
    with pytest.raises(InputError, match="is an input and is never overwritten"):
        reconstruct("mnist", paths[:1], paths[0], force=True)
    reconstruct("mnist", paths[:1], tmp_path / "sheet.png", force=True)
    assert len(messages()) == 1
    complete("mnist", paths[1], "top", 1, tmp_path / "completed.png")
    assert messages()[1:] == [
        f"images converted: 1 of 1 (colour to greyscale), the first is {paths[1]}"
    ]
