"""Runs with a tiny autoencoder, and priors of them that train in a second."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hrvqvae.config import Config
from hrvqvae.training.prior import resolve_priors, train_priors
from tests.conftest import with_training
from tests.trained_run import silent, train_autoencoder

GIVEN = {
    "prior.network.hidden_units": "8", "prior.network.residual_units": "8", "prior.network.residual_blocks": "2",
    "prior.network.attention_layers": "1", "prior.network.attention_heads": "2", "prior.training.batch_size": "16",
    "prior.training.max_steps": "12", "prior.training.precision": "fp32", "prior.training.device": "cpu",
    "prior.training.evaluate_every": "4", "prior.training.checkpoint_every": "3", "prior.training.log_every": "4",
    "prior.training.warmup_steps": "2", "prior.training.polyak_decay": "0.5",
}  # fmt: skip
GIVEN_GPT = {name: value for name, value in GIVEN.items() if not name.startswith("prior.network.")} | {
    "prior.network.kind": "gpt", "prior.network.hidden_units": "16", "prior.network.layers": "1",
    "prior.network.heads": "2", "prior.network.path_units": "8",
}  # fmt: skip


_TRAINED: dict[Config, Path] = {}


def trained_copy(config: Config, folders: pytest.TempPathFactory, path: Path) -> Path:
    """A copy, at `path`, of a run whose autoencoder is trained so far that its codes tell something; trained once."""
    if config not in _TRAINED:
        _TRAINED[config] = folders.mktemp("trained") / "run"
        longer = with_training(config, max_steps=60)
        train_autoencoder(longer, _TRAINED[config])
    shutil.copytree(_TRAINED[config], path)
    return path


def train_levels(
    path: Path, level: int | None = None, resume: bool = False, of: dict[str, str] = GIVEN, **changes: str
) -> None:
    """Train the priors of a run, or one (1 is the coarsest), with `training__max_steps="9"` and the like changed."""
    given = of | {f"prior.{name.replace('__', '.')}": value for name, value in changes.items()}
    train_priors(path, resolve_priors(str(path), level, given, resume=resume), resume=resume, say=silent)
