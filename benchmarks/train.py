"""Training throughput: this package's training step against the same model in plain form, and where its time goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import Row, as_script, finish, options, positive, preset_of, seconds
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import Config
from hrvqvae.data.batches import Batch
from hrvqvae.models.build import build
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize.search.reference import search_reference
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.state import TrainState
from hrvqvae.utils.device import Compute


class AutoencoderSide:
    """One of those that are compared: takes training steps of a batch, and quantizes alone."""

    def __init__(self, config: Config, images: torch.Tensor, *, plain: bool) -> None:
        torch.manual_seed(0)
        if plain:
            form = dataclasses.replace(config.training, precision="fp32", memory_format="contiguous")
            config = dataclasses.replace(config, training=form)
        self.compute = Compute.of(config.training)
        self.model = self.compute.place_model(build(config))
        self.quantizers = [one for one in self.model.modules() if isinstance(one, ResidualQuantizer)]
        for quantizer in self.quantizers if plain else []:
            quantizer.search = search_reference
        self.images = self.compute.place_images(images)
        with self.compute.autocast():
            self.model.initialize(self.images, torch.Generator().manual_seed(0))
        task = AutoencoderTask(config, RunFolder(Path()))
        task.compute = self.compute
        self.state = TrainState.start(self.model, config.training, task.auxiliary(self.model))
        self.step = task.step
        self.batch = Batch(images, torch.zeros(len(images), dtype=torch.long))

    def train(self) -> float:
        """Seconds of one training step."""
        spent = seconds(lambda: self.step(self.state, self.batch), self.compute.device)
        self.state.step += 1
        return spent

    def _latents(self) -> list[torch.Tensor]:
        """What each quantizer gets of the batch."""
        seen: list[torch.Tensor] = []
        hooks = [
            quantizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
            for quantizer in self.quantizers
        ]
        with torch.no_grad(), self.compute.autocast():
            self.model.eval()(self.images)
        for hook in hooks:
            hook.remove()
        self.model.train()
        return seen

    def quantize(self) -> float:
        """Seconds of what the quantizers add to a step: search, losses, their gradient, and the codebooks' update."""
        latents = [one.requires_grad_() for one in self._latents()]

        def both_ways() -> None:
            for quantizer, one in zip(self.quantizers, latents, strict=True):
                quantized = quantizer(one)
                total = torch.stack(list(quantized.losses.values())).sum()
                torch.autograd.backward([total, quantized.latents], [torch.ones_like(total), torch.ones_like(one)])

        return seconds(both_ways, self.compute.device)


def bench_train(config: Config, rounds: int = 12, *, profile: bool = False) -> list[Row]:
    """Rows with method, preset, batch, images_per_second (median step), ratio, for random images of its size.

    "plain" is the same network and quantizer in float32, with contiguous tensors and the plain search; "hrvqvae" is
    what `train` does. With `profile`, also step_seconds, quantizer_seconds and quantizer_share of a step.
    """
    data, batch = config.data, config.training.batch_size
    shape = (batch, data.channels, data.size, data.size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sides = {
        "plain": AutoencoderSide(config, images, plain=True),
        "hrvqvae": AutoencoderSide(config, images, plain=False),
    }
    steps: dict[str, list[float]] = {name: [] for name in sides}
    quantizer: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side.train()  # the first step allocates and compiles
    for _ in range(rounds):
        for name, side in sides.items():
            steps[name].append(side.train())
            if profile:
                quantizer[name].append(side.quantize())
    rows = []
    for name in sides:
        step = median(steps[name])
        row = {"method": name, "preset": config.name, "batch": batch, "images_per_second": batch / step}
        row["ratio"] = median(steps["plain"]) / step
        if profile:
            spent = median(quantizer[name])
            row |= {"step_seconds": step, "quantizer_seconds": spent, "quantizer_share": spent / step}
        rows.append(row)
    return rows


COLUMNS = {
    "method": "{method}", "preset": "{preset}", "batch": "{batch}", "images/s": "{images_per_second:.1f}",
    "ratio": "{ratio:.2f}",
}  # fmt: skip
PROFILE = {"ms a step": "{step_ms:.1f}", "quantizer, ms": "{quantizer_ms:.1f}", "its share": "{quantizer_share:.1%}"}


def main(argv: Sequence[str] | None = None) -> None:
    """Time the training of a preset's autoencoder; `--section.field VALUE` changes the preset."""
    parser = options(__doc__)
    parser.add_argument("--preset", default="hrvqvae/mnist", metavar="PRESET", help="default: hrvqvae/mnist")
    parser.add_argument("--rounds", type=positive, default=12, metavar="N", help="steps of each side (default: 12)")
    parser.add_argument("--profile", action="store_true", help="also the quantizer's share of a step")
    arguments, config = preset_of(parser, argv)
    columns = {**COLUMNS, **PROFILE} if arguments.profile else COLUMNS
    finish(bench_train(config, arguments.rounds, profile=arguments.profile), columns, arguments.json)


if __name__ == "__main__":
    as_script(main)
