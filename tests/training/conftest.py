"""A run with a trained autoencoder, and the tasks of the trainer."""

import shutil
from pathlib import Path

import pytest

from hrvqvae.config import Config
from tests.trained_run import trained_copy
from tests.training.tasks import Case


@pytest.fixture
def run(tiny: Config, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return trained_copy(tiny, tmp_path_factory, tmp_path / "run")


@pytest.fixture(params=("autoencoder", "prior", "progressive"))
def case(request: pytest.FixtureRequest, tiny: Config, run: Path) -> Case:
    if request.param == "autoencoder":
        shutil.rmtree(run)
    return Case(request.param, run, tiny)


@pytest.fixture
def other(case: Case, tmp_path: Path) -> Case:
    return case.copied(tmp_path / "other")


_WHOLE: dict[tuple[str, str], Case] = {}


@pytest.fixture
def whole(case: Case, tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Case:
    """The task after a training that nothing stopped. Do not write to its folder."""
    key = (case.name, str(mnist_root))
    if key not in _WHOLE:
        _WHOLE[key] = case.copied(tmp_path_factory.mktemp("whole") / "run")
        _WHOLE[key].train()
    return _WHOLE[key]
