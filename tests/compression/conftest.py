"""What the tests of files of codes share."""

import pytest

import hrvqvae
from tests.trained_run import tiny_run_with_entropy_model


@pytest.fixture
def run(mnist_root):
    return tiny_run_with_entropy_model(mnist_root)


@pytest.fixture
def model(run):
    return hrvqvae.load(run)
