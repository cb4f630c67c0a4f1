"""A run that was stopped and went on, beside one that never was."""

from __future__ import annotations

from pathlib import Path

import torch

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import Config
from tests.conftest import with_training
from tests.trained_run import train_autoencoder


def check_resumes(config: Config, folder: Path, stop: int, steps: int) -> None:
    """Trained in one go, and stopped at step `stop`, its state and its model's file are the same to the bit."""
    states = []
    for name, parts in (("whole", (steps,)), ("parts", (stop, steps))):
        run = RunFolder(folder / name)
        for part in parts:
            torch.manual_seed(part)  # another process has drawn other numbers
            budget = with_training(config, max_steps=part, schedule="constant")
            train_autoencoder(budget, run, resume=run.begun())
        states.append(storage.read(run.saved()[0])[0] | storage.read(run.model)[0])
    whole, parts_of_it = states
    assert whole.keys() == parts_of_it.keys()
    assert all(torch.equal(one, parts_of_it[key]) for key, one in whole.items())
