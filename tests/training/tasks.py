"""Small trainings of the three tasks."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, decoder_folder, open_run, prior_folder, save_model
from hrvqvae.config import Config
from hrvqvae.config.parsing import override
from hrvqvae.models.build import build
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.decoder import PrefixTask, SampleTask
from hrvqvae.training.loggers import read_records
from hrvqvae.training.prior import PriorTask
from hrvqvae.training.trainer import Trainer
from tests.conftest import generator
from tests.trained_run import GIVEN as PRIOR
from tests.trained_run import SHORT, fields

AUTOENCODER = fields("training", "max_steps=12 evaluate_every=4")
PROGRESSIVE = fields("progressive.training", SHORT) | fields(
    "progressive.network", "hidden_units=8 residual_blocks=2"
)
GENERATION = fields("generation.training", SHORT + "batch_size=8 adam_beta1=0.5") | fields(
    "generation", "levels=2 samples=0 adversarial_start=2"
)
GENERATION |= fields("generation.network", "hidden_units=8 residual_blocks=2")
TASKS = {
    "autoencoder": AutoencoderTask,
    "prior": PriorTask,
    "progressive": PrefixTask,
    "generation": SampleTask,
}


@dataclass(frozen=True)
class Case:
    """A task in a run folder, which holds a trained autoencoder unless the task trains it."""

    name: str  # a key of TASKS; the prior is that of level 2
    path: Path
    base: Config

    @property
    def kind(self):
        return TASKS[self.name]

    @property
    def folder(self):
        if self.name == "autoencoder":
            return RunFolder(self.path)
        if self.name == "prior":
            return prior_folder(self.path, 1)
        return decoder_folder(self.path, "prefixes" if self.name == "progressive" else self.name)

    @property
    def section(self):
        return "training" if self.name == "autoencoder" else f"{self.name}.training"

    @property
    def last_step(self):
        """The step of the newest checkpoint."""
        return int(self.folder.saved()[0].stem.removeprefix("step-"))

    def config(self, **training):
        changes = {f"{self.section}.{name}": str(value) for name, value in training.items()}
        return override(self.base, AUTOENCODER | PRIOR | PROGRESSIVE | GENERATION | changes)

    def task(self, config):
        if self.name == "autoencoder":
            return AutoencoderTask(config, self.folder)
        if self.name != "prior":
            return self.kind(self.path, config)
        run = open_run(self.path)
        return PriorTask(self.path, range(1, 2), config, (*run.load(), run.digest))

    def train(self, *, resume=False, config=None, **training):
        task = self.task(config or self.config(**training))
        return Trainer(task, resume=resume).train()

    def resume(self, **options):
        return self.train(resume=True, **options)

    def at(self, path):
        return dataclasses.replace(self, path=path)

    def copied(self, path):
        """Copy what is in the run folder, and return the task there."""
        if self.path.is_dir():
            shutil.copytree(self.path, path)
        return self.at(path)

    def state(self):
        """The tensors of the newest checkpoint and of the model file."""
        in_file = storage.read(self.folder.model)[0]
        checkpoint = storage.read(self.folder.saved()[0])[0]
        return checkpoint | {f"file.{name}": tensor for name, tensor in in_file.items()}

    def records(self, kind=""):
        """The records of a kind, or all, without what a clock measured."""
        return [
            {name: value for name, value in record.items() if name != "images_per_second"}
            for record in read_records(self.folder.metrics)
            if kind in ("", record["kind"])
        ]


def untrained_run(name, config, folder):
    """Return a task in FOLDER/run, whose autoencoder has codebooks that were just drawn."""
    run = RunFolder(folder / "run")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(config)
    size = (config.data.channels, config.data.size, config.data.size)
    model.initialize(torch.rand(16, *size), generator())
    run.prepare(config)
    save_model(run.model, config, model.state_dict(), 0)
    return Case(name, run.path, config)
