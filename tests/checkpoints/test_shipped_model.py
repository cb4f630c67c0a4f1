"""The shipped MNIST model gives the codes and the samples that it gave."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hrvqvae
from hrvqvae.model import Model
from tests.conftest import drawn_digits

CODES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "mnist_codes.json").read_text())


@pytest.fixture(scope="module")
def model() -> Model:
    return hrvqvae.load("mnist")


def test_codes_of_images(model: Model) -> None:
    images = torch.from_numpy(drawn_digits(4, CODES["image_seed"], 28)[0]).unsqueeze(1)
    codes = model.encode(images)
    assert [code.tolist() for code in codes] == CODES["image_codes"]
    bytes_ = (model.decode(codes, size=(28, 28)) * 255).round()
    assert float((bytes_ - images).square().mean()) < 255**2 * 0.01, "and they decode to the images"


def test_codes_of_samples(model: Model) -> None:
    sampled = model.draw(2, seed=CODES["sample_seed"], class_name=str(CODES["class"]))
    assert [code.tolist() for code in sampled.codes] == CODES["sample_codes"]
    assert sampled.images.shape == (2, 1, 28, 28)
