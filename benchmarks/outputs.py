"""Compare the outputs of a transformer prior at equal processor time.

The codes are levels 1 to 4 of the shipped treevq-cifar10 (4,096 leaves, 64 positions). Each row is
a training: output, seed, steps, processor seconds, and bits per image of held-out images.
docs/data/prior-outputs/protocol.md was written before the rows.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import hrvqvae
from benchmarks.common import as_script
from hrvqvae.priors.base import Level
from hrvqvae.priors.configs import GPTConfig
from hrvqvae.priors.gpt import GPT, LeafSums

SYMBOLS = (8, 8, 8, 8)
LEAVES = 4096
GRID = (8, 8)
OUTPUTS = ("choices", "sums", "shuffled")
BATCH = 32
LEARNING_RATE = 0.003


class ShuffledSums(LeafSums):
    """Sums in a tree whose leaves are shuffled; the inputs keep the codewords of the model."""

    def forward(self, features: Tensor, indices: Sequence[Tensor]) -> list[Tensor]:
        return super().forward(features, split_leaves(shuffle(indices[-1])))


def shuffle(leaves: Tensor) -> Tensor:
    """Return the leaves under a fixed permutation."""
    order = torch.randperm(LEAVES, generator=torch.Generator().manual_seed(0))
    return order[leaves]


def split_leaves(leaves: Tensor) -> list[Tensor]:
    """Return the codeword indices of each level, coarse first."""
    return [leaves // 8 ** (len(SYMBOLS) - 1 - level) for level in range(len(SYMBOLS))]


def build_output(output: str) -> GPT:
    """Build a small transformer with an output."""
    kind: Literal["choices", "sums"] = "choices" if output == "choices" else "sums"
    config = GPTConfig(hidden_units=128, layers=2, heads=4, output=kind)
    levels = [
        Level(grid=GRID, symbols=symbols, codewords=8 ** (index + 1))
        for index, symbols in enumerate(SYMBOLS)
    ]
    prior = GPT(config, *levels)
    if output == "shuffled":
        prior.heads = ShuffledSums(config, levels)
    return prior


def measure_nats(prior: GPT, leaves: Tensor) -> Tensor:
    """Return the mean nats per image of leaves (B, H, W)."""
    codes = [indices % 8 for indices in split_leaves(leaves)]
    logits = prior.level_logits(codes, (), None)

    # the shuffled tree has its own codes of the same leaves
    if isinstance(prior.heads, ShuffledSums):
        codes = [indices % 8 for indices in split_leaves(shuffle(leaves))]
    nats = [
        torch.nn.functional.cross_entropy(values.float(), target, reduction="sum")
        for values, target in zip(logits, codes, strict=True)
    ]
    return torch.stack(nats).sum() / len(leaves)


def train_output(
    output: str, seed: int, seconds: float, train: Tensor, held_out: Tensor
) -> dict[str, object]:
    """Train for an amount of processor time; return a row."""
    torch.manual_seed(seed)
    prior = build_output(output)
    optimizer = torch.optim.Adam(prior.parameters(), LEARNING_RATE)
    start = time.process_time()
    spent = 0.0
    steps = 0
    while spent < seconds:
        # the rate falls to 0 with the time spent, after ten steps of warmup
        rate = LEARNING_RATE * min(1, (steps + 1) / 10) * (1 - spent / seconds)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = measure_nats(prior, train[torch.randint(len(train), (BATCH,))])
        optimizer.zero_grad()
        (loss / 64).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        steps += 1
        spent = time.process_time() - start

    prior.eval()
    with torch.inference_mode():
        nats = torch.stack(
            [measure_nats(prior, batch) for batch in torch.split(held_out, 100)]
        ).mean()
    return {
        "output": output,
        "seed": seed,
        "steps": steps,
        "cpu_seconds": round(spent, 2),
        "bits_per_image": round(float(nats) / 0.6931471805599453, 2),
    }


def encode_images(path: Path, count: int) -> Tensor:
    """Return the leaves (N, H, W) of the first CIFAR10 training images; keep them in a file."""
    if path.exists():
        kept: Tensor = torch.load(path)
        return kept
    record = 1 + 3 * 32 * 32
    root = Path.home() / ".cache/hrvqvae/cifar10"
    content = b"".join((root / f"data_batch_{number}.bin").read_bytes() for number in range(1, 6))[
        : count * record
    ]
    images = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, record)[:, 1:]
    model = hrvqvae.load("treevq-cifar10")
    codes = model.encode(images.view(-1, 3, 32, 32))
    leaves = torch.zeros_like(codes[0], dtype=torch.long)
    for level in codes[:4]:
        leaves = leaves * 8 + level.long()
    torch.save(leaves, path)
    return leaves


def main(argv: Sequence[str] | None = None) -> None:
    """Train each output with each seed; write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("codes", type=Path, help="file of codes, made if it is missing")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--held-out", type=int, default=1_000)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    leaves = encode_images(arguments.codes, arguments.train + arguments.held_out)
    train, held_out = torch.split(leaves, [arguments.train, arguments.held_out])
    for seed in range(arguments.seeds):
        for output in OUTPUTS:
            row = train_output(output, seed, arguments.seconds, train, held_out)
            with arguments.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    as_script(main)
