"""A trained run with an entropy model, and images for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import drawn_digits
from tests.trained_run import tiny_run_with_entropy_model


@pytest.fixture
def run(mnist_root: Path) -> Path:
    """A trained run with an entropy model."""
    return tiny_run_with_entropy_model(mnist_root)


def digits(count: int = 12) -> Tensor:
    """(count, 1, 12, 12) uint8."""
    return torch.from_numpy(drawn_digits(count, 5, 12)[0]).unsqueeze(1)


def squared_errors(decoded: Tensor, images: Tensor) -> Tensor:
    """Of each image, in [0, 1]."""
    return (decoded - images / 255).square().flatten(1).sum(1)
