"""Write the records of a training to metrics.jsonl and to the sinks of further loggers.

A `Logger` is an entry of a registry that names the class of a sink; the sink receives the records.
The entries of this module are at its end, where `config.registry.LOGGERS` finds them.
"""

import importlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from pkgutil import resolve_name
from statistics import fmean
from typing import Any, Protocol

from hrvqvae import distributed
from hrvqvae.checkpoints.export import without_paths
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import to_dict
from hrvqvae.config.entries import Logger
from hrvqvae.config.registry import LOGGERS
from hrvqvae.models.objective import Metrics
from hrvqvae.utils.errors import InputError, one_line
from hrvqvae.utils.outputs import write_atomic

Record = Mapping[str, Any]


class Sink(Protocol):
    """Receives the records of a training."""

    def write(self, record: Record) -> None:
        """Write a record, which has `kind` and `step`. Called between two steps, so it must be
        fast.
        """

    def close(self) -> None:
        """Finish writing."""


class MetricsLog:
    """metrics.jsonl: one JSON object per line, with kind ("train" or "evaluation") and step.

    Rank 0 writes the file; every process has the records. `first_step` is the step of the
    checkpoint (0: a new training). Later records were written by a killed run: the file is written
    anew without them. `window`, which the training state shares, holds the metrics of the steps
    since the last means.
    """

    def __init__(
        self,
        path: Path,
        first_step: int,
        sinks: Sequence[Sink] = (),
        window: list[Metrics] | None = None,
    ) -> None:
        self.path = path
        self.sinks = sinks
        self.window = [] if window is None else window
        records = distributed.on_rank_zero(lambda: read_records(path)) if first_step else []
        self.records = [record for record in records if record["step"] <= first_step]
        # A training that ends at a checkpoint logs after it. The checkpoint still has the window
        # with these steps: do not log them twice.
        if self.has("train", first_step):
            self.window.clear()
        if distributed.is_rank_zero():
            write_atomic(
                path, "".join(json.dumps(record) + "\n" for record in self.records).encode()
            )

    def has(self, kind: str, step: int) -> bool:
        """Return whether a step has a record of this kind."""
        return any((record["kind"], record["step"]) == (kind, step) for record in self.records)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a record. Raises OSError if the disk is full."""
        record = {"kind": kind, "step": step, **values}
        self.records.append(record)
        if not distributed.is_rank_zero():
            return
        with self.path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        for sink in self.sinks:
            sink.write(record)

    def write_means(self, step: int, batch_size: int, broken_images: int = 0) -> Record:
        """Append a record of the steps since the last one, and return its values; {} without steps.

        The values are means, but sums of `restarted`, and images per second in place of the
        `step_seconds` of each step.
        """
        window = read_metrics(self.window)
        if not window:
            return {}
        mean = dict[str, float]()
        for name in dict.fromkeys(chain.from_iterable(window)):
            values = [metrics[name] for metrics in window if name in metrics]
            mean[name] = sum(values) if name == "restarted" else fmean(values)
        if broken_images:
            mean["broken_images"] = float(broken_images)
        mean["images_per_second"] = batch_size / max(mean.pop("step_seconds"), 1e-6)
        self.write("train", step, mean)
        self.window.clear()
        return mean


def read_metrics(window: Sequence[Metrics]) -> list[dict[str, float]]:
    """Return metrics as floats; a GPU is waited for."""
    return [{name: float(value) for name, value in metrics.items()} for metrics in window]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of a metrics file; damaged lines, such as a line cut short by a kill, are
    left out.
    """
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(ValueError, RecursionError, TypeError, KeyError):
            record = json.loads(line)
            if type(record["step"]) is int and "kind" in record:
                records.append(record)
    return records


def flatten_record(record: Record) -> dict[str, float]:
    """Return the values of a record by chart names such as "train/loss" and
    "evaluation/usage/level-1".
    """
    flat: dict[str, Any] = {}
    for name, value in record.items():
        title = f"{record['kind']}/{name}"
        if isinstance(value, list):
            flat |= {f"{title}/level-{level}": entry for level, entry in enumerate(value, 1)}
        elif name not in ("kind", "step"):
            flat[title] = value
    # None: not measurable
    return {title: float(value) for title, value in flat.items() if value is not None}


def find_loggers(names: str) -> list[Logger]:
    """Return loggers. Raises InputError if a logger is unknown, ModuleNotFoundError if its package
    is missing.
    """
    entries = [LOGGERS.get(name.strip()) for name in names.split(",") if name.strip()]
    for logger in entries:
        importlib.import_module(logger.needs)
    return entries


@contextmanager
def open_sinks(names: str, run: Path, first_step: int) -> Iterator[list[Sink]]:
    """Open the sinks of loggers in rank 0, and close them at the end. They receive records after
    `first_step`.
    """
    with ExitStack() as stack:
        sinks: list[Sink] = []
        for logger in find_loggers(names) if distributed.is_rank_zero() else ():
            try:
                sinks.append(resolve_name(logger.sink)(run, first_step))
            except Exception as error:  # the logger's library may raise any error
                raise InputError(
                    f"the logger {logger.name} can't begin: {one_line(error)}"
                ) from error
            stack.callback(sinks[-1].close)
        yield sinks


class TensorBoardSink:
    """Write event files into the folder `tensorboard` of the run, in a thread of the library."""

    def __init__(self, run: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)

    def write(self, record: Record) -> None:
        for name, value in flatten_record(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Log to a run of Weights & Biases, with the configuration.

    The folder `wandb` of the run keeps the id, so that a resumed training goes on in the same run;
    a training from step 0 begins another.
    Steps between the last checkpoint and a kill are trained and logged again; Weights & Biases
    keeps the first values of a step.
    Environment variables of the library set entity, mode and project (default: "hrvqvae").
    """

    def __init__(self, run: Path, first_step: int) -> None:
        import wandb

        id_file = run / "wandb" / "id"
        if first_step == 0 or not id_file.is_file():
            id_file.parent.mkdir(exist_ok=True)
            write_atomic(id_file, secrets.token_hex(8).encode())
        config = to_dict(without_paths(RunFolder(run).read_config()))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "hrvqvae"),
            name=run.resolve().name,
            id=id_file.read_text(),
            resume="allow",
            dir=str(run),
            config=config,
            allow_val_change=True,
            settings=wandb.Settings(quiet=True, console="off", disable_git=True, disable_code=True),
        )

    def write(self, record: Record) -> None:
        self._run.log(flatten_record(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


WANDB = Logger(name="wandb", sink="hrvqvae.training.loggers:WandbSink", needs="wandb")
TENSORBOARD = Logger(
    name="tensorboard", sink="hrvqvae.training.loggers:TensorBoardSink", needs="tensorboard"
)
