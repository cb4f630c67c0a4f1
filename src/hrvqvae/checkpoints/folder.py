"""The run folder.

RUN/config.yaml         the resolved configuration; config.json and README.md, the model card, in what is exported
    metrics.jsonl       a line for each logged step and each evaluation
    model.safetensors   averaged weights with the configuration inside: what everything else loads
    tables.hrvt         integer models of its codes, by which files of codes are written (docs/format.md)
    checkpoints/        the two newest resume states, step-00001000.safetensors
    pictures/           reconstruction sheets, training curves, codeword usage, samples
    prefixes/           a run folder of its own: its model.safetensors is the progressive decoder
    priors/codes/       the codes of the train split
    priors/level-1/     a run folder of its own: its model.safetensors is the prior's best held-out state;
                        priors/levels-1-3/ where one prior covers several levels
    autoencoder.txt     in prefixes/ and in the folder of a prior: digest of the model that the training there is for
    .lock               taken by the process that trains here
    .job                torchrun's name of the training, by which its restarts know that they go on
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from hrvqvae.checkpoints import storage
from hrvqvae.config import Config, Levels, to_dict
from hrvqvae.config.parsing import from_dict
from hrvqvae.distributed import job_id
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.files import locked, remove_temporaries, write_atomic

KEPT = 2


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and its checkpoints."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def config_json(self) -> Path:
        return self.path / "config.json"

    @property
    def card(self) -> Path:
        return self.path / "README.md"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def source(self) -> Path:
        """Of a prior or a progressive decoder: the file that says whose; `export` writes none."""
        return self.path / "autoencoder.txt"

    @property
    def tables(self) -> Path:
        return self.path / "tables.hrvt"

    @property
    def job(self) -> Path:
        return self.path / ".job"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def codes(self) -> Path:
        return self.path / "priors" / "codes"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def locked(self) -> AbstractContextManager[None]:
        """Work in the folder as the only process, and make it if need be.

        Raises:
            InUseError: another process trains here.
            InputError: the folder can't be made or written.
        """
        return locked(self.path)

    def create(self) -> None:
        """Make the folders, and clear what a killed writer left: only whoever has the lock may do so.

        Raises:
            InputError: the folder can't be made or written.
        """
        try:
            for folder in (self.path, self.checkpoints, self.pictures):
                folder.mkdir(parents=True, exist_ok=True)
                remove_temporaries(folder)
            write_atomic(self.path / ".writable", b"")
            (self.path / ".writable").unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"the run folder {self.path} can't be written ({reason}); choose another --out") from error

    def prepare(self, config: Config) -> None:
        """Make the folders as `create`, write the configuration, and the job that trains here, if it has a name."""
        self.create()
        self.write_config(config)
        if job_id():
            write_atomic(self.job, job_id().encode())

    def of_this_job(self) -> bool:
        """Whether the run began in this very training, which goes on with other processes now."""
        return bool(job_id()) and self.job.is_file() and self.job.read_text() == job_id()

    def begun(self) -> bool:
        """Whether there is anything here that a new run would overwrite."""
        return bool(self.saved()) or self.model.is_file()

    def holds_something(self) -> bool:
        """Whether there is a configuration here, or anything that a new run would overwrite."""
        return self.config.is_file() or self.begun()

    def is_stale(self, autoencoder: str) -> bool:
        """Whether the prior or progressive decoder here, or its training, is for another state of the autoencoder.

        Args:
            autoencoder: digest of its weights now.

        Raises:
            DamagedFileError: a file does not tell.
        """
        if not self.begun() or not (self.source.is_file() or self.model.is_file()):
            return False
        if self.source.is_file():
            return self.source.read_bytes() != autoencoder.encode()
        return bool(storage.read_meta(self.model).get("autoencoder") != autoencoder)

    def write_config(self, config: Config) -> None:
        write_atomic(self.config, yaml.safe_dump(to_dict(config), sort_keys=False).encode())

    def read_plain(self, file: Path | None = None) -> Any:
        """The configuration as plain values, from config.yaml or the file that is given.

        Raises:
            InputError: the folder holds no run, or the file is damaged.
        """
        file = file or self.config
        if not file.is_file():
            raise InputError(f"{self.path} is not a run folder (it has no {file.name})")
        try:
            return json.loads(file.read_text()) if file.suffix == ".json" else yaml.safe_load(file.read_text())
        except (yaml.YAMLError, ValueError) as error:
            raise DamagedFileError(f"{file} is damaged: not {file.suffix[1:].upper()}") from error

    def read_config(self) -> Config:
        """The configuration. Raises InputError as `read_plain`, and where a field or a value is none."""
        return from_dict(self.read_plain(), str(self.config))

    def saved(self) -> list[Path]:
        """Checkpoints, newest first."""
        return sorted(self.checkpoints.glob("step-*.safetensors"), reverse=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Write a checkpoint and drop all but the two newest. Raises OSError with the older ones untouched."""
        path = self.checkpoints / f"step-{step:09d}.safetensors"
        storage.write(path, tensors, meta)
        for old in self.saved()[KEPT:]:
            old.unlink()
        return path

    def newest(self, say: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """State of the newest checkpoint that is whole, or None where there is none at all.

        A damaged one is named and set aside (renamed to *.damaged), so that two good ones are kept from here on.

        Raises:
            DamagedFileError: there are checkpoints and every one is damaged.
        """
        found, damaged = self.saved(), list[Path]()
        for path in found:
            try:
                state = storage.read(path)
            except DamagedFileError as error:
                say(str(error))
                damaged.append(path)
                continue
            for bad in damaged:
                bad.replace(bad.with_suffix(".damaged"))
            if damaged:
                say(f"{path.name}, the one before, is taken")
            return state
        if found:
            raise DamagedFileError(f"every checkpoint in {self.checkpoints} is damaged; train anew with another --out")
        return None


def prior_folder(run: str | Path, *levels: int) -> RunFolder:
    """The folder of the prior of a run's level (0 is the coarsest), or of the consecutive levels that one covers."""
    first, last = levels[0] + 1, levels[-1] + 1
    return RunFolder(Path(run) / "priors" / (f"level-{first}" if first == last else f"levels-{first}-{last}"))


def prior_folders(run: str | Path) -> dict[Levels, RunFolder]:
    """Folders of the priors in a run, begun or not, by the levels that each covers, coarse first.

    Raises:
        InputError: two of them cover the same level.
    """
    found = list[Levels]()
    for path in (Path(run) / "priors").glob("level*"):
        named = re.fullmatch(r"level-(\d+)|levels-(\d+)-(\d+)", path.name)
        if named and RunFolder(path).holds_something():
            first, last = (named[1], named[1]) if named[1] else (named[2], named[3])
            found.append(range(int(first) - 1, int(last)))
    found.sort(key=lambda levels: (levels.start, levels.stop))
    for one, other in pairwise(found):
        if other.start < one.stop:
            raise InputError(
                f"{prior_folder(run, *one).path} and {prior_folder(run, *other).path.name} both hold a prior of level "
                f"{other.start + 1}; delete one of them"
            )
    return {levels: prior_folder(run, *levels) for levels in found}


def progressive_folder(run: str | Path) -> RunFolder:
    """The folder of the progressive decoder."""
    return RunFolder(Path(run) / "prefixes")
