"""Compare the outputs of a transformer prior at equal processor time.

python -m benchmarks.outputs search CODES OUT: each output with each learning rate, seed 0, for 180
seconds of processor time; rows go to OUT/search.jsonl
python -m benchmarks.outputs seeds CODES OUT: each output at its best rate, seeds 0 to 2, for 640
steps; rows go to OUT/seeds.jsonl
python -m benchmarks.outputs report CODES OUT: means, differences and p

CODES keeps the codes of CIFAR10's training images, made by treevq-cifar10 if it is missing.
docs/data/prior-outputs/protocol.md was written before the rows.
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
SECONDS = 180  # processor time of a training of the search
STEPS = 640  # of a training of `seeds`: what 180 seconds are worth, the same for each output
RATES = (0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04)
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
    chosen = pair_order if order == "pairs" else planting._order_rows
    with patch.object(planting, "_order_rows", chosen):
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


def train(
    output: str, rate: float, seed: int, codes: dict[str, Tensor], num_steps: int | None
) -> Row:
    """Train a prior for a number of steps, or for SECONDS of processor time; return a row."""
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
    done = 0.0
    while done < 1:
        # the rate falls to 0 along a cosine
        share = min(1, (steps + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * done)) / 2
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
        done = steps / num_steps if num_steps else spent / SECONDS

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
        tried = [row for row in rows if row["output"] == searched]
        rates[output] = min(tried, key=lambda row: float(row["validation_bits"]))["rate"]
    return rates


def report(rates: dict[str, float], rows: Sequence[Row]) -> None:
    """Print the mean bits of each output at its rate, and differences."""
    bits: dict[str, list[float]] = {}
    for output, rate in rates.items():
        bits[output] = [row["bits"] for row in rows if row["output"] == output]
        found = f"{mean(bits[output]):.1f} ± {stdev(bits[output]):.1f}"
        print(f"{output}: rate {rate}, n = {len(bits[output])}, {found}")
    pairs = [("sums", rival) for rival in ("choices", "flat", "shuffled", "planted")]
    for first, second in [*pairs, ("planted", "pairs")]:
        change = 100 * (mean(bits[first]) / mean(bits[second]) - 1)
        print(f"{first} against {second}: {change:+.2f}%, p {welch(bits[first], bits[second]):.4f}")


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file; none if it is missing."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(argv: Sequence[str] | None = None) -> None:
    """Run an action of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("search", "seeds", "report"))
    parser.add_argument("codes", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    searched = read_rows(arguments.out / "search.jsonl")
    if arguments.action == "report":
        report(choose_rates(searched), read_rows(arguments.out / "seeds.jsonl"))
        return

    # rows that exist are not made again
    path = arguments.out / f"{arguments.action}.jsonl"
    done = {(row["output"], row["rate"], row["seed"]) for row in read_rows(path)}
    num_steps = None
    if arguments.action == "search":
        outputs = sorted(set(SEARCHED.values()))
        plan = [(output, rate, 0) for rate in RATES for output in outputs]
    else:
        num_steps = STEPS
        rates = choose_rates(searched)
        plan = [(output, rates[output], seed) for seed in range(3) for output in OUTPUTS]

    codes = encode_images(arguments.codes)
    for output, rate, seed in plan:
        if (output, rate, seed) in done:
            continue
        row = train(output, rate, seed, codes, num_steps)
        with path.open("a") as stream:
            print(json.dumps(row), file=stream)
        print(row, flush=True)


if __name__ == "__main__":
    as_script(main)
