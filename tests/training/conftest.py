"""A run with a trained autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from hrvqvae.config import Config
from tests.tiny_priors import trained_copy
from tests.undrawn import undrawn


@pytest.fixture
def drawn() -> None:
    """Has curves drawn in a test of this folder."""


@pytest.fixture(autouse=True)
def _drawn_where_asked_for(request: pytest.FixtureRequest) -> Iterator[None]:
    with nullcontext() if "drawn" in request.fixturenames else undrawn():
        yield


@pytest.fixture
def run(tiny: Config, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A run folder with a trained autoencoder and no prior."""
    return trained_copy(tiny, tmp_path_factory, tmp_path / "run")
