"""A run with a trained autoencoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrvqvae.config import Config
from tests.tiny_priors import trained_copy


@pytest.fixture
def run(tiny: Config, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A run folder with a trained autoencoder and no prior."""
    return trained_copy(tiny, tmp_path_factory, tmp_path / "run")
