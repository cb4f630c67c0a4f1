"""The shipped MNIST model gives the codes that it gave when it was published: any change of what it computes shows.

`tests/golden/mnist_codes.json` holds integers alone. No position of the images is near a tie (the nearest codeword is
closer than the next by half a percent), and no draw near a border, so that rounding on another processor changes none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hrvqvae
from hrvqvae.checkpoints.trained import TrainedModel
from tests.conftest import drawn_digits

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "mnist_codes.json").read_text())


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return hrvqvae.load("mnist")


def test_codes_of_images(model: TrainedModel) -> None:
    images = torch.from_numpy(drawn_digits(4, GOLDEN["image_seed"], 28)[0]).unsqueeze(1)
    codes = model.encode(images)
    assert [code.tolist() for code in codes] == GOLDEN["image_codes"]
    bytes_ = (model.decode(codes, size=(28, 28)) * 255).round()
    assert float((bytes_ - images).square().mean()) < 255**2 * 0.01, "and they decode to the images"


def test_codes_of_samples(model: TrainedModel) -> None:
    sampled = model.draw(2, seed=GOLDEN["sample_seed"], class_name=str(GOLDEN["class"]))
    assert [code.tolist() for code in sampled.codes] == GOLDEN["sample_codes"]
    assert sampled.images.shape == (2, 1, 28, 28)
