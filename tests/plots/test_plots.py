"""Pictures show what they claim: pixels where they belong, and curves of what was logged."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import hrvqvae
from hrvqvae.data.images import read_image, write_image
from hrvqvae.pictures import complete, reconstruct
from hrvqvae.plots import curves, sheets
from tests.conftest import cells_of, do, input_error, names_in, refused, write_picture


def test_a_sheet_holds_every_image_at_its_pixels():
    grey = [torch.full((1, 8, 8), value) for value in (0.2, 0.8)]
    colour = torch.zeros(3, 5, 12, dtype=torch.uint8)
    colour[0] = 200
    rows = [sheets.SheetRow("grey", grey), sheets.SheetRow("red", [colour])]
    sheet = np.asarray(sheets.draw(rows))
    colours = Counter(map(tuple, sheet.reshape(-1, 3).tolist()))
    assert colours[51, 51, 51] == colours[204, 204, 204] == 40 * 40  # five times as large
    assert colours[200, 0, 0] == 25 * 60


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved from here on."""
    figures = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, _: figures.append(figure))
    return figures


def test_curves_of_a_run_that_has_just_begun(tmp_path):
    curves.plot_training([], tmp_path / "curves.png")
    curves.plot_usage([torch.tensor([3, 0, 1]), torch.zeros(9).long()], tmp_path / "usage.png")
    for name in ("curves.png", "usage.png"):
        assert read_image(tmp_path / name, 3).shape[0] == 3
    with input_error("can't be written"):
        curves.plot_training([], tmp_path / "usage.png" / "curves.png")


def test_what_was_not_measured_is_left_out(figures):
    records = [
        {"kind": "evaluation", "step": 3, "usage": [0.5, 1.0], "level_mse": [0.1, None]},
        {"kind": "train", "step": 4},
        {"kind": "train", "step": 5, "loss": 0.5, "discriminator_gradient_norm": 1.0},
    ]
    curves.plot_training(records, None)
    drawn = [[line.get_xydata().tolist() for line in axes.lines] for axes in figures[0].axes]
    losses, errors, usage = drawn
    assert losses == [[[5, 0.5]]]
    assert errors == [[[3, 0.1]]]
    assert usage == [[[3, 0.5]], [[3, 1.0]]]


def test_completion(run, tmp_path):
    """A row with the original and the part that is kept, then the completions, five times as
    large.
    """
    write_picture(tmp_path / "image.png", 3, (12, 12), "L")
    out = tmp_path / "sheet.png"
    options = f"--class 1 -n 3 -o {out} --force --keep".split()
    command = ["complete", run, tmp_path / "image.png", *options]
    assert "3 completions" in do(*command, "0.5")
    image = read_image(tmp_path / "image.png", 1)

    def part(row, column):
        top = 24 + 84 * row  # a gap of 4 and a caption of 20
        left = 4 + 64 * column
        return read_image(out, 1)[0, top : top + 60 : 5, left : left + 60 : 5].numpy()

    assert np.array_equal(part(0, 0), image[0])
    kept = part(0, 1)
    assert np.array_equal(kept[:7], image[0, :7])  # four of the seven rows of codes
    assert (kept[7:] == 128).all()
    completed = hrvqvae.load(run).complete(image, 3, class_name="1")
    for index, completion in enumerate(completed):
        assert np.array_equal(part(1, index), (completion[0] * 255).round())
    mask = np.full((1, 12, 12), 255, np.uint8)
    mask[0, 9:, 9:] = 0
    write_image(Image.fromarray(mask[0]), tmp_path / "mask.png")
    do(*command, tmp_path / "mask.png")
    assert np.array_equal(part(0, 1) == image[0], mask[0] > 0)
    write_picture(tmp_path / "mask.png", 0, (9, 12), "L")
    assert "the mask has 12x9 pixels" in refused([*command, tmp_path / "mask.png"])
    for keep in ("bottom", "1.0", "0"):
        assert "--keep is" in refused([*command, keep])


def test_bad_sampling(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for option, value, message in cells_of("""
            --class | 11 | class '11' is not one of 0, 1, 2
            -n | 0 | at least 1
            --levels | 4 | levels is 4; this model
            -o | sheet.gif | must end in .png
            --save-dir | file | written
        """):
        assert message in refused(f"sample {run} -o sheet.png {option} {value}")
        assert names_in(tmp_path) == ["file"]


def test_colours_for_a_greyscale_model_are_converted(tmp_path):
    paths = [tmp_path / f"{mode}.png" for mode in ("L", "RGB", "P", "RGBA")]
    for path in paths:
        write_picture(path, 1, (28, 28), path.stem)
    sheet = tmp_path / "sheet.png"
    errors = reconstruct("mnist", paths, sheet)
    assert [path for path, _ in errors] == paths
    assert errors[1][1] == errors[3][1]  # an opaque RGBA image is the RGB image
    with input_error("is an input and is never overwritten"):
        reconstruct("mnist", paths[:1], paths[0], force=True)
    reconstruct("mnist", paths[:1], sheet, force=True)
    complete("mnist", paths[1], "0.5", 1, tmp_path / "completed.png")
