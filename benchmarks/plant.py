"""Measure trees that are planted on the codebooks of trained runs (docs/data/plant-cifar10).

python -m benchmarks.plant images OUT RUN CODEWORDS BEAMS [LIMIT]: errors, to OUT/rows.jsonl
python -m benchmarks.plant prefixes OUT RUN: errors of the first levels of a planted run, with and
without its decoder of prefixes, to OUT/prefixes.jsonl
python -m benchmarks.plant times OUT: CPU seconds, to OUT/times.jsonl
python -m benchmarks.plant report OUT: comparisons
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import hrvqvae
from benchmarks.common import Row, read_images
from benchmarks.laboratory.report import welch
from hrvqvae import TreeVQ
from hrvqvae.checkpoints.folder import open_run
from hrvqvae.quantize import planting
from hrvqvae.quantize.search import search

_GROWN_IMAGES = 5_000
_VECTORS = 16_384
_LONG = Path("docs/data/long-cifar10")


class Subject:
    """A trained run with flat codebooks: its test images, their latents, and its decoder."""

    def __init__(self, run: Path, limit: int | None) -> None:
        self.name = run.name
        self.model: Any
        self.model, self.config = open_run(run).load(decoder=None)
        self.images = read_images(self.config.data, limit)
        self.latents = self.encode(self.images)
        levels = self.model.quantizer.levels
        self.codebooks = torch.cat([level.codewords for level in levels])
        self.counts = torch.cat([level.count for level in levels])

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents (B, H, W, D) of images."""
        batches = [self.model.latents(batch.float() / 255) for batch in torch.split(images, 50)]
        return torch.cat(batches)

    def error(self, quantized: Tensor) -> float:
        """Return the squared error of images that are decoded from quantized latents (N, D)."""
        squared = 0.0
        latents = quantized.view(self.latents.shape)
        batches = zip(torch.split(latents, 50), torch.split(self.images, 50), strict=True)
        for batch, images in batches:
            decoded = (self.model.pixels(batch, self.config.data.image_size) + 1) / 2
            error = decoded.clamp(0, 1) - images.float() / 255
            squared += float(error.double().square().sum())
        return squared / self.images.numel()


def pair_order(words: Tensor, weights: Tensor, rows: Tensor, _: Sequence[int]) -> Tensor:
    """Order the rows by agglomeration: the nearest groups of equal size become pairs, greedily."""
    groups = rows.unsqueeze(1)
    while len(groups) > 1:
        share = weights[groups].unsqueeze(-1)
        means = (share * words[groups]).sum(1) / share.sum(1)
        mass = share.sum((1, 2))
        # the squared error that a merger adds, as Ward has it
        added = torch.cdist(means, means).square() * mass * mass[:, None]
        added /= mass + mass[:, None]
        added.fill_diagonal_(torch.inf)
        pairs: list[Tensor] = []
        while len(pairs) < len(groups) // 2:
            left, right = divmod(int(added.argmin()), len(groups))
            pairs.append(torch.cat([groups[left], groups[right]]))
            added[[left, right]] = torch.inf
            added[:, [left, right]] = torch.inf
        groups = torch.stack(pairs)
    return groups[0]


def measure(subject: Subject, codewords: int, beams: Sequence[int]) -> Iterator[Row]:
    """Yield the errors of a run by its flat search and by trees, with their first levels."""
    latents = subject.latents.flatten(0, -2)
    codes = subject.model.quantizer.encode(subject.latents)
    flat = subject.model.quantizer.lookup(codes)
    yield {"tree": "flat", "search": "flat", "mse": subject.error(flat)}
    orders: dict[str, Callable[..., Tensor]] = {"k-means": planting._order_rows}
    if codewords in (2, 8) and len(subject.codebooks) == 1:
        orders["pairs"] = pair_order
    for name, order in orders.items():
        for beam in beams:
            with patch.object(planting, "_order_rows", order):
                tree = TreeVQ.from_codebook(subject.codebooks, codewords, subject.counts, beam=beam)
            yield from _measure_tree(subject, tree, latents, f"{codewords}, {name}")
    if len(subject.codebooks) > 1 or codewords != 8:
        return

    # one more level, from training images
    training = read_images(subject.config.data, _GROWN_IMAGES, "train")
    vectors = subject.encode(training).flatten(0, -2)
    for beam in (8, 16):
        tree = TreeVQ.from_codebook(subject.codebooks, codewords, subject.counts, beam=beam)
        yield from _measure_tree(subject, tree.grow(vectors), latents, f"{codewords}, grown")


def _measure_tree(subject: Subject, tree: TreeVQ, latents: Tensor, name: str) -> Iterator[Row]:
    quantizer = tree.quantizer
    beam = quantizer.config.beam
    codes = quantizer.encode(latents)
    num_levels = len(codes)
    for level in range(1, num_levels + 1):
        if level < num_levels and (beam not in (4, 8) or num_levels > 9):
            continue
        quantized = quantizer.lookup(codes[:level])
        row = {"tree": name, "search": f"beam {beam}", "level": level, "of": num_levels}
        yield row | {"mse": subject.error(quantized)}


def measure_prefixes(run: Path) -> Iterator[Row]:
    """Yield the errors of the first levels of a planted run."""
    for decoder in ("plain", "prefixes"):
        model: Any = hrvqvae.load(run)
        if decoder == "plain":
            model.autoencoder.progressive_decoder = None
        images = read_images(model.config.data)
        depth = len(model.config.model.num_symbols)
        squared = [0.0] * depth
        for batch in torch.split(images, 200):
            codes = model.encode(batch)
            for level in range(depth):
                error = model.decode(codes, levels=level + 1) - batch.float() / 255
                squared[level] += float(error.double().square().sum())
        for level, total in enumerate(squared, start=1):
            yield {"decoder": decoder, "level": level, "of": depth, "mse": total / images.numel()}


