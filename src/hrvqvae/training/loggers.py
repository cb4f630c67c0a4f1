"""The records of a training: metrics.jsonl, and the sinks of further loggers."""

from __future__ import annotations

import importlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from hrvqvae import distributed
from hrvqvae.checkpoints.export import without_paths
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import to_dict
from hrvqvae.config.registry import LOGGERS, Logger, imported
from hrvqvae.models.objective import Metrics
from hrvqvae.utils.outputs import write_atomic

Record = Mapping[str, Any]


class Sink(Protocol):
    """Receives the records of a training."""

    def write(self, record: Record) -> None:
        """Take a record, with `kind` and `step`. Called between two steps, so it must be fast."""

    def close(self) -> None:
        """Finish; nothing comes afterwards."""


class MetricsLog:
    """metrics.jsonl: one JSON object per line, with kind ("train" or "evaluation") and step."""

    def __init__(
        self, path: Path, first_step: int, sinks: Sequence[Sink] = (), window: list[Metrics] | None = None
    ) -> None:
        """Keep the records up to `first_step`, and drop what a killed run wrote after its checkpoint.

        Rank 0 writes the file; every process has the records.

        Args:
            path: the file.
            first_step: steps of the checkpoint; 0 for a new run.
            sinks: receive every record.
            window: metrics of the steps since the last log, to which steps are appended.
        """
        self.path, self.sinks, self._window = path, sinks, [] if window is None else window
        records = distributed.on_rank_zero(lambda: read_records(path)) if first_step else []
        self.records = [record for record in records if record["step"] <= first_step]
        if distributed.is_rank_zero():
            write_atomic(path, "".join(json.dumps(record) + "\n" for record in self.records).encode())

    def has_evaluation(self, step: int) -> bool:
        """Return whether that step has an evaluation."""
        return any(record["kind"] == "evaluation" and record["step"] == step for record in self.records)

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

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of a step; values on a GPU stay there."""
        self._window.append(metrics)

    def pending(self) -> list[dict[str, float]]:
        """Read and return the metrics of the steps since the last means."""
        return [{name: float(value) for name, value in metrics.items()} for metrics in self._window]

    def write_means(self, step: int, batch_size: int, broken_images: int = 0) -> Record:
        """Append and return the means of the steps since the last means; {} if there was no step."""
        columns: dict[str, list[float]] = {}
        for metrics in self.pending():
            for name, value in metrics.items():
                columns.setdefault(name, []).append(value)
        if not columns:
            return {}
        mean = {name: sum(values) if name == "restarted" else fmean(values) for name, values in columns.items()}
        mean |= {"broken_images": float(broken_images)} if broken_images else {}
        mean["images_per_second"] = batch_size / mean.pop("step_seconds")
        self.write("train", step, mean)
        self._window.clear()
        return mean


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of a metrics file, without damaged lines, such as one cut short by a kill."""
    records = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and type(record.get("step")) is int and "kind" in record:
                    records.append(record)
    return records


def flatten_record(record: Record) -> dict[str, float]:
    """Return the numbers of a record by chart names such as "train/loss" and "evaluation/usage/level-1"."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        full_name = f"{record['kind']}/{name}"
        if isinstance(value, Sequence) and not isinstance(value, str):
            flat |= {f"{full_name}/level-{level}": number for level, number in enumerate(value, start=1)}
        elif name not in ("kind", "step"):
            flat[full_name] = value
    return {name: float(value) for name, value in flat.items() if value is not None}  # None: not measurable


def _find_loggers(names: str) -> list[Logger]:
    return [LOGGERS.get(name.strip()) for name in names.split(",") if name.strip()]


def require_packages(names: str) -> None:
    """Raise InputError for an unknown logger, ModuleNotFoundError if its package is missing."""
    for logger in _find_loggers(names):
        importlib.import_module(logger.needs)


@contextmanager
def open_sinks(names: str, run: Path, first_step: int) -> Iterator[list[Sink]]:
    """Open the sinks of these loggers in rank 0, and close them at the end.

    Records after `first_step` that an earlier process wrote are sent again.
    """
    with ExitStack() as stack:
        sinks: list[Sink] = []
        for logger in _find_loggers(names) if distributed.is_rank_zero() else ():
            sinks.append(imported(logger.sink)(run, first_step))
            stack.callback(sinks[-1].close)
        yield sinks


class TensorBoardSink:
    """Event files in the folder `tensorboard` of the run, written by a thread of the library."""

    def __init__(self, run: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)

    def write(self, record: Record) -> None:
        for name, value in flatten_record(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A run of Weights & Biases with the configuration, its files in the folder `wandb` of the run.

    The folder keeps the run's id, so that a resumed training goes on in the same run. After a kill some steps are
    logged again; Weights & Biases keeps the first values of a step. Its environment variables set entity, mode and
    project (default: "hrvqvae").
    """

    def __init__(self, run: Path, first_step: int) -> None:
        import wandb

        kept = run / "wandb" / "id"
        if not kept.is_file():
            kept.parent.mkdir(exist_ok=True)
            write_atomic(kept, secrets.token_hex(8).encode())
        about = to_dict(without_paths(RunFolder(run).read_config()))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "hrvqvae"), name=run.resolve().name, id=kept.read_text(),
            resume="allow", dir=str(run), config=about, allow_val_change=True,
            settings=wandb.Settings(quiet=True, console="off", disable_git=True, disable_code=True),
        )  # fmt: skip

    def write(self, record: Record) -> None:
        self._run.log(flatten_record(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


WANDB = Logger(name="wandb", sink="hrvqvae.training.loggers:WandbSink", needs="wandb")
TENSORBOARD = Logger(name="tensorboard", sink="hrvqvae.training.loggers:TensorBoardSink", needs="tensorboard")
