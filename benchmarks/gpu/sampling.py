"""Sampling: the CPU's cached sampler beside the plain one for a whole batch on a device, from the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from benchmarks.gpu.speed import forget_peak, peak_memory
from benchmarks.sample import preset_case
from benchmarks.timing import CPU, Timing, seconds
from hrvqvae.config import Grid
from hrvqvae.priors.generative import sample_cached
from hrvqvae.priors.sampling import SamplingParams, sample_plain


def sampling_rows(device: torch.device, preset: str, grid: Grid, batches: Sequence[int]) -> list[Timing]:
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
