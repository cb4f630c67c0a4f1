"""All that is checked and timed of a GPU, in minutes; the small form of it, which is run on a CPU."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.codes import TOLERANCE, codes_rows
from benchmarks.gpu.sampling import sampling_rows
from benchmarks.gpu.speed import matrix_rate, search_rows
from benchmarks.gpu.training import autoencoder_rows, prior_rows
from benchmarks.timing import Timing
from hrvqvae.config import Grid, presets
from hrvqvae.config.parsing import override
from hrvqvae.utils.device import computes_bf16
from hrvqvae.utils.progress import waiting

Table = list[tuple[object, ...]]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How much is measured.

    Attributes:
        name: full or small.
        matrix: rows of the matrices whose product gives the device's rate.
        trees: (levels, codewords a codebook, width) whose codes are compared.
        compared: vectors whose codes are compared.
        searched: vectors of the timed search, with the tree that comes first.
        calls: searches that are timed together.
        trained: preset -> fields that differ from it.
        compiled: presets that are trained with torch.compile as well.
        prior: preset whose priors are trained, and fields that differ from it.
        prior_levels: 0 is the coarsest.
        steps: that are timed of each training.
        sampled: preset whose coarsest level is sampled, on this grid and in these batches.
        rounds: of other measurements.
    """

    name: str
    matrix: int
    trees: Sequence[tuple[int, int, int]]
    compared: int
    searched: int
    calls: int
    trained: Mapping[str, Mapping[str, str]]
    compiled: Sequence[str]
    prior: tuple[str, Mapping[str, str]]
    prior_levels: Sequence[int]
    steps: int
    sampled: tuple[str, Grid, Sequence[int]]
    rounds: int


_TREES = ((3, 8, 32), (3, 8, 16), (6, 4, 16))  # the first two of the presets for FFHQ and CIFAR10

FULL = Form(
    name="full", matrix=8192, trees=_TREES, compared=2**17, searched=2**20, calls=10,
    trained={"hrvqvae/cifar10": {}, "hrvqvae/ffhq": {}}, compiled=("hrvqvae/cifar10", "hrvqvae/ffhq"),
    prior=("hrvqvae/cifar10", {}), prior_levels=(0, 2), steps=30,
    sampled=("hrvqvae/cifar10", (16, 16), (1, 64, 256)), rounds=20,
)  # fmt: skip
SMALL = Form(
    name="small", matrix=1536, trees=_TREES, compared=2**13, searched=2**15, calls=1,
    trained={"hrvqvae/cifar10": {"training.batch_size": "16"}, "hrvqvae/ffhq": {"training.batch_size": "2"}},
    compiled=("hrvqvae/cifar10",), prior=("hrvqvae/cifar10", {"prior.training.batch_size": "8"}), prior_levels=(0,),
    steps=5, sampled=("hrvqvae/cifar10", (8, 8), (1, 16)), rounds=5,
)  # fmt: skip


def form_of(device: torch.device) -> Form:
    """The whole of it on a GPU, the small form elsewhere."""
    return FULL if device.type == "cuda" else SMALL


