"""Small trainings of the three tasks."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, decoder_folder, prior_folder
from hrvqvae.checkpoints.run import Run
from hrvqvae.config import Config
from hrvqvae.config.parsing import override
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.generation import GenerationTask
from hrvqvae.training.loggers import read_records
from hrvqvae.training.prior import PriorTask
from hrvqvae.training.progressive import ProgressiveTask
from hrvqvae.training.trainer import Callback, Outcome, Say, Task, Trainer
from tests.trained_run import GIVEN as PRIOR
from tests.trained_run import silent

PROGRESSIVE = {
    "progressive.network.hidden_units": "8",
    "progressive.network.residual_blocks": "2",
    "progressive.training.device": "cpu",
    "progressive.training.max_steps": "12",
    "progressive.training.precision": "fp32",
    "progressive.training.warmup_steps": "2",
    "progressive.training.evaluate_every": "4",
    "progressive.training.checkpoint_every": "3",
    "progressive.training.log_every": "4",
    "progressive.training.polyak_decay": "0.5",
}
GENERATION = {
    name.replace("progressive", "generation"): value
    for name, value in PROGRESSIVE.items()
    if "training" in name
}
GENERATION |= {
    "generation.levels": "2",
    "generation.perceptual": "none",
    "generation.adversarial_start": "2",
    "generation.discriminator_units": "4",
    "generation.training.batch_size": "16",
    "generation.training.adam_beta1": "0.5",
}
AUTOENCODER = {"training.max_steps": "12", "training.evaluate_every": "4"}
SECTIONS = {
    "autoencoder": "training",
    "prior": "prior.training",
    "progressive": "progressive.training",
    "generation": "generation.training",
}


@dataclass(frozen=True)
class Case:
    """A task in a run folder, which holds a trained autoencoder unless the task trains it."""

    name: str  # a key of SECTIONS; the prior is that of level 2
    path: Path
    base: Config

    @property
    def kind(self) -> type[Task[Any]]:
        kinds = (AutoencoderTask, PriorTask, ProgressiveTask, GenerationTask)
        return dict(zip(SECTIONS, kinds, strict=True))[self.name]

    @property
    def folder(self) -> RunFolder:
        folders = {"autoencoder": RunFolder(self.path), "prior": prior_folder(self.path, 1)}
        name = "generation" if self.name == "generation" else "prefixes"
        return folders.get(self.name, decoder_folder(self.path, name))

    def config(self, **training: object) -> Config:
        fields = {**AUTOENCODER, **PRIOR, **PROGRESSIVE, **GENERATION}
        fields |= {f"{SECTIONS[self.name]}.{name}": str(value) for name, value in training.items()}
        return override(self.base, fields)

    def task(self, config: Config) -> Task[Any]:
        if self.name == "autoencoder":
            return AutoencoderTask(config, self.folder)
        if self.name in ("progressive", "generation"):
            return self.kind(self.path, config)  # type: ignore[arg-type]
        run = Run(self.path)
        return PriorTask(self.path, range(1, 2), config, (*run.load(), run.digest))

    def train(
        self,
        *,
        resume: bool = False,
        renew: bool = False,
        callbacks: tuple[Callback, ...] = (),
        say: Say = silent,
        config: Config | None = None,
        **training: object,
    ) -> Outcome:
        task = self.task(config or self.config(**training))
        return Trainer(task, resume=resume, renew=renew, callbacks=callbacks, say=say).train()

    def at(self, path: Path) -> Self:
        return dataclasses.replace(self, path=path)

    def state(self) -> dict[str, Tensor]:
        kept = storage.read(self.folder.model)[0]
        return storage.read(self.folder.saved()[0])[0] | {
            f"file.{name}": tensor for name, tensor in kept.items()
        }

    def records(self, kind: str = "") -> list[dict[str, Any]]:
        records = [
            record for record in read_records(self.folder.metrics) if kind in ("", record["kind"])
        ]
        return [
            {name: value for name, value in record.items() if name != "images_per_second"}
            for record in records
        ]
