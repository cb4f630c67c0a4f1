"""Codes, training, search and memory of a GPU in minutes; without one, a small form on the CPU.

The exit code is 1 where the codes of its searches are not the CPU's.

Shapes: N vectors, D their width, L levels, m codewords a codebook; level l's codebooks are (m^(l-1), m, D).
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Row, as_script, matrix_rate, median_seconds, options, show, side_by_side
from benchmarks.prior import PriorSide
from benchmarks.search import TOLERANCE, exact_search, make_problem
from benchmarks.train import AutoencoderSide
from hrvqvae.cli.console import print_json
from hrvqvae.config import presets
from hrvqvae.config.parsing import override
from hrvqvae.quantize.search.compiled import search_compiled
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.device import computes_bf16, resolve_device
from hrvqvae.utils.progress import waiting
from hrvqvae.utils.quantities import counted


class Searched(NamedTuple):
    """One kind of search: the paths that it keeps, the weight of coarser levels, and whether its codebook is flat."""

    width: int = 1
    coarse_weight: float = 0.0
    flat: bool = False


SEARCHES = {"greedy": Searched(), "beam of 4": Searched(4, 0.1), "flat": Searched(flat=True)}


def compare(latents: Tensor, books: Sequence[Tensor], expected: Tensor, found: Tensor, kind: Searched) -> Row:
    """Paths (L, N) that two searches found for vectors (N, D), compared.

    Returns:
        equal (a share), ties (vectors whose codes differ where rounding decides), errors (all others that differ) and
        worst (the largest relative difference of costs that a vector whose codes differ left, as `exact_search` says).
    """
    differ = (expected != found).any(0)
    clear = exact_search(latents[differ], books, kind.width, kind.coarse_weight)[1] if differ.any() else torch.zeros(0)
    errors = int((clear > TOLERANCE).sum())
    return {
        "equal": 1 - len(clear) / len(latents), "ties": len(clear) - errors, "errors": errors,
        "worst": max(clear.tolist(), default=0.0),
    }  # fmt: skip


def problem(tree: tuple[int, int, int], vectors: int) -> tuple[Tensor, list[tuple[Row, list[Tensor], Searched]]]:
    """Latents (N, D) and, for each search, a row that tells its size, and the codebooks that it searches.

    Args:
        tree: (levels, codewords a codebook, width); the flat codebook has as many codewords as it has leaves.
    """
    levels, codewords, width = tree
    case = make_problem(levels, codewords, vectors, width)
    searches = []
    for name, kind in SEARCHES.items():
        books = [case.flat.unsqueeze(0)] if kind.flat else list(case.books)
        about = {"levels": len(books), "codewords": books[0].shape[1], "width": width, "vectors": vectors}
        searches.append(({"search": name, **about}, books, kind))
    return case.latents, searches


def codes_rows(device: torch.device, vectors: int, trees: Sequence[tuple[int, int, int]]) -> list[Row]:
    """Rows with search, levels, codewords, width, vectors, and what `compare` finds.

    On a CPU it is the tensor operations that are compared with the compiled loops.
    """
    rows = []
    for tree in trees:
        latents, searches = problem(tree, vectors)
        for row, books, kind in searches:
            expected = search_compiled(latents, books, kind.width, kind.coarse_weight)
            on_device = [book.to(device) for book in books]
            found = search_tensors(latents.to(device), on_device, kind.width, kind.coarse_weight).cpu()
            rows.append({**row, **compare(latents, books, expected, found, kind)})
    return rows


def forget_peak(device: torch.device) -> None:
    """From here on `peak_memory` counts."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> Row:
    """peak_bytes: the most that tensors have held on a GPU since `forget_peak`; nothing on a CPU."""
    return {"peak_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}


def _repeated(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


@torch.inference_mode()
def search_rows(device: torch.device, vectors: int, tree: tuple[int, int, int], rounds: int, calls: int) -> list[Row]:
    """Rows with search, levels, codewords, width, vectors, bytes, seconds, copy_seconds, ratio; peak_bytes on a GPU.

    bytes are those that must move: latents (N, D) float32 in, codes (L, N) int64 out.
    copy_seconds is what they take at the rate of a copy of the latents, timed by turns with the searches.

    Args:
        tree: as of `problem`.
        calls: that are timed together, so that a GPU is not waited for after each.
    """
    latents, searches = problem(tree, vectors)
    latents = latents.to(device)
    target = torch.empty_like(latents)
    runs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(latents)}
    for row, books, kind in searches:
        on_device = [book.to(device) for book in books]
        runs[row["search"]] = run = partial(search_tensors, latents, on_device, kind.width, kind.coarse_weight)
        forget_peak(device)
        run()
        row |= peak_memory(device)
    spent = side_by_side({name: partial(_repeated, run, calls) for name, run in runs.items()}, rounds, device)
    for row, books, _ in searches:
        row["bytes"] = latents.nbytes + 8 * len(books) * vectors
        row["seconds"] = spent[row["search"]] / calls
        row["copy_seconds"] = spent["copy"] / calls * row["bytes"] / (2 * latents.nbytes)
        row["ratio"] = row["seconds"] / row["copy_seconds"]
    return [row for row, _, _ in searches]


def training_row(side: AutoencoderSide | PriorSide, trained: str, batch: int, steps: int, rate: float) -> Row:
    """trained, batch, step_seconds, images_per_second, flop (a step), matrix_share (of `rate`), peak_bytes on a GPU.

    FLOP are those of the convolutions and matrix products; a multiply-add is two.
    """
    with FlopCounterMode(display=False) as counter:
        side.train()
    flop, spent = int(counter.get_total_flops()), median_seconds(side.train, steps, side.compute.device)
    return {
        "trained": trained, "batch": batch, "step_seconds": spent,
        "images_per_second": batch / spent, "flop": flop, "matrix_share": flop / spent / rate,
        **peak_memory(side.compute.device),
    }  # fmt: skip


def training_rows(device: torch.device, form: Form, rate: float) -> list[Row]:
    """Rows as of `training_row`, of autoencoders and of the priors of some levels, for random images and codes."""
    rows = []
    for name, fields in form.trained.items():
        waiting(f"training {name}")
        config = override(presets.get(name).config, {**fields, "training.device": str(device)})
        forget_peak(device)
        batch = config.training.batch_size
        rows.append(training_row(AutoencoderSide(config, plain=False), name, batch, form.steps, rate))
    config = override(presets.get(_PRIOR).config, {**form.prior, "prior.training.device": str(device)})
    for level in form.prior_levels:
        waiting(f"training the prior of level {level + 1} of {_PRIOR}")
        forget_peak(device)
        prior = PriorSide(config, range(level, level + 1), bf16=computes_bf16(device))
        trained = f"{_PRIOR}, prior of level {level + 1} ({counted(prior.parameters, 'parameter')})"
        rows.append(training_row(prior, trained, len(prior.batch.codes[0]), form.steps, rate))
        del prior
    return rows


@dataclass(frozen=True, kw_only=True)
class Form:
    """How much is measured."""

    name: str
    matrix: int  # rows of the matrices whose product gives the device's rate
    trees: Sequence[tuple[int, int, int]]  # (levels, codewords a codebook, width), whose codes are compared
    compared: int  # vectors whose codes are compared
    searched: int  # vectors of the timed search, with the first tree
    calls: int  # searches that are timed together
    trained: Mapping[str, Mapping[str, str]]  # preset -> fields that differ from it
    prior: Mapping[str, str]  # fields that differ from the preset whose priors are trained
    prior_levels: Sequence[int]  # 0 is the coarsest
    steps: int  # of each training that are timed
    rounds: int  # of other measurements


_PRIOR = "hrvqvae/cifar10"
_TREES = ((3, 8, 32), (3, 8, 16), (6, 4, 16))  # the first two of the presets for FFHQ and CIFAR10

FULL = Form(
    name="full", matrix=8192, trees=_TREES, compared=2**17, searched=2**20, calls=10,
    trained={"hrvqvae/cifar10": {}, "hrvqvae/ffhq": {}},
    prior={}, prior_levels=(0, 2), steps=30, rounds=20,
)  # fmt: skip
SMALL = Form(
    name="small", matrix=1536, trees=_TREES, compared=2**13, searched=2**15, calls=1,
    trained={"hrvqvae/cifar10": {"training.batch_size": "16"}, "hrvqvae/ffhq": {"training.batch_size": "2"}},
    prior={"prior.training.batch_size": "8"}, prior_levels=(0,), steps=5, rounds=5,
)  # fmt: skip


_FAULT = (
    "{search} ({levels} levels of {codewords}, width {width}): {errors:,} of {vectors:,} vectors are not coded as on "
    f"the CPU, by more than {TOLERANCE:g} of a distance"
)


def bench_gpu(device: torch.device, form: Form) -> Row:
    """Check and time a device.

    Returns:
        device, device_name, form, torch (its version), precision and matrix_rate (FLOP a second, in that precision);
        codes, search and training, the rows of each part (`codes_rows`, `search_rows`, `training_rows`); faults, a
        line for each search whose codes are not the CPU's; seconds, of all.
    """
    begun, bf16 = time.perf_counter(), computes_bf16(device)
    waiting("timing matrix products")
    rate = matrix_rate(device, form.matrix, bf16, form.rounds)
    waiting("comparing codes")
    codes = codes_rows(device, form.compared, form.trees)
    waiting("timing the search")
    search = search_rows(device, form.searched, form.trees[0], form.rounds, form.calls)
    training = training_rows(device, form, rate)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type, "device_name": name, "form": form.name, "torch": torch.__version__,
        "precision": "bf16" if bf16 else "fp32", "matrix_rate": rate, "codes": codes, "search": search,
        "training": training,
        "faults": [_FAULT.format(**row) for row in codes if row["errors"]], "seconds": time.perf_counter() - begun,
    }  # fmt: skip


