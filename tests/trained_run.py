"""Trainings by a call; and a run with priors that many tests look at: trained once in a process, never written to."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hrvqvae.checkpoints.entropy_model import fit_entropy_model
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.cli import main
from hrvqvae.config import Config
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.trainer import Callback, Outcome, Say, Trainer
from tests.cli.helpers import write_file
from tests.conftest import with_training
from tests.tiny_systems import tiny_run
from tests.undrawn import undrawn


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
