"""Write the records of a training to metrics.jsonl and to TensorBoard."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from hrvqvae import distributed
from hrvqvae.models.objective import Metrics
from hrvqvae.utils.outputs import write_atomic

Record = Mapping[str, Any]


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
        sinks: Sequence["TensorBoardSink"] = (),
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


@contextmanager
def open_sinks(names: str, run: Path, first_step: int) -> Iterator[list["TensorBoardSink"]]:
    """Open TensorBoard in rank 0 if it is named, and close it at the end. It receives records after
    `first_step`.
    """
    if not names or not distributed.is_rank_zero():
        yield []
        return
    sink = TensorBoardSink(run, first_step)
    try:
        yield [sink]
    finally:
        sink.close()


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
