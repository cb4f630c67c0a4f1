"""Write the records of a training to metrics.jsonl and to TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from hrvqvae import distributed
from hrvqvae.utils.outputs import write_atomic

Record = Mapping[str, Any]
_COUNTS = ("restarted", "broken_images")


class MetricsLog:
    """metrics.jsonl: one JSON object per line, with kind ("train" or "evaluation") and step.

    Rank 0 writes the file; every process has the records. `first_step` is the step of the
    checkpoint (0: a new training). Later records were written by a killed run: the file is written
    anew without them. With `tensorboard`, rank 0 also writes TensorBoard's files.
    """

    def __init__(self, path: Path, first_step: int, *, tensorboard: bool = False) -> None:
        self.path = path
        records = distributed.on_rank_zero(lambda: read_records(path)) if first_step else []
        self.records = [record for record in records if record["step"] <= first_step]
        self._writer: Any = None
        if distributed.rank() != 0:
            return
        write_atomic(path, "".join(json.dumps(record) + "\n" for record in self.records).encode())
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(path.with_name("tensorboard"))
            self._writer = SummaryWriter(folder, purge_step=first_step + 1)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()

    def has(self, kind: str, step: int) -> bool:
        """Return whether a step has a record of this kind."""
        return any((record["kind"], record["step"]) == (kind, step) for record in self.records)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a record. Raises OSError if the disk is full."""
        record = {"kind": kind, "step": step, **values}
        self.records.append(record)
        if distributed.rank() != 0:
            return
        with self.path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        if self._writer is None:
            return
        for name, value in values.items():
            entries = {name: value}
            if isinstance(value, list):
                entries = {f"{name}/level-{level}": entry for level, entry in enumerate(value, 1)}
            for title, entry in entries.items():
                if entry is not None:  # None: not measured
                    self._writer.add_scalar(f"{kind}/{title}", entry, step)

    def write_means(
        self, step: int, window: Sequence[Mapping[str, float]], batch_size: int
    ) -> Mapping[str, float]:
        """Append a record of the metrics of some steps, and return its values.

        The values are means, but sums of `restarted` and `broken_images`, and images per second in
        place of the `step_seconds` of each step.
        """
        mean = dict[str, float]()
        for name in dict.fromkeys(chain.from_iterable(window)):
            values = [metrics[name] for metrics in window if name in metrics]
            mean[name] = sum(values) if name in _COUNTS else fmean(values)
        mean["images_per_second"] = batch_size / max(mean.pop("step_seconds"), 1e-6)
        self.write("train", step, mean)
        return mean


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of a metrics file; a line that a kill cut short is left out."""
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(ValueError):
            records.append(json.loads(line))
    return records
