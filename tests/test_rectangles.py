"""Images that are no squares: `--data.size 12x16` for every stage (height x width)."""

import shutil

import numpy as np
import torch

import hrvqvae
from hrvqvae.config import DataConfig
from hrvqvae.data.images import decode_image, read_image, to_pil
from tests.conftest import do, input_error, parametrize, with_data, write_file
from tests.trained_run import GIVEN, GIVEN_GPT, as_options, tiny_systems

SIDES = (12, 16)


def test_sizes():
    assert DataConfig(size="12x16").image_size == SIDES
    for value in ("12x", "0x4", "0", "x"):
        with input_error(f"data.size is '?{value}"):
            DataConfig(size=value)


@parametrize("size", [(100, 30), (61, 40)])
@parametrize("sides", [(12, 16), (16, 12), (1, 9)])
@parametrize("share", [0.0, 0.5, 1.0])
def test_the_largest_part_of_the_shape_is_taken(size, sides, share):
    """A picture whose rows and columns count up tells which part was taken."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows, columns, rows * 0]).astype(np.uint8)
    pixels = decode_image(lambda: to_pil(picture), 3, size=sides, position=(share, share))
    assert pixels.shape == (3, *sides)
    scale = min(height / sides[0], width / sides[1])
    for axis, (side, length) in enumerate(zip(sides, (height, width), strict=True)):
        middle = share * (length - side * scale) + side * scale / 2 - 0.5
        assert abs(pixels[axis].mean() - middle) < 1.5


@parametrize("system", ["hrvqvae", "treevq", "vqvae2", "vqgan"])
def test_every_stage_takes_rectangles(system, picture_folder, tmp_path):
    root = str(picture_folder)
    data = {"dataset": "mine", "root": root, "channels": 3, "test_fraction": 0.4}
    config = with_data(tiny_systems(tmp_path)[system], **data)
    file = write_file(config, tmp_path / "tiny.yaml")
    run = tmp_path / "run"
    prior = GIVEN_GPT if system in ("treevq", "vqgan") else GIVEN
    train_prior = f"train-prior {run} {as_options(prior).replace('max_steps=12', 'max_steps=2')}"
    image = next(picture_folder.rglob("*.png"))
    samples = tmp_path / "samples"
    commands = f"""
        train {file} --data.size 12x16 --out {run} --max-steps 2
        {train_prior}
        evaluate {run}
        complete {run} {image} --keep 0.3 -n 2 -o {tmp_path}/completed.png
        tokenize {run} {picture_folder} {tmp_path}/codes
        sample {run} -n 3 --save-dir {samples} -o {tmp_path}/sheet.png
    """
    for command in commands.strip().splitlines():
        do(command)
    if system == "treevq":
        shutil.rmtree(run / "priors")
        do(f"{train_prior} --codes {tmp_path}/codes")
    assert {read_image(path).shape[1:] for path in samples.glob("*.png")} == {SIDES}
    model = hrvqvae.load(run)
    mask = torch.arange(SIDES[1]).expand(SIDES) < 8
    completed = model.complete(torch.rand(3, *SIDES), keep=mask)
    assert completed.shape == (1, 3, *SIDES)
    with input_error("16x12 pixels; this model completes 12x16"):
        model.complete(torch.rand(3, 16, 12))
