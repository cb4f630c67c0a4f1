"""Trainings by a call; and a run with priors that many tests look at: trained once in a process, never written to."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from hrvqvae.checkpoints.entropy_model import fit_entropy_model
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.cli import main
from hrvqvae.config import Config
from hrvqvae.plots import curves
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.prior import resolve_priors, train_priors
from hrvqvae.training.trainer import Callback, Outcome, Say, Trainer
from hrvqvae.utils.files import write_atomic
from tests.conftest import with_training, write_file
from tests.tiny_systems import tiny_run


def silent(_: str) -> None:
    """Say nothing."""


def train_autoencoder(
    config: Config, run: RunFolder | Path, *, resume: bool = False, callbacks: Sequence[Callback] = (),
    say: Say = silent,
) -> Outcome:  # fmt: skip
    """Train the autoencoder of a configuration into a folder; nothing is drawn of it but by callbacks."""
    task = AutoencoderTask(config, run if isinstance(run, RunFolder) else RunFolder(run))
    return Trainer(task, resume=resume, callbacks=callbacks, say=say).train()


@cache
def tiny_run_with_priors(mnist_root: Path) -> Path:
    """A run folder of HR-VQVAE with three levels of three codewords and its priors, trained by the command line."""
    folder = mnist_root.parent / "tiny-with-priors"
    folder.mkdir()
    file = write_file(with_training(tiny_run(mnist_root), max_steps=60), folder / "tiny.yaml")
    with undrawn():
        assert main(["train", str(file), "--out", str(folder / "run")]) == 0
        assert main(["train-prior", str(folder / "run"), "--max-steps", "30"]) == 0
    return folder / "run"


@cache
def tiny_run_with_entropy_model(mnist_root: Path) -> Path:
    """A copy of it that has an entropy model, too."""
    folder = mnist_root.parent / "tiny-with-entropy-model"
    shutil.copytree(tiny_run_with_priors(mnist_root), folder)
    fit_entropy_model(folder, effort=0.2, say=lambda _: None)
    return folder


@contextmanager
def undrawn() -> Iterator[None]:
    """Files of a few bytes, written as any, in the place of curves and codeword usage of a training."""

    def write(_: object, path: Path) -> None:
        write_atomic(path, b"not drawn")

    with pytest.MonkeyPatch.context() as patched:
        for name in ("training_curves", "prior_curves", "codeword_usage"):
            patched.setattr(curves, name, write)
        yield


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
