"""The tiny presets of a comparison, for the studies; small products of matrices."""

from functools import partial

import pytest

from benchmarks import sample, search
from benchmarks.common import matrix_rate
from tests.comparison.conftest import systems

__all__ = ["systems"]


@pytest.fixture(autouse=True)
def _small_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    for script in (sample, search):
        monkeypatch.setattr(script, "matrix_rate", partial(matrix_rate, side=128, rounds=2))
    monkeypatch.setattr(search, "_ROUNDS", 3)
