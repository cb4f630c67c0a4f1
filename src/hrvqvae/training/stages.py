"""Train the stages of a run, for the command line and for Python: autoencoder, priors, decoders.

Processes that torchrun restarted always resume, also with `resume=False`.
"""

import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hrvqvae import distributed
from hrvqvae.checkpoints.folder import (
    GENERATION,
    PROGRESSIVE,
    RunFolder,
    decoder_folder,
    prior_folder,
    require_trainable,
)
from hrvqvae.checkpoints.run import Run
from hrvqvae.config import Config, Levels
from hrvqvae.config.parsing import absolute_paths, autoencoder_config, stage_config
from hrvqvae.data.sources.datasets import register_datasets
from hrvqvae.distributed.launch import is_restarted
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.drawing import draw_training
from hrvqvae.training.generation import GenerationTask, resolve_generation
from hrvqvae.training.prior import PriorTask, resolve_priors, train_priors
from hrvqvae.training.progressive import ProgressiveTask
from hrvqvae.training.trainer import Outcome, Task, Trainer
from hrvqvae.utils import progress
from hrvqvae.utils.device import resolve_device
from hrvqvae.utils.errors import InputError, expand_home
from hrvqvae.utils.progress import Say

_DECODER_TASKS = {PROGRESSIVE: ProgressiveTask, GENERATION: GenerationTask}
# the section of the configuration of each kind of network
_SECTIONS = {"prior": "prior", PROGRESSIVE: "progressive", GENERATION: "generation"}
_REFRESH_MARK = ".refreshing"  # a file in a network's folder, which marks an unfinished refresh
# fields named without their section
_SHORT_NAMES = ("max_steps", "max_minutes", "seed", "device", "init_from")
Fields = Mapping[str, Any]
"""Fields of a configuration by dotted name: plain values, or texts as on the command line."""


def collect_fields(
    section: str, options: Fields, run: str | Path, data: Any, test_data: Any = None
) -> dict[str, Any]:
    """Return the options of `hrvqvae.train` by dotted name; short names such as "seed" are fields
    of `section`.

    Torch data sets are registered under the name of the run folder. Raises InputError if only
    `test_data` is one.
    """
    fields = {
        f"{section}.{name}" if name in _SHORT_NAMES else name: value
        for name, value in options.items()
    }
    if data is not None and not isinstance(data, str | Path):
        root = register_datasets(str(Path(run).absolute()), data, test_data)
        return absolute_paths(fields) | {"data.root": root}
    if test_data is not None:
        raise InputError(
            "test_data needs a data set as data; a folder has its test images in a folder named"
            " test"
        )
    return absolute_paths(fields | ({} if data is None else {"data.root": data}))


def choose_run_folder(preset: str, out: str | Path | None) -> RunFolder:
    """Return the folder to train into: `out`; else `preset`, if this is a run folder; else
    runs/PRESET.
    """
    is_run = RunFolder(expand_home(preset)).config.is_file()
    return RunFolder(
        expand_home(out or (preset if is_run else f"runs/{preset.lstrip('./').replace('/', '-')}"))
    )


def train_autoencoder(
    preset: str, run: RunFolder, fields: Fields, *, resume: bool = False
) -> Outcome:
    """Train the autoencoder of `preset`, which is a preset, a configuration file or a run folder.

    Raises InputError if a value is bad or there is nothing to resume, and as `Trainer.train`.
    """
    was_locked = (run.path / ".lock").is_file()  # the lock is the first file of a run
    has_config = run.config.is_file()
    is_empty = run.path.is_dir() and not any(run.path.iterdir())  # killed before the first file
    if resume and not (was_locked or has_config or is_empty):
        raise InputError(
            f"{run.path} holds no run to resume: correct the name, or leave out --resume to begin"
            " a run"
        )
    # a config.yaml that was put there by hand: nothing was trained beside it
    if has_config and not was_locked and not run.begun():
        raise InputError(f"{run.config} exists, but there is no run; choose another --out")
    resume = resume or is_restarted(run.belongs_to_this_job)
    is_stored = resume and run.config.is_file()
    config = distributed.on_rank_zero(
        lambda: autoencoder_config(preset, fields, run.read_config() if is_stored else None)
    )
    task = AutoencoderTask(config, run)
    return Trainer(task, resume=resume, callbacks=[draw_training]).train()


