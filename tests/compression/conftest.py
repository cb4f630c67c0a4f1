"""What the tests of files of codes share."""

import pytest

from tests.trained_run import tiny_run_with_entropy_model


@pytest.fixture
def run(mnist_root):
    return tiny_run_with_entropy_model(mnist_root)
