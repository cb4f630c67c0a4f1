"""Held-out bits of a prior after equal processor time, a row for each change to its recipe.

python -m benchmarks.prior_speedrun RUN --minutes 4 --out DIR trains the prior of a run's coarsest levels, a row after
the other, writes rows.json, and goes on where it stopped. The recipe itself is also trained for half and for twice the
time: a line of its bits over the logarithm of the time says how long it takes to the bits of a row.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
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

from benchmarks.common import Row, as_script, options, show
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.loading import load_with_digest
from hrvqvae.comparison.report import welch
from hrvqvae.priors import gpt
from hrvqvae.priors.causal import self_attention
from hrvqvae.training import optimizers
from hrvqvae.training.prior import PriorTask, resolve_priors
from hrvqvae.training.trainer import Trainer
from hrvqvae.utils.files import write_atomic

RECIPE, HALF, TWICE = "the recipe", "half the time", "twice the time"
NETWORK, TRAINING = "prior.network.", "prior.training."
FIELDS: dict[str, dict[str, str]] = {
    RECIPE: {}, HALF: {}, TWICE: {},
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
}  # fmt: skip


def _fused(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
    return scaled_dot_product_attention(queries, keys, values, is_causal=causal)


def _whole(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    attended: Tensor = scores.softmax(-1) @ values
    return attended


def _patched(form: Callable[..., Any]) -> Any:
    return mock.patch.object(gpt, "self_attention", partial(self_attention, form=form))


def _rounded(matrix: Any, exact: Callable[..., Any] = optimizers.orthogonalized) -> Any:
    return exact(matrix.bfloat16()).float()


PATCHES: dict[str, Callable[[], Any]] = {
    "attention with whole matrices": lambda: _patched(_whole),
    "torch's fused attention": lambda: _patched(_fused),
    "Muon's iteration in bf16": lambda: mock.patch.object(optimizers, "orthogonalized", _rounded),
}


def train(run: Path, change: str, minutes: float, seed: int) -> Row:
    """Train one row on one thread; the clock of its budget is the processor's."""
    given = {
        **FIELDS.get(change, {}), TRAINING + "max_minutes": str(minutes), TRAINING + "seed": str(seed),
        TRAINING + "threads": "1", TRAINING + "evaluate_every": "1000000", TRAINING + "checkpoint_every": "1000000",
        TRAINING + "evaluation_images": "2500",
    }  # fmt: skip
    levels, config = next(iter(resolve_priors(run, 1, given, resume=False).items()))
    task, found = PriorTask(run, levels, config, load_with_digest(run, progressive=False)), list[Any]()
    with TemporaryDirectory() as folder, PATCHES.get(change, nullcontext)():
        task.run = RunFolder(Path(folder))
        with mock.patch.object(time, "monotonic", time.process_time):
            keep = lambda _, records, __: found.append(records[-1])  # noqa: E731
            outcome = Trainer(task, say=lambda _: None, callbacks=[keep]).train()
    if outcome.signal is not None:
        sys.exit(128 + outcome.signal)
    images = outcome.step * config.prior.training_of(levels.start).batch_size
    return {"change": change, "minutes": minutes, "seed": seed, "images": images, "bits": found[-1]["bits_per_code"]}


def summary(rows: Sequence[Row], minutes: float) -> list[Row]:
    """A row for each change: mean and spread, the recipe's time to these bits by its own line, p against the recipe."""
    bits = {one: [row["bits"] for row in rows if row["change"] == one] for one in (*FIELDS, *PATCHES)}
    line = np.array([(math.log(row["minutes"]), row["bits"]) for row in rows if row["change"] in (RECIPE, HALF, TWICE)])
    slope, start = np.polyfit(line[:, 0], line[:, 1], 1)
    found = list[Row]()
    for change in filter(bits.get, bits):
        some = bits[change]
        row = {"change": change, "n": len(some), "bits": mean(some), "equal": math.exp((mean(some) - start) / slope)}
        row["images"] = mean(one["images"] for one in rows if one["change"] == change)
        if len(some) > 1:
            row["spread"] = stdev(some)
            row |= {"p": welch(some, bits[RECIPE])} if change != RECIPE else {}
        found.append({**row, "speed": row["equal"] / minutes})
    return sorted(found, key=lambda one: float(one["bits"]))


COLUMNS = {
    "change": "{change}", "n": "{n}", "images": "{images:,.0f}", "bits a code": "{bits:.4f}", "sd": "{spread:.4f}",
    "p": "{p:.2g}", "the recipe's minutes": "{equal:.2f}", "speed": "{speed:.2f}",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Train the rows that are not there yet, and print all."""
    parser = options(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="of a trained autoencoder; its codes are kept there")
    parser.add_argument("--minutes", type=float, default=4.0, metavar="M", help="processor time of a row (default: 4)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="K")
    parser.add_argument("--changes", nargs="+", choices=[*FIELDS, *PATCHES], default=[*FIELDS, *PATCHES], metavar="ROW")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args(argv)
    path = arguments.out / "rows.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = json.loads(path.read_text()) if path.is_file() else []
    for seed in arguments.seeds:
        for change in arguments.changes:
            if not any((row["change"], row["seed"]) == (change, seed) for row in rows):
                spent = arguments.minutes * {HALF: 0.5, TWICE: 2.0}.get(change, 1.0)
                rows.append(train(arguments.run, change, spent, seed))
                write_atomic(path, json.dumps(rows, indent=1).encode())
                print(rows[-1], flush=True)
    show(summary(rows, arguments.minutes), COLUMNS)


if __name__ == "__main__":
    as_script(main)
