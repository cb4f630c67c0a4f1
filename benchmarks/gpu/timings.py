"""What a device is timed at: matrix products, the search beside a copy of the same bytes, training and sampling."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import CPU, Row, median_seconds, seconds, side_by_side
from benchmarks.gpu.codes import SEARCHES
from benchmarks.prior import Form, PriorSide
from benchmarks.sample import preset_case
from benchmarks.search import make_problem
from benchmarks.train import AutoencoderSide
from hrvqvae.config import Config, Grid
from hrvqvae.priors.generative import sample_cached
from hrvqvae.priors.sampling import SamplingParams, sample_plain
from hrvqvae.utils.device import Compute, computes_bf16
from hrvqvae.utils.quantities import counted


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
    peaks: dict[str, Row] = {}
    for name, kind in SEARCHES.items():
        searched[name] = flat if kind.flat else books
        runs[name] = partial(kind.gpu, latents, searched[name])
        forget_peak(device)
        runs[name]()
        peaks[name] = peak_memory(device)
    spent = side_by_side({name: partial(_repeated, run, calls) for name, run in runs.items()}, rounds, device)
    rows = []
    for name, used in searched.items():
        moved = latents.nbytes + 8 * len(used) * vectors
        copy = spent["copy"] / calls * moved / (2 * latents.nbytes)
        rows.append(
            {
                "search": name, "levels": len(used), "codewords": used[0].shape[1], "width": width, "vectors": vectors,
                "bytes": moved, "seconds": spent[name] / calls, "copy_seconds": copy,
                "ratio": spent[name] / calls / copy, **peaks[name],
            }
        )  # fmt: skip
    return rows


def _autoencoder(config: Config) -> AutoencoderSide:
    """A training of the preset on random images that lie on its device."""
    data, device = config.data, Compute.of(config.training).device
    shape = (config.training.batch_size, data.channels, data.size, data.size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return AutoencoderSide(config, images.to(device), plain=False)


def flop_of_step(side: AutoencoderSide | PriorSide) -> int:
    """FLOP of the convolutions and matrix products of a step, which is taken; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        side.train()
    return int(counter.get_total_flops())


def _row(side: AutoencoderSide | PriorSide, trained: str, batch: int, steps: int, flop: int, rate: float) -> Row:
    spent = median_seconds(side.train, steps, side.compute.device)
    return {
        "trained": trained, "compiled": False, "batch": batch, "step_seconds": spent,
        "images_per_second": batch / spent, "flop": flop, "matrix_share": flop / spent / rate,
        **peak_memory(side.compute.device),
    }  # fmt: skip


def autoencoder_rows(config: Config, steps: int, rate: float, *, compiled: bool) -> list[Row]:
    """Rows with trained, compiled, batch, step_seconds, images_per_second, flop (a step), matrix_share; peak_bytes.

    The second row, where it is asked for, is the same training with the model compiled by torch.compile: it has
    compile_seconds as well, and loss_difference, of the first step's loss, relative. Where that does not work, failure
    says why and there are no figures.

    Args:
        rate: FLOP a second of a matrix product, of which matrix_share is a share.
    """
    device, batch = Compute.of(config.training).device, config.training.batch_size
    forget_peak(device)
    side = _autoencoder(config)
    first = side.step(side.state, side.batch)["loss"]
    flop = flop_of_step(side)
    rows = [_row(side, config.name, batch, steps, flop, rate)]
    del side
    if compiled:
        forget_peak(device)
        try:
            rows.append(_compiled_row(config, steps, flop, rate, first))
        except Exception as error:  # whatever the compilers raise
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            rows.append({"trained": config.name, "compiled": True, "batch": batch, "failure": reason})
        torch.compiler.reset()
    return rows


def _compiled_row(config: Config, steps: int, flop: int, rate: float, expected: float) -> Row:
    side = _autoencoder(config)
    side.model.compile()
    losses = list[float]()
    spent = seconds(lambda: losses.append(side.step(side.state, side.batch)["loss"]), side.compute.device)
    row = _row(side, config.name, config.training.batch_size, steps, flop, rate)
    difference = abs(losses[0] - expected) / abs(expected)
    return {**row, "compiled": True, "compile_seconds": spent, "loss_difference": difference}


def prior_rows(config: Config, levels: Sequence[int], steps: int, rate: float) -> list[Row]:
    """As `autoencoder_rows`, of the priors of some levels (0 is the coarsest) for random codes, not compiled."""
    device = Compute.of(config.prior.training).device
    rows = []
    for level in levels:
        forget_peak(device)
        side = PriorSide(config, range(level, level + 1), Form(bf16=computes_bf16(device)))
        flop = flop_of_step(side)
        batch = len(side.batch.codes[0])
        trained = f"{config.name}, prior of level {level + 1} ({counted(side.parameters, 'parameter')})"
        rows.append(_row(side, trained, batch, steps, flop, rate))
    return rows


def sampling_rows(device: torch.device, preset: str, grid: Grid, batches: Sequence[int]) -> list[Row]:
    """Rows with sampler, device, batch, grid, seconds_per_image; peak_bytes on a GPU.

    Of each batch two rows, of the prior of a preset's coarsest level with random weights. The second one has ratio,
    the plain sampler's time over the cached one's, and equal, the share of equal codes: one that lies at the border
    of two numbers may be drawn differently, and codes after it in its image with it.
    """
    case = preset_case(preset, 0, grid)
    there = copy.deepcopy(case.prior).to(device)
    rows = []
    for batch in (1, *batches):  # the first one loads compiled code, and does not count
        codes, known, coarser, label, uniforms = case.given(batch)
        cached, plain = [codes[0].clone()], [codes[0].to(device, copy=True)]
        placed = [one.to(device) for one in coarser], None if label is None else label.to(device)
        shared = {"batch": batch, "grid": list(grid)}
        spent = seconds(lambda: sample_cached(case.prior, cached, known, coarser, label, uniforms, SamplingParams()))  # noqa: B023
        rows.append({"sampler": "cached", "device": CPU.type, **shared, "seconds_per_image": spent / batch})
        forget_peak(device)
        other = seconds(lambda: sample_plain(there, plain, known, *placed, uniforms, SamplingParams()), device)  # noqa: B023
        rows.append(
            {
                "sampler": "plain", "device": device.type, **shared, "seconds_per_image": other / batch,
                "ratio": other / spent, "equal": float((plain[0].cpu() == cached[0]).double().mean()),
                **peak_memory(device),
            }
        )  # fmt: skip
    return rows[2:]
