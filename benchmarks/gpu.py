"""Check and time a GPU in minutes: codes, search, training, sampling and memory.

Without a GPU, a small form of the measurements runs on the CPU. The exit code is 1 if the codes of
a search are not those of the CPU.

Shapes: N vectors of width D, L levels, m codewords per codebook; the codebooks of level l are
    (m^(l-1), m, D).
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import (
    Row,
    as_script,
    matrix_rate,
    median_seconds,
    options,
    parse_lines,
    show,
    side_by_side,
)
from benchmarks.prior import PriorSide, draws, random_priors
from benchmarks.search import TOLERANCE, exact_search, make_problem
from benchmarks.train import AutoencoderSide
from hrvqvae.cli.console import print_json
from hrvqvae.config import presets
from hrvqvae.config.parsing import override
from hrvqvae.models.build import build
from hrvqvae.quantize.search.compiled import search_compiled
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.device import computes_bf16, resolve_device
from hrvqvae.utils.progress import waiting
from hrvqvae.utils.quantities import counted

Tree = tuple[int, int, int]
"""Levels, codewords per codebook, and width of a vector."""


class SearchKind(NamedTuple):
    """Arguments of a search, and whether its codebook is flat."""

    width: int = 1  # paths that it keeps
    coarse_weight: float = 0.0
    flat: bool = False


Search = tuple[Row, list[Tensor], SearchKind]
"""A row with the size of a search, its codebooks, and its kind."""


SEARCHES = {"greedy": SearchKind(), "beam of 4": SearchKind(4, 0.1), "flat": SearchKind(flat=True)}


def compare(
    latents: Tensor, books: Sequence[Tensor], expected: Tensor, actual: Tensor, kind: SearchKind
) -> Row:
    """Compare the indices (L, N) of two searches for vectors (N, D).

    Return a row: equal (share of the vectors), ties (vectors that differ where rounding decides),
    errors (the other vectors that differ) and worst (largest relative difference of the costs, by
    `exact_search`, of a vector that differs).
    """
    differ = (expected != actual).any(0)
    margins = torch.zeros(0)
    if differ.any():
        _, margins = exact_search(latents[differ], books, kind.width, kind.coarse_weight)
    errors = int((margins > TOLERANCE).sum())
    return {
        "equal": 1 - len(margins) / len(latents),
        "ties": len(margins) - errors,
        "errors": errors,
        "worst": max(margins.tolist(), default=0.0),
    }


def make_searches(tree: Tree, vectors: int) -> tuple[Tensor, list[Search]]:
    """Return latents (N, D), and the searches of each kind.

    The flat codebook has as many codewords as the tree has leaves.
    """
    levels, codewords, width = tree
    problem = make_problem(levels, codewords, vectors, width)
    searches = []
    for name, kind in SEARCHES.items():
        books = [problem.flat.unsqueeze(0)] if kind.flat else list(problem.books)
        size = {
            "search": name,
            "levels": len(books),
            "codewords": books[0].shape[1],
            "width": width,
            "vectors": vectors,
        }
        searches.append((size, books, kind))
    return problem.latents, searches


def bench_codes(device: torch.device, vectors: int, trees: Sequence[Tree]) -> list[Row]:
    """Return rows with search, levels, codewords, width, vectors, and the values of `compare` with
    the CPU.

    On a CPU the tensor operations are compared with the compiled loops.
    """
    rows = []
    for tree in trees:
        latents, searches = make_searches(tree, vectors)
        for row, books, kind in searches:
            arguments = (kind.width, kind.coarse_weight)
            expected = search_compiled(latents, books, *arguments)
            on_device = [book.to(device) for book in books]
            actual = search_tensors(latents.to(device), on_device, *arguments).cpu()
            rows.append({**row, **compare(latents, books, expected, actual, kind)})
    return rows


def reset_peak(device: torch.device) -> None:
    """Start to measure the peak memory of a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def read_peak(device: torch.device) -> Row:
    """Return peak_bytes, the most memory of tensors on a GPU since `reset_peak`; for a CPU, an
    empty row.
    """
    return {"peak_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


@torch.inference_mode()
def bench_searches(
    device: torch.device, vectors: int, tree: Tree, rounds: int, calls: int
) -> list[Row]:
    """Return rows with search, levels, codewords, width, vectors, bytes, seconds, copy_seconds,
    ratio, peak_bytes.

    bytes is the least that a search must move: latents (N, D) float32 in, codes (L, N) int64 out.
    copy_seconds is the time of so many bytes at the rate of a copy of the latents, which is timed
    in turns with the searches. So many `calls` are timed together, without a wait between them.
    """
    latents, searches = make_searches(tree, vectors)
    latents = latents.to(device)
    target = torch.empty_like(latents)
    runs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(latents)}
    for row, books, kind in searches:
        on_device = [book.to(device) for book in books]
        run = partial(search_tensors, latents, on_device, kind.width, kind.coarse_weight)
        runs[row["search"]] = run
        reset_peak(device)
        run()
        row |= read_peak(device)
    spent = side_by_side(
        {name: partial(_repeat, run, calls) for name, run in runs.items()}, rounds, device
    )
    for row, books, _ in searches:
        row["bytes"] = latents.nbytes + 8 * len(books) * vectors
        row["seconds"] = spent[row["search"]] / calls
        row["copy_seconds"] = spent["copy"] / calls * row["bytes"] / (2 * latents.nbytes)
        row["ratio"] = row["seconds"] / row["copy_seconds"]
    return [row for row, _, _ in searches]


