"""Training under torchrun against training alone, by command, on random images: losses, and bytes
exchanged.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import yaml

from benchmarks.common import Row, as_script, finish, options, positive
from hrvqvae.config import Config, presets, to_dict
from hrvqvae.config.parsing import override
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.data.sets.mnist import write_idx
from hrvqvae.models.build import build, build_objective
from hrvqvae.quantize.codebook import LevelCodebooks
from hrvqvae.training.loggers import read_records
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import note

FIRST_STEPS = 10
_BYTES = 4  # of a float32
_SMALL = {
    "training.precision": "fp32",
    "training.device": "cpu",
    "training.log_every": "1",
    "training.evaluate_every": "1000000",
    "training.checkpoint_every": "1000000",
    "training.evaluation_images": "1",
    "model.hidden_units": "16",
    "model.residual_units": "8",
}
_ADVERSARIAL = {
    "model.perceptual": "none",
    "model.adversarial_start": "5",
    "model.discriminator_units": "8",
}


def count_exchanged(config: Config) -> tuple[int, int]:
    """Return the bytes that processes add up in a step: gradients, and codebooks that follow moving
    averages.
    """
    torch.manual_seed(0)
    model = build(config)
    networks = [model, *build_objective(model, config, lambda network: network).auxiliary.values()]
    weights = [
        weight for network in networks for weight in network.parameters() if weight.requires_grad
    ]
    books = [book for book in model.modules() if isinstance(book, LevelCodebooks)]
    averages = [
        values for book in books for values in (book.count, book.total) if values is not None
    ]
    return _BYTES * sum(weight.numel() for weight in weights), _BYTES * sum(
        values.numel() for values in averages
    )


def bench_processes(count: int = 2, steps: int = 60, systems: Sequence[str] = ()) -> list[Row]:
    """Compare trainings of `count` processes on this machine with one process, on the CPU, a thread
    per process.

    Args:
        steps: of each training.
        systems: names (empty: every system of this package).

    Returns:
        Rows with system, first (largest relative difference of the loss in the first ten steps),
        all, restarted (in one process, in several), gradients and codebooks (bytes per step).

    Raises:
        InputError: a training failed; its last line is in the message.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        _draw_images(folder / "mnist")
        rows = []
        for system in systems or tuple(SYSTEMS):
            note(f"{system}: one process, then {count}")
            rows.append(_compare(_shrink(system, folder, 12 * count, steps), folder, count))
    return rows


def _draw_images(folder: Path) -> None:
    """Write smooth random images, in the files of MNIST."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 2_000), ("t10k", 100)):
        images = rng.integers(0, 256, (count, 7, 7), np.uint8).repeat(4, axis=1).repeat(4, axis=2)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(
            folder / f"{prefix}-labels-idx1-ubyte.gz", rng.integers(0, 10, count).astype(np.uint8)
        )


def _shrink(system: str, folder: Path, batch_size: int, steps: int) -> Config:
    """Return the system's preset for MNIST with narrow networks, and dead codewords restarted
    often.
    """
    config = presets.get(f"{system}/mnist").config
    fields = {**_SMALL, "data.root": str(folder), "training.batch_size": str(batch_size)}
    fields |= {
        name: value
        for name, value in _ADVERSARIAL.items()
        if hasattr(config.model, name.split(".")[-1])
    }
    if config.model.restart_every:
        fields |= {"model.quantizer.restart_every": "15", "model.quantizer.restart_below": "0.3"}
    return override(config, {**fields, "training.max_steps": str(steps)})


def _train(config: Config, folder: Path, count: int) -> list[Row]:
    """Train by command in so many processes; return the records of the steps."""
    run = folder / f"{config.name.replace('/', '-')}-{config.training.batch_size}-{count}"
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(to_dict(config)))
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        if count > 1
        else []
    )
    command = [sys.executable, *launcher, "-m", "hrvqvae", "train", str(file), "--out", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = finished.stderr.splitlines()
        reason = next((line for line in reversed(lines) if line.startswith("hrvqvae: ")), lines[-1])
        raise InputError(f"{' '.join(command)} failed: {reason}")
    return [record for record in read_records(run / "metrics.jsonl") if record["kind"] == "train"]


def _compare(config: Config, folder: Path, count: int) -> Row:
    trainings = [_train(config, folder, processes) for processes in (1, count)]
    losses = np.array([[record["loss"] for record in records] for records in trainings])
    difference = np.abs(losses[1] / losses[0] - 1)
    gradients, codebooks = count_exchanged(config)
    restarted = [
        int(sum(record.get("restarted", 0) for record in records)) for records in trainings
    ]
    return {
        "system": config.model.system,
        "first": float(difference[:FIRST_STEPS].max()),
        "all": float(difference.max()),
        "restarted": restarted,
        "gradients": gradients,
        "codebooks": codebooks,
    }


COLUMNS = {
    "system": "{system}",
    "first 10 losses": "{first:.1e}",
    "all losses": "{all:.1e}",
    "restarted": "{restarted[0]}, {restarted[1]}",
    "gradients, bytes": "{gradients:,}",
    "codebooks, bytes": "{codebooks:,}",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train by command, in one process and in several."""
    parser = options(__doc__)
    parser.add_argument(
        "--processes", type=positive, default=2, metavar="N", help="on this machine (default: 2)"
    )
    parser.add_argument(
        "--steps", type=positive, default=60, metavar="N", help="of each training (default: 60)"
    )
    parser.add_argument("--systems", nargs="+", default=(), metavar="NAME", help="default: all")
    arguments = parser.parse_args(argv)
    rows = bench_processes(arguments.processes, arguments.steps, arguments.systems)
    finish(rows, COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