def bench_gpu(device: torch.device, form: Form) -> dict[str, Any]:
    """Check and time a device.

    Returns:
        device, device_name, form, torch (its version), precision and matrix_rate (FLOP a second, in that precision);
        codes, search, training and sampling, the rows of each part (`codes_rows`, `search_rows`, `autoencoder_rows` and
        `prior_rows`, `sampling_rows`); faults, a line for each search whose codes are not the CPU's; seconds, of all.
    """
    begun = time.perf_counter()
    place, bf16 = str(device), computes_bf16(device)
    waiting("timing matrix products")
    rate = matrix_rate(device, form.matrix, bf16, form.rounds)
    waiting("comparing codes")
    codes = codes_rows(device, form.compared, form.trees)
    waiting("timing the search")
    search = search_rows(device, form.searched, form.trees[0], form.rounds, form.calls)
    name, grid, batches = form.sampled
    waiting("sampling")
    sampling = sampling_rows(device, name, grid, batches)
    name, fields = form.prior
    config = override(presets.get(name).config, {**fields, "prior.utils.device": place})
    waiting(f"training priors of {name}")
    priors = prior_rows(config, form.prior_levels, form.steps, rate)
    training = list[Timing]()
    for name, fields in form.trained.items():
        waiting(f"training {name}")
        config = override(presets.get(name).config, {**fields, "utils.device": place})
        training += autoencoder_rows(config, form.steps, rate, compiled=name in form.compiled)
    return {
        "device": device.type, "device_name": _name(device), "form": form.name, "torch": torch.__version__,
        "precision": "bf16" if bf16 else "fp32", "matrix_rate": rate, "codes": codes, "search": search,
        "training": [*training, *priors], "sampling": sampling,
        "faults": [_fault(row) for row in codes if row["errors"]], "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _fault(row: Timing) -> str:
    size = f"{row['levels']} levels of {row['codewords']}, width {row['width']}"
    return (
        f"{row['search']} ({size}): {row['errors']:,} of {row['vectors']:,} vectors are not coded as on the CPU, "
        f"by more than {row['tolerance']:g} of a distance"
    )


def as_tables(found: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """What `bench_gpu` found, for a person: titles, and tables with heads."""
    parts: list[tuple[str, str, Callable[[Timing], tuple[object, ...]]]] = [
        (f"codes beside the CPU's (tie: within {TOLERANCE:g} of a distance)", "codes", _codes_line),
        ("search beside a copy of the same bytes", "search", _search_line),
        (f"training (share: of the rate of matrix products in {found['precision']})", "training", _training_line),
        ("sampling of one level", "sampling", _sampling_line),
    ]
    return [(title, [_HEADS[part], *map(line, found[part])]) for title, part, line in parts]


_HEADS: dict[str, tuple[object, ...]] = {
    part: tuple(heads.split(","))
    for part, heads in {
        "codes": "search,L,m,D,vectors,equal,ties,errors,farthest",
        "search": "search,L,m,D,vectors,MB,ms,copy ms,ratio,peak MB",
        "training": "trained,torch.compile,batch,ms a step,images/s,GFLOP a step,share,peak MB,",
        "sampling": "sampler,device,batch,grid,ms an image,ratio,equal codes,peak MB",
    }.items()
}


def _peak(row: Timing) -> str:
    return f"{row['peak_bytes'] / 1e6:,.0f}" if "peak_bytes" in row else "-"


def _size(row: Timing) -> tuple[object, ...]:
    return row["search"], row["levels"], row["codewords"], row["width"], f"{row['vectors']:,}"


def _codes_line(row: Timing) -> tuple[object, ...]:
    return *_size(row), f"{row['equal']:.4%}", row["ties"], row["errors"], f"{row['worst']:.1e}"


def _search_line(row: Timing) -> tuple[object, ...]:
    times = f"{row['seconds'] * 1e3:,.3f}", f"{row['copy_seconds'] * 1e3:,.3f}", f"{row['ratio']:.1f}"
    return *_size(row), f"{row['bytes'] / 1e6:.1f}", *times, _peak(row)


def _training_line(row: Timing) -> tuple[object, ...]:
    what = row["trained"], "on" if row["compiled"] else "off", row["batch"]
    if "failure" in row:
        return *what, "-", "-", "-", "-", "-", f"does not work here: {row['failure']}"
    told = ""
    if row["compiled"]:
        told = f"compiled in {row['compile_seconds']:.0f} s; first loss off by {row['loss_difference']:.1e}"
    return (
        *what, f"{row['step_seconds'] * 1e3:,.1f}", f"{row['images_per_second']:,.1f}", f"{row['flop'] / 1e9:,.1f}",
        f"{row['matrix_share']:.1%}", _peak(row), told,
    )  # fmt: skip


def _sampling_line(row: Timing) -> tuple[object, ...]:
    beside = (f"{row['ratio']:.2f}", f"{row['equal']:.2%}") if "ratio" in row else ("", "")
    grid = "x".join(map(str, row["grid"]))
    return (
        row["sampler"],
        row["device"],
        row["batch"],
        grid,
        f"{row['seconds_per_image'] * 1e3:,.2f}",
        *beside,
        _peak(row),
    )