def measure_times() -> Iterator[Row]:
    """Yield the CPU seconds of planting, and of encoding 16,384 vectors by flat and tree searches:
    of one thread, the least of three calls after the first, since the machine may be busy.
    """
    for count in (512, 4_096, 16_384):
        for dim in (16, 64, 256):
            rng = torch.Generator().manual_seed(0)
            codebook = torch.randn(count, dim, generator=rng)
            vectors = torch.randn(_VECTORS, dim, generator=rng)
            begun = time.process_time()
            tree = TreeVQ.from_codebook(codebook)
            row: Row = {"words": count, "dim": dim, "plant": time.process_time() - begun}
            books = [level.codewords for level in tree.quantizer.levels]

            def call(books: Sequence[Tensor], width: int, vectors: Tensor = vectors) -> Any:
                return lambda: search(vectors, books, width)

            calls = {"flat": call([codebook[None]], 1)}
            calls |= {f"beam {width}": call(books, width) for width in (1, 4, 8)}
            for name, encode in calls.items():
                encode()
                spent = []
                for _ in range(3):
                    begun = time.process_time()
                    encode()
                    spent.append(time.process_time() - begun)
                row[name] = min(spent)
            yield row


def report(folder: Path) -> None:
    """Print the main comparisons of protocol.md from the rows."""
    from scipy.stats import t as student

    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]

    def errors(name: str, tree: str, search: str) -> list[float]:
        return [
            row["mse"]
            for row in rows
            if row["run"].startswith(name) and row["tree"] == tree and row["search"] == search
            if row["images"] == (2_000 if name == "deep" else 10_000)
            if row.get("level") == row.get("of")
        ]

    for beam, margin in ((4, 0.5), (8, 0.1)):
        flat = errors("vqvae", "flat", "flat")
        planted = errors("vqvae", "8, k-means", f"beam {beam}")
        relative = [100 * (tree / base - 1) for tree, base in zip(planted, flat, strict=True)]
        center, count = mean(relative), len(relative)
        spread = stdev(relative) / count**0.5
        reach = [float(student.ppf(share, count - 1)) * spread for share in (0.95, 0.975)]
        p = 2 * float(student.sf(abs(center) / spread, count - 1))
        # of the two one-sided tests
        level = float(student.sf((margin - abs(center)) / spread, count - 1))
        print(
            f"vqvae, beam {beam}, n = {count}: {center:+.3f}%, 95% interval"
            f" {center - reach[1]:+.3f} to {center + reach[1]:+.3f}, 90% {center - reach[0]:+.3f}"
            f" to {center + reach[0]:+.3f}, p {p:.3f}; within {margin}%: p {level:.4f}"
        )

    def compare(title: str, planted: list[float], rival: list[float]) -> None:
        if not planted:
            print(f"{title}: no rows")
            return
        change = 100 * (mean(planted) / mean(rival) - 1)
        line = f"{title}, n = {len(planted)}: {[f'{1e4 * value:.3f}' for value in planted]}"
        p = f", p {welch(planted, rival):.4f}" if len(planted) > 1 else ""
        print(f"{line} against {1e4 * mean(rival):.3f}, {change:+.1f}%{p}")

    def long_rows(name: str) -> list[float]:
        paths = sorted((_LONG / "rows").glob(f"{name}-[0-9].json"))
        return [json.loads(path.read_text())["mse"] for path in paths]

    wide = errors("wide", "15, k-means", "beam 8")
    for rival in ("treevq15", "vqvae2"):
        compare(f"wide, beam 8, against {rival}", wide, long_rows(rival))
    for rival in ("vqvae", "treevq", "hrvqvae"):
        planted = errors("vqvae", "8, k-means", "beam 8")
        compare(f"vqvae, beam 8, against {rival}", planted, long_rows(rival))
    lines = (_LONG / "depth/beams.jsonl").read_text().splitlines()
    for beam in (4, 16):
        wanted = {"system": "groups4", "search": f"joint, beam {beam}", "coarse_weight": "0"}
        linked = [row["mse"] for row in map(json.loads, lines) if wanted.items() <= row.items()]
        compare(f"deep, beam {beam}", errors("deep", "8, k-means", f"beam {beam}"), linked)


@torch.inference_mode()
def main(argv: Sequence[str]) -> None:
    """Run an action of the module's docstring."""
    action, out, *rest = argv
    folder = Path(out)
    torch.set_num_threads(1)
    rows: Iterator[Row] = iter(())
    name = "times.jsonl"
    if action == "report":
        report(folder)
        return
    if action == "images":
        run, codewords, beams, *limit = rest
        subject = Subject(Path(run), int(limit[0]) if limit else None)
        widths = [int(beam) for beam in beams.split(",")]
        found = measure(subject, int(codewords), widths)
        about = {"run": subject.name, "images": len(subject.images)}
        rows = (about | row for row in found)
        name = "rows.jsonl"
    elif action == "prefixes":
        (run,) = rest
        rows = ({"run": Path(run).name} | row for row in measure_prefixes(Path(run)))
        name = "prefixes.jsonl"
    else:
        rows = measure_times()
    with (folder / name).open("a") as stream:
        for row in rows:
            print(json.dumps(row), file=stream, flush=True)
            print(row)


if __name__ == "__main__":
    main(sys.argv[1:])
