"""A run with a trained autoencoder, and the tasks of the trainer."""

import shutil

import pytest

from tests.trained_run import trained_copy
from tests.training.tasks import Case


@pytest.fixture
def run(tiny, tmp_path_factory, tmp_path):
    return trained_copy(tiny, tmp_path_factory, tmp_path / "run")


@pytest.fixture(params=("autoencoder", "prior", "progressive"))
def case(request, tiny, run):
    if request.param == "autoencoder":
        shutil.rmtree(run)
    return Case(request.param, run, tiny)


@pytest.fixture
def twin(case, tmp_path):
    return case.copied(tmp_path / "other")


_UNSTOPPED = {}


@pytest.fixture
def unstopped(case, tmp_path_factory, mnist_root):
    """The task after a training that nothing stopped. Do not write to its folder."""
    key = (case.name, str(mnist_root))
    if key not in _UNSTOPPED:
        _UNSTOPPED[key] = case.copied(tmp_path_factory.mktemp("whole") / "run")
        _UNSTOPPED[key].train()
    return _UNSTOPPED[key]