def bench_training(
    side: AutoencoderSide | PriorSide, trained: str, batch: int, steps: int, rate: float
) -> Row:
    """Return a row with trained, batch, step_seconds, images_per_second, flop (per step),
    matrix_share (of `rate`) and peak_bytes.

    FLOP are those of convolutions and matrix products; a multiply-add is two.
    """
    with FlopCounterMode(display=False) as counter:
        side.train()
    flop = int(counter.get_total_flops())
    spent = median_seconds(side.train, steps, side.compute.device)
    return {
        "trained": trained,
        "batch": batch,
        "step_seconds": spent,
        "images_per_second": batch / spent,
        "flop": flop,
        "matrix_share": flop / spent / rate,
        **read_peak(side.compute.device),
    }


def bench_trainings(device: torch.device, form: Form, rate: float) -> list[Row]:
    """Return rows of `bench_training` of autoencoders and of priors, with random images and
    codes.
    """
    rows = []
    for name, fields in form.trained.items():
        waiting(f"training {name}")
        config = override(presets.get(name).config, {**fields, "training.device": str(device)})
        reset_peak(device)
        side = AutoencoderSide(config, plain=False)
        rows.append(bench_training(side, name, config.training.batch_size, form.steps, rate))
        del side  # and its memory
    fields = {**form.prior, "prior.training.device": str(device)}
    config = override(presets.get(_PRIOR).config, fields)
    for level in form.prior_levels:
        name = f"{_PRIOR}, prior of level {level + 1}"
        waiting(f"training {name}")
        reset_peak(device)
        prior = PriorSide(config, range(level, level + 1), bf16=computes_bf16(device))
        trained = f"{name} ({counted(prior.parameters, 'parameter')})"
        rows.append(bench_training(prior, trained, len(prior.batch.codes[0]), form.steps, rate))
        del prior
    return rows


