"""What a device reaches at best, and how far the search is from copying the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.codes import SEARCHES
from benchmarks.search import make_problem
from benchmarks.timing import Timing, median_seconds, side_by_side


def matrix_rate(device: torch.device, side: int, bf16: bool, rounds: int) -> float:
    """FLOP a second of a product of two square matrices with so many rows, in bfloat16 or float32."""
    kind = torch.bfloat16 if bf16 else torch.float32
    one, other = (torch.rand(side, side, device=device).to(kind) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: one @ other, rounds, device)


def forget_peak(device: torch.device) -> None:
    """From here on `peak_memory` counts."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> Timing:
    """peak_bytes: the most that tensors have held on a GPU since `forget_peak`; nothing on a CPU."""
    return {"peak_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}


def _repeated(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


@torch.inference_mode()
def search_rows(
    device: torch.device, vectors: int, tree: tuple[int, int, int], rounds: int, calls: int
) -> list[Timing]:
    """Rows with search, levels, codewords, width, vectors, bytes, seconds, copy_seconds, ratio; peak_bytes on a GPU.

    bytes are those that must move: latents (N, D) float32 in, codes (L, N) int64 and z_q (N, D) float32 out.
    copy_seconds is what they take at the rate of a copy of the latents, timed by turns with the searches.

    Args:
        tree: (levels, codewords a codebook, width); the flat codebook has as many codewords as it has leaves.
        calls: that are timed together, so that a GPU is not waited for after each.
    """
    levels, codewords, width = tree
    case = make_problem(levels, codewords, vectors, width)
    latents, books = case.latents.to(device), [book.to(device) for book in case.books]
    flat = [case.flat.to(device).unsqueeze(0)]
    target = torch.empty_like(latents)
    runs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(latents)}
    searched: dict[str, list[Tensor]] = {}
    peaks: dict[str, Timing] = {}
    for name, kind in SEARCHES.items():
        searched[name] = flat if kind.flat else books
        runs[name] = partial(kind.gpu, latents, searched[name])
        forget_peak(device)
        runs[name]()
        peaks[name] = peak_memory(device)
    spent = side_by_side({name: partial(_repeated, run, calls) for name, run in runs.items()}, rounds, device)
    rows = []
    for name, used in searched.items():
        moved = 2 * latents.nbytes + 8 * len(used) * vectors
        copy = spent["copy"] / calls * moved / (2 * latents.nbytes)
        rows.append(
            {
                "search": name, "levels": len(used), "codewords": used[0].shape[1], "width": width, "vectors": vectors,
                "bytes": moved, "seconds": spent[name] / calls, "copy_seconds": copy,
                "ratio": spent[name] / calls / copy, **peaks[name],
            }
        )  # fmt: skip
    return rows