_SIZE = {"search": "{search}", "L": "{levels}", "m": "{codewords}", "D": "{width}", "vectors": "{vectors:,}"}
COLUMNS = {
    "codes": {**_SIZE, "equal": "{equal:.4%}", "ties": "{ties}", "errors": "{errors}", "clearest": "{worst:.1e}"},
    "search": {
        **_SIZE, "MB": "{MB:.1f}", "ms": "{ms:,.3f}", "copy ms": "{copy_ms:,.3f}", "ratio": "{ratio:.1f}",
        "peak MB": "{peak_MB:,.0f}",
    },
    "training": {
        "trained": "{trained}", "batch": "{batch}", "ms a step": "{step_ms:,.1f}",
        "images/s": "{images_per_second:,.1f}", "FLOP a step": "{flop:.3e}", "share": "{matrix_share:.1%}",
        "peak MB": "{peak_MB:,.0f}",
    },
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Check and time this machine's GPU."""
    arguments = options(__doc__).parse_args(argv)
    device = resolve_device("auto")
    found = bench_gpu(device, FULL if device.type == "cuda" else SMALL)
    if arguments.json:
        print_json(found)
    else:
        if device.type != "cuda":
            print("no GPU here: a small form of the measurements, on the CPU")
        rate = f"{found['matrix_rate'] / 1e12:,.3g} TFLOP/s of matrix products in {found['precision']}"
        print(f"{found['device_name']}, torch {found['torch']}: {rate}; {found['seconds']:.0f} s in all")
        for part, title in (
            ("codes", f"codes beside the CPU's (tie: within {TOLERANCE:g} of a distance)"),
            ("search", "search beside a copy of the same bytes"),
            ("training", f"training (share: of the rate of matrix products in {found['precision']})"),
        ):
            print(f"\n{title}")
            show(found[part], COLUMNS[part])
    for fault in found["faults"]:
        print(fault, file=sys.stderr)
    if found["faults"]:
        sys.exit(1)


if __name__ == "__main__":
    as_script(main)