def bench_sampling(device: torch.device, form: Form) -> list[Row]:
    """Return a row with sampled, images, seconds, images_per_second and peak_bytes, for priors with
    random weights.
    """
    waiting(f"sampling with the priors of {_PRIOR}")
    config = override(presets.get(_PRIOR).config, form.prior)
    model = build(config).eval().to(device)
    priors = [prior.to(device) for prior in random_priors(config)]
    reset_peak(device)
    spent = median_seconds(draws(model, priors, form.sampled), 3, device)
    row = {
        "sampled": _PRIOR,
        "images": form.sampled,
        "seconds": spent,
        "images_per_second": form.sampled / spent,
        **read_peak(device),
    }
    return [row]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How much is measured.

    Attributes:
        name: of the form.
        matrix: rows of the matrices whose product gives the rate of the device.
        trees: whose codes are compared; the first is that of the timed search.
        compared: vectors whose codes are compared.
        searched: vectors of the timed search.
        calls: searches that are timed together.
        trained: changed fields of each preset whose autoencoder is trained.
        prior: changed fields of the preset whose priors are trained and drawn from.
        prior_levels: levels whose prior is trained; 0 is the coarsest.
        steps: timed steps of each training.
        sampled: images that are drawn together.
        rounds: of the other measurements.
    """

    name: str
    matrix: int
    trees: Sequence[Tree]
    compared: int
    searched: int
    calls: int
    trained: Mapping[str, Mapping[str, str]]
    prior: Mapping[str, str]
    prior_levels: Sequence[int]
    steps: int
    sampled: int
    rounds: int


_PRIOR = "hrvqvae/cifar10"

FULL = Form(
    name="full",
    matrix=8192,
    trees=((3, 8, 32), (3, 8, 16), (6, 4, 16)),  # the first two of the presets for FFHQ and CIFAR10
    compared=2**17,
    searched=2**20,
    calls=10,
    trained={"hrvqvae/cifar10": {}, "treevq/cifar10": {}, "hrvqvae/ffhq": {}},
    prior={},
    prior_levels=(0, 2),
    steps=30,
    sampled=256,
    rounds=20,
)
SMALL = replace(
    FULL,
    name="small",
    matrix=1536,
    compared=2**13,
    searched=2**15,
    calls=1,
    trained={
        "hrvqvae/cifar10": {"training.batch_size": "16"},
        "treevq/cifar10": {"training.batch_size": "16"},
        "hrvqvae/ffhq": {"training.batch_size": "2"},
    },
    prior={"prior.training.batch_size": "8"},
    prior_levels=(0,),
    steps=5,
    sampled=2,
    rounds=5,
)


_FAULT = (
    "{search} ({levels} levels of {codewords}, width {width}): {errors:,} of"
    f" {{vectors:,}} vectors are not coded as on the CPU, by more than {TOLERANCE:g} of a distance"
)


def bench_gpu(device: torch.device, form: Form) -> Row:
    """Check and time a device.

    Return device, device_name, form, torch (its version), precision, matrix_rate (FLOP per second
    in that precision), the rows codes, search, training and sampling, faults (a line for each
    search whose codes are not those of the CPU), and seconds.
    """
    begun = time.perf_counter()
    bf16 = computes_bf16(device)
    waiting("timing matrix products")
    rate = matrix_rate(device, form.matrix, bf16, form.rounds)
    waiting("comparing codes")
    codes = bench_codes(device, form.compared, form.trees)
    waiting("timing the search")
    search = bench_searches(device, form.searched, form.trees[0], form.rounds, form.calls)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "device_name": name,
        "form": form.name,
        "torch": torch.__version__,
        "precision": "bf16" if bf16 else "fp32",
        "matrix_rate": rate,
        "codes": codes,
        "search": search,
        "training": bench_trainings(device, form, rate),
        "sampling": bench_sampling(device, form),
        "faults": [_FAULT.format(**row) for row in codes if row["errors"]],
        "seconds": time.perf_counter() - begun,
    }


_SIZE = """
search: {search}
L: {levels}
m: {codewords}
D: {width}
vectors: {vectors:,}
"""
_CODES = """
equal: {equal:.4%}
ties: {ties}
errors: {errors}
clearest: {worst:.1e}
"""
_SEARCH = """
MB: {MB:.1f}
ms: {ms:,.3f}
copy ms: {copy_ms:,.3f}
ratio: {ratio:.1f}
peak MB: {peak_MB:,.0f}
"""
_TRAINING = """
trained: {trained}
batch: {batch}
ms per step: {step_ms:,.1f}
images/s: {images_per_second:,.1f}
FLOP per step: {flop:.3e}
share: {matrix_share:.1%}
peak MB: {peak_MB:,.0f}
"""
_SAMPLING = """
sampled: {sampled}
images: {images}
s: {seconds:.2f}
images/s: {images_per_second:,.1f}
peak MB: {peak_MB:,.0f}
"""
TABLES = {
    "codes": (f"codes beside the CPU's (tie: within {TOLERANCE:g} of a distance)", _SIZE + _CODES),
    "search": ("search beside a copy of the same bytes", _SIZE + _SEARCH),
    "training": ("training (share: of the rate of matrix products)", _TRAINING),
    "sampling": ("sampling, with random weights", _SAMPLING),
}
"""Title and columns of each list of rows in the report."""


def main(argv: Sequence[str] | None = None) -> None:
    """Check and time this machine's GPU."""
    arguments = options(__doc__).parse_args(argv)
    device = resolve_device("auto")
    report = bench_gpu(device, FULL if device.type == "cuda" else SMALL)
    if arguments.json:
        print_json(report)
    else:
        if device.type != "cuda":
            print("no GPU here: a small form of the measurements, on the CPU")
        line = (
            "{device_name}, torch {torch}: {rate:,.3g} TFLOP/s of matrix products in {precision};"
            " {seconds:.0f} s in all"
        )
        print(line.format(rate=report["matrix_rate"] / 1e12, **report))
        for name, (title, columns) in TABLES.items():
            print(f"\n{title}")
            show(report[name], parse_lines(columns))
    if report["faults"]:
        print(*report["faults"], sep="\n", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    as_script(main)
