"""A speedrun of a prior: held-out bits and time after equal numbers of images; a row per change of
the recipe.

python -m benchmarks.prior_speedrun RUN --images 18432 --out DIR trains the prior of a run's
coarsest levels, row after row, writes rows.json, and goes on where it stopped; then it times steps
of all rows in turns. The recipe is also trained on half and on twice the images: a line through its
bits over the logarithm of its time says how long the recipe takes to reach the bits of a row.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.common import Row, as_script, options, positive, read_rows, show, side_by_side
from benchmarks.prior import PriorSide
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.run import Run
from hrvqvae.comparison.report import welch
from hrvqvae.config import Config, Levels
from hrvqvae.config.parsing import override
from hrvqvae.priors import gpt
from hrvqvae.priors.causal import self_attention
from hrvqvae.training import optimizers
from hrvqvae.training.prior import PriorTask, resolve_priors
from hrvqvae.training.trainer import Trainer
from hrvqvae.utils.outputs import write_atomic

RECIPE = "the recipe"
HALF = "half the images"
TWICE = "twice the images"
NETWORK = "prior.network."
TRAINING = "prior.training."
FIELDS: dict[str, dict[str, str]] = {
    RECIPE: {},
    HALF: {},
    TWICE: {},
    "Adam, rate 0.001": {TRAINING + "optimizer": "adam", TRAINING + "learning_rate": "0.001"},
    "Adam, rate 0.003": {TRAINING + "optimizer": "adam"},
    "Adam, rate 0.01": {TRAINING + "optimizer": "adam", TRAINING + "learning_rate": "0.01"},
    "rate 0.0015": {TRAINING + "learning_rate": "0.0015"},
    "rate 0.006": {TRAINING + "learning_rate": "0.006"},
    "rate 0.012": {TRAINING + "learning_rate": "0.012"},
    "constant rate": {TRAINING + "schedule": "constant"},
    "batch 32": {TRAINING + "batch_size": "32"},
    "batch 128": {TRAINING + "batch_size": "128"},
    "width 96": {NETWORK + "hidden_units": "96", NETWORK + "heads": "3"},
    "width 224": {NETWORK + "hidden_units": "224", NETWORK + "heads": "7"},
    "4 layers": {NETWORK + "layers": "4"},
    "10 layers": {NETWORK + "layers": "10"},
    "no averaging": {TRAINING + "polyak_decay": "0"},
    "no flips": {"prior.flip": "False"},
    "dropout 0.1": {NETWORK + "dropout": "0.1"},
    "no class dropout": {"prior.class_dropout": "0"},
}


def _fused(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
    return scaled_dot_product_attention(queries, keys, values, is_causal=causal)


def _whole(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(
            torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf")
        )
    attended: Tensor = scores.softmax(-1) @ values
    return attended


def _patched(form: Callable[..., Any]) -> Any:
    return mock.patch.object(gpt, "self_attention", partial(self_attention, form=form))


def _rounded(matrix: Any, exact: Callable[..., Any] = optimizers.orthogonalize) -> Any:
    return exact(matrix.bfloat16()).float()


PATCHES: dict[str, Callable[[], Any]] = {
    "attention with whole matrices": lambda: _patched(_whole),
    "torch's fused attention": lambda: _patched(_fused),
    "Muon's iteration in bf16": lambda: mock.patch.object(optimizers, "orthogonalize", _rounded),
}


def configure(run: Path, change: str, images: int = 0, seed: int = 0) -> tuple[Levels, Config]:
    """Return the coarsest levels of a run, and the configuration that trains their prior."""
    fields = {
        "threads": "1",
        "seed": str(seed),
        "evaluate_every": "1000000",
        "checkpoint_every": "1000000",
        "evaluation_images": "2500",
    }
    fields = {
        **{TRAINING + name: value for name, value in fields.items()},
        **FIELDS.get(change, {}),
    }
    levels, config = next(iter(resolve_priors(run, 1, fields, resume=False).items()))
    steps = max(1, images // config.prior.training_of(levels.start).batch_size)
    return levels, override(config, {TRAINING + "max_steps": str(steps)})


def train(run: Path, change: str, images: int, seed: int) -> Row:
    """Train a row."""
    levels, config = configure(run, change, images, seed)
    autoencoder = Run(run)
    bits = list[float]()
    task = PriorTask(run, levels, config, (*autoencoder.load(decoder=None), autoencoder.digest))
    with TemporaryDirectory() as folder, PATCHES.get(change, nullcontext)():
        task.run = RunFolder(Path(folder))
        keep_bits = lambda _, records, __: bits.append(records[-1]["bits_per_code"])  # noqa: E731
        outcome = Trainer(task, say=lambda _: None, callbacks=[keep_bits]).train()
    if outcome.signal is not None:
        sys.exit(128 + outcome.signal)
    return {"change": change, "seed": seed, "images": images, "bits": bits[-1]}


def time_images(run: Path, changes: Sequence[str]) -> dict[str, float]:
    """Return the seconds of training per image of each change, by steps of all in turns."""

    def step(change: str, side: PriorSide) -> None:
        with PATCHES.get(change, nullcontext)():
            side.train()

    configurations = {change: configure(run, change) for change in changes}
    sides = {
        change: PriorSide(config, levels) for change, (levels, config) in configurations.items()
    }
    spent = side_by_side(
        {change: partial(step, change, side) for change, side in sides.items()}, rounds=4
    )
    return {change: spent[change] / len(side.batch.codes[0]) for change, side in sides.items()}


def summarize(rows: Sequence[Row], seconds: Mapping[str, float]) -> list[Row]:
    """Return a row per change: bits, minutes, the recipe's minutes to the same bits, p (Welch)
    against the recipe.
    """
    bits = {change: [row["bits"] for row in rows if row["change"] == change] for change in seconds}
    images = {
        change: mean(row["images"] for row in rows if row["change"] == change) for change in seconds
    }
    minutes = {change: images[change] * seconds[change] / 60 for change in seconds}
    line = np.array(
        [(math.log(minutes[change]), mean(bits[change])) for change in (HALF, RECIPE, TWICE)]
    )
    slope, start = np.polyfit(line[:, 0], line[:, 1], 1)
    summary = list[Row]()
    for change, values in bits.items():
        equal = math.exp((mean(values) - start) / slope)
        row = {
            "change": change,
            "n": len(values),
            "bits": mean(values),
            "minutes": minutes[change],
            "equal": equal,
        }
        if len(values) > 1:
            row["spread"] = stdev(values)
            row |= (
                {"p": welch(values, bits[RECIPE])}
                if change != RECIPE and len(bits[RECIPE]) > 1
                else {}
            )
        summary.append({**row, "speed": equal / minutes[change]})
    return sorted(summary, key=lambda row: -float(row["speed"]))


COLUMNS = {
    "change": "{change}",
    "n": "{n}",
    "bits per code": "{bits:.4f}",
    "sd": "{spread:.4f}",
    "p": "{p:.2g}",
    "minutes": "{minutes:.2f}",
    "the recipe's": "{equal:.2f}",
    "speed": "{speed:.2f}",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train the rows that are not there yet, and print all."""
    parser = options(__doc__)
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="of a trained autoencoder; its codes are kept there"
    )
    parser.add_argument(
        "--images", type=positive, default=18432, metavar="N", help="of a row (default: 18432)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="K")
    parser.add_argument(
        "--changes",
        nargs="+",
        choices=[*FIELDS, *PATCHES],
        default=[*FIELDS, *PATCHES],
        metavar="ROW",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args(argv)
    rows = read_rows(
        arguments.out, {"images": arguments.images, "autoencoder": Run(arguments.run).digest}
    )
    for seed in arguments.seeds:
        for change in arguments.changes:
            if not any((row["change"], row["seed"]) == (change, seed) for row in rows):
                images = round(arguments.images * {HALF: 0.5, TWICE: 2.0}.get(change, 1.0))
                rows.append(train(arguments.run, change, images, seed))
                write_atomic(arguments.out / "rows.json", json.dumps(rows, indent=1).encode())
                print(rows[-1], flush=True)
    if {RECIPE, HALF, TWICE} <= (there := {row["change"] for row in rows}):
        show(summarize(rows, time_images(arguments.run, sorted(there))), COLUMNS)


if __name__ == "__main__":
    as_script(main)
