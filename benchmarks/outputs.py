"""Compare the outputs of a transformer prior at equal processor time.

python -m benchmarks.outputs search CODES OUT: each output with each learning rate, seed 0
python -m benchmarks.outputs seeds CODES OUT: each output at its best rate, seeds 0 to 2
python -m benchmarks.outputs report CODES OUT: means, differences and p

CODES keeps the codes of CIFAR10's training images, made by treevq-cifar10 if it is missing. Rows go
to OUT/trainings.jsonl. docs/data/prior-outputs/protocol.md was written before the rows.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

import hrvqvae
from benchmarks.common import Row, as_script
from benchmarks.laboratory.report import welch
from benchmarks.plant import pair_order
from hrvqvae import TreeVQ
from hrvqvae.config import StageConfig
from hrvqvae.data.loading import load_images
from hrvqvae.priors.base import Level
from hrvqvae.priors.configs import GPTConfig
from hrvqvae.priors.gpt import GPT
from hrvqvae.quantize import planting
from hrvqvae.training.optimizers import make_optimizer

LEAVES = 4_096
TREE = (8, 8, 8, 8)
BATCH = 32
RATES = (0.00125, 0.0025, 0.005, 0.01, 0.02)
TRAINING_IMAGES = 47_500
CHOSEN_BY = 1_000  # held-out images that choose the rate; the other 1,500 are measured
WARMUP_STEPS = 20

# the tree of each output: sizes of its levels, order of its leaves, kind of output
OUTPUTS: dict[str, tuple[tuple[int, ...], str, Literal["choices", "sums"]]] = {
    "choices": (TREE, "trained", "choices"),
    "flat": ((LEAVES,), "trained", "sums"),
    "sums": (TREE, "trained", "sums"),
    "shuffled": (TREE, "shuffled", "sums"),
    "planted": (TREE, "k-means", "sums"),
    "pairs": (TREE, "pairs", "sums"),
}
# outputs whose learning rates are searched, and whose rate the others take
SEARCHED = {
    "choices": "choices",
    "flat": "flat",
    "sums": "sums",
    "shuffled": "sums",
    "planted": "sums",
    "pairs": "sums",
}


def encode_images(path: Path) -> dict[str, Tensor]:
    """Return the leaves (N, H, W) and classes (N,) of CIFAR10's training images, and the leaves'
    codewords (n, D); keep them in a file.
    """
    if path.exists():
        kept: dict[str, Tensor] = torch.load(path)
        return kept
    model: Any = hrvqvae.load("treevq-cifar10")
    images = load_images(model.config.data, "train")
    pixels = torch.from_numpy(images.pixels)
    leaves = []
    for batch in torch.split(pixels, 500):
        codes = model.encode(batch)[:4]
        leaves.append(join_codes(codes))
    paths = split_leaves(torch.arange(LEAVES), TREE)
    words = model.autoencoder.quantizer.lookup(paths)
    classes = torch.from_numpy(images.labels)
    kept = {"leaves": torch.cat(leaves), "classes": classes, "words": words}
    torch.save(kept, path)
    return kept


def order_leaves(order: str, codes: dict[str, Tensor]) -> Tensor:
    """Return the number (n,) of each leaf in a tree."""
    if order == "trained":
        return torch.arange(LEAVES)
    if order == "shuffled":
        return torch.randperm(LEAVES, generator=torch.Generator().manual_seed(0))
    counts = codes["leaves"].flatten().bincount(minlength=LEAVES)
    chosen = pair_order if order == "pairs" else planting._order
    with patch.object(planting, "_order", chosen):
        tree = TreeVQ.from_codebook(codes["words"], 8, counts)
    paths = tree.indices_of(torch.arange(LEAVES))
    return join_codes(paths.unbind(-1))


def join_codes(codes: Sequence[Tensor]) -> Tensor:
    """Return the leaves of the codes of four levels, coarse first."""
    leaves = torch.zeros_like(codes[0])
    for level in codes:
        leaves = leaves * 8 + level
    return leaves


def split_leaves(leaves: Tensor, tree: Sequence[int]) -> list[Tensor]:
    """Return the code of each level of a tree, coarse first."""
    codes = []
    below = math.prod(tree)
    for symbols in tree:
        below //= symbols
        codes.append(leaves // below % symbols)
    return codes


def measure_nats(prior: GPT, leaves: Tensor, classes: Tensor, tree: Sequence[int]) -> Tensor:
    """Return the mean nats per image of leaves (B, H, W)."""
    return prior.image_nats(split_leaves(leaves, tree), (), classes).mean()


@torch.inference_mode()
def measure_bits(prior: GPT, tree: Sequence[int], codes: dict[str, Tensor], rows: slice) -> float:
    """Return the mean bits per image of some images, as many as a multiple of 100."""
    prior.eval()
    leaves = torch.split(codes["leaves"][rows], 100)
    classes = torch.split(codes["classes"][rows], 100)
    batches = zip(leaves, classes, strict=True)
    nats = [float(measure_nats(prior, *batch, tree)) for batch in batches]
    return mean(nats) / math.log(2)


def train(output: str, rate: float, seed: int, seconds: float, codes: dict[str, Tensor]) -> Row:
    """Train a prior for an amount of processor time; return a row."""
    tree, order, kind = OUTPUTS[output]
    leaves = order_leaves(order, codes)[codes["leaves"]]
    classes = codes["classes"]
    ordered = {"leaves": leaves, "classes": classes}
    torch.manual_seed(seed)
    config = GPTConfig(hidden_units=160, layers=8, heads=5, output=kind)
    sizes = [math.prod(tree[: level + 1]) for level in range(len(tree))]
    levels = [
        Level(grid=(8, 8), symbols=symbols, codewords=size, classes=10)
        for symbols, size in zip(tree, sizes, strict=True)
    ]
    prior = GPT(config, *levels)
    settings = StageConfig(optimizer="muon", learning_rate=rate, adam_beta2=0.99, max_steps=1)
    optimizer = make_optimizer(prior, settings)

    start = time.process_time()
    spent = 0.0
    steps = 0
    recent: list[float] = []
    while spent < seconds:
        # the rate falls to 0 along a cosine of the time spent
        share = min(1, (steps + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * spent / seconds)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        batch = torch.randint(TRAINING_IMAGES, (BATCH,))
        with torch.autocast("cpu", torch.bfloat16):
            loss = measure_nats(prior, leaves[batch], classes[batch], tree)
        optimizer.zero_grad()
        (loss / 64).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        recent = [*recent[-49:], loss.item() / math.log(2)]
        steps += 1
        spent = time.process_time() - start

    chosen_by = slice(TRAINING_IMAGES, TRAINING_IMAGES + CHOSEN_BY)
    measured = slice(TRAINING_IMAGES + CHOSEN_BY, None)
    return {
        "output": output,
        "rate": rate,
        "seed": seed,
        "cpu_seconds": round(spent, 1),
        "steps": steps,
        "training_bits": round(mean(recent), 2),
        "validation_bits": round(measure_bits(prior, tree, ordered, chosen_by), 2),
        "bits": round(measure_bits(prior, tree, ordered, measured), 2),
    }


def choose_rates(rows: Sequence[Row]) -> dict[str, float]:
    """Return the learning rate of each output: the one with the least validation bits."""
    rates = {}
    for output, searched in SEARCHED.items():
        tried = [row for row in rows if row["output"] == searched and row["seed"] == 0]
        rates[output] = min(tried, key=lambda row: float(row["validation_bits"]))["rate"]
    return rates


def report(rows: Sequence[Row], seconds: float) -> None:
    """Print the mean bits of each output at its rate, and its difference from choices."""
    rates = choose_rates(rows)
    bits: dict[str, list[float]] = {}
    for output, rate in rates.items():
        chosen = [row for row in rows if (row["output"], row["rate"]) == (output, rate)]
        bits[output] = [row["bits"] for row in chosen]
        steps = round(mean(row["steps"] for row in chosen))
        line = f"{output}: rate {rate}, n = {len(chosen)}, {steps} steps, {mean(bits[output]):.1f}"
        print(f"{line} ± {stdev(bits[output]):.1f}" if len(chosen) > 1 else line)
    pairs = [("sums", rival) for rival in ("choices", "flat", "shuffled", "planted")]
    for first, second in [*pairs, ("planted", "pairs")]:
        change = 100 * (mean(bits[first]) / mean(bits[second]) - 1)
        print(f"{first} against {second}: {change:+.2f}%, p {welch(bits[first], bits[second]):.4f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run an action of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("search", "seeds", "report"))
    parser.add_argument("codes", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=180, help="processor time of a training")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = arguments.out / "trainings.jsonl"
    rows: list[Any] = []
    if path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    if arguments.action == "report":
        report(rows, arguments.seconds)
        return
    if arguments.action == "search":
        searched = sorted(set(SEARCHED.values()))
        plan = [(output, rate, 0) for rate in RATES for output in searched]
    else:
        rates = choose_rates(rows)
        plan = [(output, rates[output], seed) for seed in range(3) for output in OUTPUTS]

    # rows that exist are not made again
    done = {(row["output"], row["rate"], row["seed"]) for row in rows}
    codes = encode_images(arguments.codes)
    for output, rate, seed in plan:
        if (output, rate, seed) in done:
            continue
        row = train(output, rate, seed, arguments.seconds, codes)
        with path.open("a") as stream:
            print(json.dumps(row), file=stream)
        print(row, flush=True)


if __name__ == "__main__":
    as_script(main)
