"""A run that was stopped and went on, beside one that never was."""

from __future__ import annotations

from pathlib import Path

import torch

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import Config
from hrvqvae.training.autoencoder import train
from hrvqvae.training.loop import Metrics
from hrvqvae.training.state import TrainState
from tests.conftest import with_training


class _NoEvaluation:
    def due(self, state: TrainState) -> bool:
        return False

    def __call__(self, state: TrainState, metrics: Metrics) -> None: ...


def check_resumes(config: Config, folder: Path, stop: int, steps: int) -> None:
    """Trained in one go, and stopped at step `stop`, its state and its model's file are the same to the bit."""
    states = []
    for name, parts in (("whole", (steps,)), ("parts", (stop, steps))):
        run = RunFolder(folder / name)
        for part in parts:
            torch.manual_seed(part)  # another process has drawn other numbers
            budget = with_training(config, max_steps=part, schedule="constant")
            train(budget, run, resume=run.begun(), evaluation=lambda *_: _NoEvaluation(), say=lambda _: None)
        states.append(storage.read(run.saved()[0])[0] | storage.read(run.model)[0])
    whole, parts_of_it = states
    assert whole.keys() == parts_of_it.keys()
    assert all(torch.equal(one, parts_of_it[key]) for key, one in whole.items())
