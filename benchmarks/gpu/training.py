"""Training on a device: images a second, and the share of the rate of matrix products that the steps reach."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.speed import forget_peak, peak_memory
from benchmarks.prior import Form, PriorSide
from benchmarks.timing import Timing, seconds
from benchmarks.train import AutoencoderSide
from hrvqvae.config import Config
from hrvqvae.utils.device import Compute, computes_bf16
from hrvqvae.utils.quantities import counted

_WARM_UP = 2  # steps that do not count: they allocate and choose kernels


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


def _timed(side: AutoencoderSide | PriorSide, steps: int) -> float:
    """Median seconds of a step."""
    for _ in range(_WARM_UP):
        side.train()
    return median(side.train() for _ in range(steps))


def _row(side: AutoencoderSide | PriorSide, trained: str, batch: int, steps: int, flop: int, rate: float) -> Timing:
    spent = _timed(side, steps)
    return {
        "trained": trained, "compiled": False, "batch": batch, "step_seconds": spent,
        "images_per_second": batch / spent, "flop": flop, "matrix_share": flop / spent / rate,
        **peak_memory(side.compute.device),
    }  # fmt: skip


def autoencoder_rows(config: Config, steps: int, rate: float, *, compiled: bool) -> list[Timing]:
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


def _compiled_row(config: Config, steps: int, flop: int, rate: float, expected: float) -> Timing:
    side = _autoencoder(config)
    side.model.compile()
    losses = list[float]()
    spent = seconds(lambda: losses.append(side.step(side.state, side.batch)["loss"]), side.compute.device)
    row = _row(side, config.name, config.training.batch_size, steps, flop, rate)
    difference = abs(losses[0] - expected) / abs(expected)
    return {**row, "compiled": True, "compile_seconds": spent, "loss_difference": difference}


def prior_rows(config: Config, levels: Sequence[int], steps: int, rate: float) -> list[Timing]:
    """As `autoencoder_rows`, of the priors of some levels (0 is the coarsest) for random codes, not compiled."""
    device = Compute.of(config.prior.training).device
    rows = []
    for level in levels:
        forget_peak(device)
        side = PriorSide(config, range(level, level + 1), Form(bf16=computes_bf16(device)))
        flop = flop_of_step(side)
        batch = len(side.batch)
        trained = f"{config.name}, prior of level {level + 1} ({counted(side.parameters, 'parameter')})"
        rows.append(_row(side, trained, batch, steps, flop, rate))
    return rows
