"""The options of trainings in Python (`hrvqvae.train`, `Model.train_prior`), and their end."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config.parsing import absolute_paths
from hrvqvae.data.datasets import register_datasets
from hrvqvae.training.trainer import Outcome
from hrvqvae.utils.errors import InputError, expand_home

# fields named without their section
_SHORT_NAMES = ("max_steps", "max_minutes", "seed", "device", "init_from")


def collect_fields(
    section: str, options: Mapping[str, Any], run: str | Path, data: Any, test_data: Any = None
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


def raise_signal(*outcomes: Outcome) -> None:
    """Raise the signal that stopped a training, if any; Ctrl-C becomes a KeyboardInterrupt."""
    for outcome in outcomes:
        if outcome.signal == signal.SIGINT:
            raise KeyboardInterrupt(f"stopped at step {outcome.step}, saved: resume=True continues")
        if outcome.signal is not None:
            signal.raise_signal(outcome.signal)
