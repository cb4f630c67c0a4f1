"""A run with a trained autoencoder, and the tasks of the trainer."""

import shutil
from pathlib import Path

import pytest

from hrvqvae.config import Config
from hrvqvae.training.prior import CodeBatch, PriorTask
from tests.trained_run import trained_copy
from tests.training.tasks import Case


@pytest.fixture
def run(tiny: Config, tmp_path_factory, tmp_path) -> Path:
    return trained_copy(tiny, tmp_path_factory, tmp_path / "run")


@pytest.fixture(params=("autoencoder", "prior", "progressive"))
def case(request, tiny: Config, run: Path) -> Case:
    if request.param == "autoencoder":
        shutil.rmtree(run)
    return Case(request.param, run, tiny)


@pytest.fixture
def other(case: Case, tmp_path) -> Case:
    return case.copied(tmp_path / "other")


_WHOLE = {}


@pytest.fixture
def whole(case: Case, tmp_path_factory, mnist_root: Path) -> Case:
    """The task after a training that nothing stopped. Do not write to its folder."""
    key = (case.name, str(mnist_root))
    if key not in _WHOLE:
        _WHOLE[key] = case.copied(tmp_path_factory.mktemp("whole") / "run")
        _WHOLE[key].train()
    return _WHOLE[key]


@pytest.fixture
def batches(monkeypatch) -> list[CodeBatch]:
    """The batches of the steps of priors that are trained."""
    batches = []
    step = PriorTask.step

    def watched(self, state, batch):
        batches.append(batch)
        return step(self, state, batch)

    monkeypatch.setattr(PriorTask, "step", watched)
    return batches
