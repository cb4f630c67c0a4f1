"""What the tests of files of codes share."""

from pathlib import Path

import pytest

from tests.trained_run import tiny_run_with_entropy_model


@pytest.fixture
def run(mnist_root: Path) -> Path:
    return tiny_run_with_entropy_model(mnist_root)
