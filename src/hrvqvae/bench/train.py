"""Training throughput: this package's training step against the same model in plain form."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from hrvqvae.config import Config
from hrvqvae.data import Batch
from hrvqvae.models import build
from hrvqvae.training.autoencoder import AutoencoderStep
from hrvqvae.training.device import Compute
from hrvqvae.training.state import TrainState


def _stepper(config: Config, images: torch.Tensor) -> Callable[[], float]:
    """A function that takes one training step and returns its seconds."""
    torch.manual_seed(0)
    compute = Compute.of(config.training)
    model = compute.place_model(build(config))
    with compute.autocast():
        model.initialize(compute.place_images(images), torch.Generator().manual_seed(0))
    state = TrainState.start(model, config.training)
    step = AutoencoderStep(model, config, compute)
    batch = Batch(images, torch.zeros(len(images), dtype=torch.long))

    def run() -> float:
        begun = time.perf_counter()
        step(state, batch)
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        state.step += 1
        return time.perf_counter() - begun

    return run


def bench_train(config: Config, rounds: int = 12) -> list[dict[str, Any]]:
    """Rows with method, preset, batch, images_per_second (median step), for random images of the preset's size.

    "plain" is the same network and quantizer in float32 with contiguous tensors; "hrvqvae" is what `train` does.
    """
    data, batch = config.data, config.training.batch_size
    images = torch.randint(
        256, (batch, data.channels, data.size, data.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    plain_form = dataclasses.replace(config.training, precision="fp32", memory_format="contiguous")
    plain = dataclasses.replace(config, training=plain_form)
    steppers = {"plain": _stepper(plain, images), "hrvqvae": _stepper(config, images)}
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for run in steppers.values():
        run()  # the first step allocates
    for _ in range(rounds):
        for name, run in steppers.items():
            seconds[name].append(run())
    return [
        {"method": name, "preset": config.name, "batch": batch, "images_per_second": batch / median(times)}
        for name, times in seconds.items()
    ]
