"""Loggers: other places for the records of a training, beside metrics.jsonl, each a sink that gets every record."""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from hrvqvae.checkpoints.export import without_paths
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import to_dict
from hrvqvae.config.registry import LOGGERS, Logger, imported
from hrvqvae.utils.files import write_atomic


class Sink(Protocol):
    """What gets the records of a training."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take a record, with `kind` and `step`. It is called between two steps, so whatever is slow is put off."""
        ...

    def close(self) -> None:
        """Finish; nothing comes afterwards."""
        ...


def values(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by the names that charts are grouped by: "train/loss", "evaluation/usage/level-1"."""
    found: dict[str, float] = {}
    for name, value in record.items():
        whole = f"{record['kind']}/{name}"
        if isinstance(value, Sequence) and not isinstance(value, str):
            found |= {f"{whole}/level-{level}": float(one) for level, one in enumerate(value, start=1)}
        elif name not in ("kind", "step"):
            found[whole] = float(value)
    return found


def _entries(names: str) -> list[Logger]:
    return [LOGGERS.get(name.strip()) for name in names.split(",") if name.strip()]


def require(names: str) -> None:
    """Make sure that these loggers, separated by commas, can be used.

    Raises:
        InputError: there is none of that name.
        ModuleNotFoundError: the package that it needs is missing.
    """
    for logger in _entries(names):
        importlib.import_module(logger.needs)


@contextmanager
def opened(names: str, run: Path, first_step: int) -> Iterator[list[Sink]]:
    """The sinks of these loggers, closed at the end however it comes.

    Args:
        run: the folder of the run.
        first_step: records after that step are dropped, where an earlier process wrote them: they come again.
    """
    with ExitStack() as stack:
        sinks: list[Sink] = []
        for logger in _entries(names):
            sinks.append(imported(logger.sink)(run, first_step))
            stack.callback(sinks[-1].close)
        yield sinks


class TensorBoardSink:
    """Event files in the folder `tensorboard` of the run, written by a thread of the library."""

    def __init__(self, run: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(run / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=first_step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in values(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A run of Weights & Biases with the configuration, its files in the folder `wandb` of the run.

    Its id is kept there, so that a training that is resumed goes on in the same run. After a kill some steps are logged
    again; Weights & Biases keeps the first values of a step. Entity and mode are as its own environment variables say,
    the project too, which is else "hrvqvae".
    """

    def __init__(self, run: Path, first_step: int) -> None:
        import wandb

        folder = RunFolder(run)
        kept = run / "wandb" / "id"
        if not kept.is_file():
            kept.parent.mkdir(exist_ok=True)
            write_atomic(kept, secrets.token_hex(8).encode())
        about = to_dict(without_paths(folder.read_config()))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "hrvqvae"), name=run.resolve().name, id=kept.read_text(),
            resume="allow", dir=str(run), config=about, allow_val_change=True,
            settings=wandb.Settings(quiet=True, console="off", disable_git=True, disable_code=True),
        )  # fmt: skip

    def write(self, record: Mapping[str, Any]) -> None:
        self._run.log(values(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


WANDB = Logger(name="wandb", title="Weights & Biases", sink="hrvqvae.training.loggers:WandbSink", needs="wandb")
TENSORBOARD = Logger(
    name="tensorboard", title="TensorBoard", sink="hrvqvae.training.loggers:TensorBoardSink", needs="tensorboard"
)
