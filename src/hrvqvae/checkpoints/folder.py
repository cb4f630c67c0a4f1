"""The run folder: its files, its checkpoints, and the search for a run by name.

RUN/config.yaml         the resolved configuration
    config.json         the configuration, in an exported run
    README.md           the model card, in an exported run
    metrics.jsonl       one line per logged step and evaluation
    model.safetensors   averaged weights, and the configuration
    tables.hrvt         the entropy model (docs/format.md)
    checkpoints/        the two newest checkpoints, such as step-000001000.safetensors
    pictures/           reconstruction sheets, training curves, codeword usage, samples
    prefixes/           the run folder of the progressive decoder
    generation/         the run folder of the decoder for samples and completions
    priors/codes/       the codes of the train split; beside it codes-flipped/, codes-shifted-1/,
                        ... for copies
    priors/level-1/     the run folder of a prior; its model.safetensors has the lowest held-out
                        loss; priors/levels-1-3/ where one prior covers several levels
    sampling.json       default guidance, levels and decoder of samples
    states/DIGEST/      earlier model.safetensors, tables.hrvt and prefixes/, to read older files of
                        codes
    autoencoder.txt     in prefixes/ and priors/level-1/: digest of the autoencoder that this
                        network is trained for
    .lock               held by the process that trains here
    .job                the id of the torchrun job that trains here; a restart of the same job
                        resumes the run
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from hrvqvae.checkpoints import storage
from hrvqvae.config import Config, Levels, presets, to_dict
from hrvqvae.config.parsing import from_file
from hrvqvae.distributed.launch import job_id
from hrvqvae.priors.guidance import Guidance, list_weights
from hrvqvae.utils.errors import (
    DamagedFileError,
    InputError,
    explain_write_errors,
    near_names,
    one_line,
)
from hrvqvae.utils.outputs import remove_temporaries, write_atomic

PROGRESSIVE = "prefixes"  # folder of the decoder of prefixes with the least squared error
GENERATION = "generation"  # folder of the decoder of prefixes for samples and completions
_NUM_CHECKPOINTS = 2
_SHIPPED = Path(__file__).parent.parent / "weights"  # one folder per model, as `export` writes them


@dataclass(frozen=True)
class SamplingDefaults:
    """How samples are drawn if no option says otherwise: the fields of sampling.json."""

    guidance: Guidance = 1.0
    levels: int | None = None  #: number of levels to draw; None: all
    #: "progressive" or "generation"; None: the second, if there is one for these levels
    decoder: str | None = None


class RunFolder:
    """The paths in a run folder, and its checkpoints. The folder need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.config_json = path / "config.json"
        self.card = path / "README.md"
        self.metrics = path / "metrics.jsonl"
        self.model = path / "model.safetensors"
        self.autoencoder_digest = path / "autoencoder.txt"
        self.tables = path / "tables.hrvt"
        self.job = path / ".job"
        self.pictures = path / "pictures"
        self.codes = path / "priors" / "codes"
        self.states = path / "states"
        self.sampling = path / "sampling.json"
        self.checkpoints = path / "checkpoints"

    def prepare(self, config: Config) -> None:
        """Create the folders, and write the configuration and the job id. The caller must hold the
        lock.
        """
        with explain_write_errors(f"the run folder {self.path}", "; choose another --out"):
            for folder in (self.path, self.checkpoints, self.pictures):
                folder.mkdir(parents=True, exist_ok=True)
                remove_temporaries(folder)
            self.write_config(config)
            if job_id():
                write_atomic(self.job, job_id().encode())

    def belongs_to_this_job(self) -> bool:
        """Return whether the run was begun by the torchrun job of this process, which then resumes
        it.
        """
        return bool(job_id()) and self.job.is_file() and self.job.read_text() == job_id()

    def begun(self) -> bool:
        """Return whether the folder holds a checkpoint or a model."""
        return bool(self.saved()) or self.model.is_file()

    def is_stale(self, digest: str) -> bool:
        """Return whether this network was trained for an autoencoder of another digest. Raises
        DamagedFileError.
        """
        if self.model.is_file():
            meta = storage.read_meta(self.model)
            if "autoencoder" not in meta:
                raise DamagedFileError(f"{self.model} does not say which autoencoder it is of")
            return bool(meta["autoencoder"] != digest)
        file = self.autoencoder_digest
        return self.begun() and file.is_file() and file.read_bytes() != digest.encode()

    def write_config(self, config: Config) -> None:
        """Write config.yaml. Raises OSError."""
        write_atomic(self.config, yaml.safe_dump(to_dict(config), sort_keys=False).encode())

    def read_config(self) -> Config:
        """Return the configuration. Raises InputError if config.yaml is missing or can't be
        read.
        """
        if not self.config.is_file():
            raise InputError(f"{self.path} is not a run folder (it has no {self.config.name})")
        return from_file(self.config)

    def read_sampling(self) -> SamplingDefaults:
        """Return what sampling.json says. Raises DamagedFileError if a field is wrong."""
        if not self.sampling.is_file():
            return SamplingDefaults()
        try:
            defaults = SamplingDefaults(**json.loads(self.sampling.read_bytes()))
            list_weights(defaults.guidance)
            if defaults.levels is not None and type(defaults.levels) is not int:
                raise ValueError("levels is no whole number")
            if defaults.decoder not in ("progressive", GENERATION, None):
                raise ValueError(f"decoder is neither progressive nor {GENERATION}")
        except (ValueError, TypeError, RecursionError) as error:
            reason = one_line(error).removeprefix("SamplingDefaults.__init__() ")
            raise DamagedFileError(
                f"{self.sampling} is damaged: {reason}; delete it, or mend it"
            ) from error
        return defaults

    def saved(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        return sorted(self.checkpoints.glob(f"step-{'[0-9]' * 9}.safetensors"), reverse=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then delete all but the two newest. Raises OSError if it can't be
        written.
        """
        path = self.checkpoints / f"step-{step:09d}.safetensors"
        storage.write(path, tensors, meta)
        for old in self.saved()[_NUM_CHECKPOINTS:]:
            old.unlink()
        return path

    def load_newest(
        self, say: Callable[[str], None]
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest intact checkpoint; None without a checkpoint. Raises DamagedFileError
        if all are damaged.

        Damaged checkpoints are reported with `say`, and renamed to *.damaged if an older checkpoint
        is intact.
        """
        damaged = []
        for path in self.saved():
            try:
                state = storage.read(path)
            except DamagedFileError as error:
                say(str(error))
                damaged.append(path)
                continue
            for damaged_path in damaged:
                damaged_path.replace(damaged_path.with_suffix(".damaged"))
            if damaged:
                say(f"{path.name} is loaded instead")
            return state
        if damaged:
            raise DamagedFileError(
                f"every checkpoint in {self.checkpoints} is damaged; train anew with another --out"
            )
        return None


def prior_folder(run: str | Path, *levels: int) -> RunFolder:
    """Return the folder of a run's prior of consecutive levels. Levels are counted from 0, the
    coarsest.
    """
    name = f"level-{levels[0] + 1}"
    if len(levels) > 1:
        name = f"levels-{levels[0] + 1}-{levels[-1] + 1}"
    return RunFolder(Path(run) / "priors" / name)


def prior_folders(run: str | Path) -> dict[Levels, RunFolder]:
    """Return the folders of a run's priors by their levels. Raises InputError if two priors share a
    level.
    """
    priors = []
    for path in (Path(run) / "priors").glob("level*"):
        match = re.fullmatch(r"levels?-(\d+)(?:-(\d+))?", path.name)
        folder = RunFolder(path)
        if match and (folder.config.is_file() or folder.begun()):
            priors.append((range(int(match[1]) - 1, int(match[2] or match[1])), folder))
    priors.sort(key=lambda prior: (prior[0].start, prior[0].stop))
    for (coarse, folder), (fine, finer_folder) in pairwise(priors):
        if fine.start < coarse.stop:
            raise InputError(
                f"{folder.path} and {finer_folder.path.name} both hold a prior of level"
                f" {fine.start + 1}; delete one of them"
            )
    return dict(priors)


def decoder_folder(run: str | Path, name: str) -> RunFolder:
    """Return the folder of a run's decoder of prefixes, PROGRESSIVE or GENERATION."""
    return RunFolder(Path(run) / name)


def shipped_runs() -> list[Path]:
    """Return the folders of the trained models inside the package."""
    return sorted(path for path in _SHIPPED.glob("*") if RunFolder(path).model.is_file())


def list_models() -> list[str]:
    """Return the names of the trained models inside the package."""
    return [path.name for path in shipped_runs()]


def run_folder(run: str | Path) -> Path:
    """Return `run` as a path, or the folder of the model `run` in the package if no run is at this
    path.
    """
    path = Path(run)
    is_run = path.is_file() or RunFolder(path).config.is_file() or RunFolder(path).model.is_file()
    return _SHIPPED / path if str(run) in list_models() and not is_run else path


def require_trainable(run: str | Path) -> None:
    """Raise InputError unless a run is a folder outside the package, where networks can be
    trained.
    """
    locate(run)
    if run_folder(run) != Path(run) or not Path(run).is_dir():
        raise InputError(
            f"{run} is no run folder; write one and train there: hrvqvae export"
            f" {shlex.quote(str(run))} DIR"
        )


def is_hub_name(name: str | Path) -> bool:
    """Return whether a name has the form user/name, as models on the hub and some paths have."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name), re.ASCII) is not None


def locate(run: str | Path) -> Path:
    """Return the weights file of a run, which is named as for `Run`. Raises InputError if there is
    none.
    """
    path = run_folder(run)
    folder = RunFolder(path)
    if folder.model.is_file():
        return folder.model
    if path.suffix == ".safetensors" and path.is_file():
        return path
    if path.is_file():
        raise InputError(
            f"{path} is no model: give a run folder, a file .safetensors or a model of the package"
        )
    if folder.config.is_file():
        raise InputError(
            f"{path} has no model.safetensors yet; train it: hrvqvae train"
            f" {shlex.quote(str(path))} --resume"
        )
    if path.is_dir():
        raise InputError(f"{path} is not a run folder (it has no model.safetensors)")
    hint = f"models of the package: {', '.join(list_models())}"
    if matches := near_names(str(run).lower(), list_models()):
        hint = f"did you mean {matches}?"
    if str(run) in presets.names():
        command = f"hrvqvae train {run} --out runs/{str(run).replace('/', '-')}"
        raise InputError(f"{run} is a preset, not a trained model; {hint}; train one: {command}")
    if is_hub_name(run) and not path.parent.is_dir():
        hint += f"; from the hub: hrvqvae hub get {run}"
    raise InputError(f"{path}: there is no such run folder; {hint}")