def train_missing_priors(
    run: str | Path, fields: Fields, *, level: int | None = None, resume: bool = False
) -> dict[Levels, Outcome]:
    """Train the priors of a run, or only the prior that covers a level (counted from 1). Raises as
    `train_priors`.
    """
    run = expand_home(run)
    resolve = partial(resolve_priors, run, level, fields)

    def belongs_to_this_job() -> bool:
        folders = (prior_folder(run, *levels) for levels in resolve(resume=False))
        return any(folder.belongs_to_this_job() for folder in folders)

    resume = resume or is_restarted(belongs_to_this_job)
    configs = distributed.on_rank_zero(partial(resolve, resume=resume))
    return train_priors(run, configs, resume=resume, callbacks=[draw_training])


def train_decoder(run: str | Path, kind: str, fields: Fields, *, resume: bool = False) -> Outcome:
    """Train a decoder of a run, PROGRESSIVE or GENERATION.

    Raises as `Trainer.train`, `stage_config` and `resolve_generation`.
    """
    run = expand_home(run)
    folder = decoder_folder(run, kind)
    resume = resume or is_restarted(folder.belongs_to_this_job)

    def resolve() -> Config:
        stored = Run(run).folder_config
        require_trainable(run)
        begun_config = folder.read_config() if resume and folder.config.is_file() else None
        config = stage_config(_SECTIONS[kind], stored, fields, begun_config)
        is_resolved = begun_config is not None or kind == PROGRESSIVE
        return config if is_resolved else resolve_generation(Run(run), config)

    config = distributed.on_rank_zero(resolve)
    task = _DECODER_TASKS[kind](run, config)
    return Trainer(task, resume=resume, callbacks=[draw_training]).train()


def refresh(
    name: str,
    root: str | None = None,
    *,
    device: str | None = None,
    fields: Fields = MappingProxyType({}),
    say: Say = progress.say,
) -> int | None:
    """Retrain the stale networks of a run with their own configurations, and refit the entropy
    model if stale.

    Args:
        root: the folder of the data, if it has moved.
        device: another device for the training of the networks and for the codes.
        fields: fields of reading the data, such as "data.on_error".

    Returns:
        The signal that stopped a training, or None if all is done; another call resumes.

    Raises:
        InputError: as `Trainer.train`, `stage_config` and `EntropyModelArtifact.fit`.
    """
    run = Run(name)
    stale = distributed.on_rank_zero(lambda: {artifact.path for artifact in run.stale_artifacts()})
    for network in run.networks:
        mark = network.path / _REFRESH_MARK
        if not (network.path in stale or mark.is_file()):
            continue
        section = _SECTIONS[network.kind]
        changes = dict(fields)
        if root is not None:
            changes["data.root"] = root
        if device is not None:
            changes[f"{section}.training.device"] = device
        config = stage_config(section, run.folder_config, changes, network.config)
        distributed.on_rank_zero(mark.touch)
        task: Task
        if network.levels is None:
            task = _DECODER_TASKS[network.kind](run.name, config)
        else:
            autoencoder = (*run.load(decoder=None), run.digest)
            task = PriorTask(run.name, network.levels, config, autoencoder)
        outcome = Trainer(task, resume=True, renew=True, callbacks=[draw_training], say=say).train()
        if outcome.signal is not None:
            return outcome.signal
        distributed.on_rank_zero(mark.unlink)
    if run.entropy_model.path in stale and distributed.is_rank_zero():
        with distributed.working_alone():  # the other processes are done
            run.entropy_model.fit(
                root,
                device=resolve_device(device or "auto"),
                say=say,
                small=run.entropy_model.is_small(),
                fields=fields,
            )
    return None


def raise_signal(*outcomes: Outcome) -> None:
    """Raise the signal that stopped a training, if any; Ctrl-C becomes a KeyboardInterrupt."""
    for outcome in outcomes:
        if outcome.signal == signal.SIGINT:
            raise KeyboardInterrupt(f"stopped at step {outcome.step}, saved: resume=True continues")
        if outcome.signal is not None:
            signal.raise_signal(outcome.signal)
