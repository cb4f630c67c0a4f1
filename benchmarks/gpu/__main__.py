"""Codes, training, search, sampling and memory of a GPU in minutes; without one, a small form on the CPU.

The exit code is 1 where the codes of its searches are not the CPU's.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.common import Row, as_script, options, show
from benchmarks.gpu.codes import codes_rows
from benchmarks.gpu.timings import autoencoder_rows, matrix_rate, prior_rows, sampling_rows, search_rows
from benchmarks.search import TOLERANCE
from hrvqvae.cli.console import print_json
from hrvqvae.config import Grid, presets
from hrvqvae.config.parsing import override
from hrvqvae.utils.device import computes_bf16, resolve_device
from hrvqvae.utils.progress import waiting


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
    compiled: Sequence[str]  # presets that are trained with torch.compile as well
    prior: tuple[str, Mapping[str, str]]  # preset whose priors are trained, and fields that differ from it
    prior_levels: Sequence[int]  # 0 is the coarsest
    steps: int  # of each training that are timed
    sampled: tuple[str, Grid, Sequence[int]]  # preset whose coarsest level is sampled, on this grid, in these batches
    rounds: int  # of other measurements


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


def bench_gpu(device: torch.device, form: Form) -> Row:
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
    config = override(presets.get(name).config, {**fields, "prior.training.device": place})
    waiting(f"training priors of {name}")
    priors = prior_rows(config, form.prior_levels, form.steps, rate)
    training = list[Row]()
    for name, fields in form.trained.items():
        waiting(f"training {name}")
        config = override(presets.get(name).config, {**fields, "training.device": place})
        training += autoencoder_rows(config, form.steps, rate, compiled=name in form.compiled)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type, "device_name": name, "form": form.name, "torch": torch.__version__,
        "precision": "bf16" if bf16 else "fp32", "matrix_rate": rate, "codes": codes, "search": search,
        "training": [*training, *priors], "sampling": sampling,
        "faults": [_fault(row) for row in codes if row["errors"]], "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def _fault(row: Row) -> str:
    size = f"{row['levels']} levels of {row['codewords']}, width {row['width']}"
    return (
        f"{row['search']} ({size}): {row['errors']:,} of {row['vectors']:,} vectors are not coded as on the CPU, "
        f"by more than {TOLERANCE:g} of a distance"
    )


_SIZE = {"search": "{search}", "L": "{levels}", "m": "{codewords}", "D": "{width}", "vectors": "{vectors:,}"}
COLUMNS = {
    "codes": {**_SIZE, "equal": "{equal:.4%}", "ties": "{ties}", "errors": "{errors}", "clearest": "{worst:.1e}"},
    "search": {
        **_SIZE, "MB": "{MB:.1f}", "ms": "{ms:,.3f}", "copy ms": "{copy_ms:,.3f}", "ratio": "{ratio:.1f}",
        "peak MB": "{peak_MB:,.0f}",
    },
    "training": {
        "trained": "{trained}", "torch.compile": "{compiled}", "batch": "{batch}", "ms a step": "{step_ms:,.1f}",
        "images/s": "{images_per_second:,.1f}", "FLOP a step": "{flop:.3e}", "share": "{matrix_share:.1%}",
        "peak MB": "{peak_MB:,.0f}", "compiled in, s": "{compile_seconds:.0f}",
        "first loss off by": "{loss_difference:.1e}", "does not work here": "{failure}",
    },
    "sampling": {
        "sampler": "{sampler}", "device": "{device}", "batch": "{batch}", "grid": "{grid[0]}x{grid[1]}",
        "ms per image": "{ms_per_image:,.2f}", "ratio": "{ratio:.2f}", "equal codes": "{equal:.2%}",
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
            ("sampling", "sampling of one level"),
        ):
            print(f"\n{title}")
            show(found[part], COLUMNS[part])
    for fault in found["faults"]:
        print(fault, file=sys.stderr)
    if found["faults"]:
        sys.exit(1)


if __name__ == "__main__":
    as_script(main)
