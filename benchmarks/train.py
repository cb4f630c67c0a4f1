"""Time a training step against that of the same model in plain form, and the quantizer's share."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    Row,
    as_script,
    finish,
    options,
    parse_lines,
    preset_of,
    side_by_side,
)
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import Config
from hrvqvae.data.batches import Batch
from hrvqvae.models.build import build
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.state import TrainState
from hrvqvae.utils.device import Compute


def plain_search(
    latents: torch.Tensor, codebooks: Sequence[torch.Tensor], **_: Any
) -> torch.Tensor:
    """Search greedily as the definition says, codeword by codeword."""
    residual = latents
    index = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
    indices = []
    for codebook in codebooks:
        children = range(codebook.shape[1])
        distances = [(residual - codebook[:, child][index]).square().sum(-1) for child in children]
        index = index * len(children) + torch.stack(distances, 1).argmin(1)
        residual = residual - codebook.flatten(0, 1)[index]
        indices.append(index)
    return torch.stack(indices)


class AutoencoderSide:
    """An autoencoder with a batch of random images to train on; it can also run its quantizers
    alone.
    """

    def __init__(self, config: Config, *, plain: bool) -> None:
        torch.manual_seed(0)
        if plain:
            plain_form = {
                "training.precision": "fp32",
                "training.memory_format": "contiguous",
            }
            config = config.replace(**plain_form)
        self.compute = Compute(config.training)
        self.model = self.compute.place_model(build(config))
        self.quantizers = [
            module for module in self.model.modules() if isinstance(module, ResidualQuantizer)
        ]
        if plain:
            for quantizer in self.quantizers:
                quantizer.search = plain_search
        rng = torch.Generator().manual_seed(0)
        shape = (config.training.batch_size, config.data.channels, *config.data.image_size)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=rng)
        images = images.to(self.compute.device)
        self.images = self.compute.place_images(images)
        with self.compute.autocast():
            self.model.initialize(self.images, rng.manual_seed(0))
        task = AutoencoderTask(config, RunFolder(Path()))
        task.compute = self.compute
        self.state = TrainState.start(self.model, config.training, task.build_objective())
        self.step = task.step
        self.batch = Batch(images, torch.zeros(len(images), dtype=torch.long))

    def train(self) -> None:
        """Take a training step."""
        self.step(self.state, self.batch)
        self.state.step += 1

    def quantizer_bytes(self) -> int:
        """Return the bytes of the quantizers' parameters and buffers."""
        modules = torch.nn.ModuleList(self.quantizers)
        return sum(value.nbytes for value in (*modules.parameters(), *modules.buffers()))

    def prepare_quantizers(self) -> Callable[[], object]:
        """Return a call of the quantizers' part of a step: search, losses, gradients, and updates
        of the codebooks.
        """
        inputs: list[tuple[ResidualQuantizer, torch.Tensor]] = []
        hooks = [
            quantizer.register_forward_pre_hook(
                lambda quantizer, args: inputs.append((quantizer, args[0].detach()))
            )
            for quantizer in self.quantizers
        ]
        with torch.no_grad(), self.compute.autocast():
            self.model.eval()(self.images)
        for hook in hooks:
            hook.remove()
        self.model.train()

        def quantize() -> None:
            for quantizer, latents in inputs:
                quantized = quantizer(latents.requires_grad_())
                total = torch.stack(list(quantized.losses.values())).sum()
                gradients = [torch.ones_like(total), torch.ones_like(latents)]
                torch.autograd.backward([total, quantized.latents], gradients)

        return quantize


def bench_train(config: Config, rounds: int = 12) -> list[Row]:
    """Return rows with method, preset, batch, images_per_second, ratio, step_seconds,
    quantizer_seconds, share and megabytes of the quantizers' parameters and buffers.

    "plain" is the same network and quantizer in float32, with contiguous tensors and the plain
    search. "hrvqvae" is the step of `hrvqvae train`.
    """
    sides = {name: AutoencoderSide(config, plain=name == "plain") for name in ("plain", "hrvqvae")}
    calls: dict[str, Callable[[], object]] = {name: side.train for name, side in sides.items()}
    calls |= {f"{name}, quantizer": side.prepare_quantizers() for name, side in sides.items()}
    spent = side_by_side(calls, rounds, sides["plain"].compute.device)
    batch = config.training.batch_size
    return [
        {
            "method": name,
            "preset": config.name,
            "batch": batch,
            "images_per_second": batch / spent[name],
            "ratio": spent["plain"] / spent[name],
            "step_seconds": spent[name],
            "quantizer_seconds": spent[f"{name}, quantizer"],
            "share": spent[f"{name}, quantizer"] / spent[name],
            "megabytes": side.quantizer_bytes() / 1e6,
        }
        for name, side in sides.items()
    ]


def bench_sizes(config: Config, sizes: Sequence[str], rounds: int) -> list[Row]:
    """Return rows with preset, size, batch, precision and images_per_second of one CPU core.

    The time is this process's own, so that other processes hardly count.
    """
    torch.set_num_threads(1)
    rows = list[Row]()
    for size in sizes:
        side = AutoencoderSide(config.replace(**{"data.size": size}), plain=False)
        side.train()
        begun = time.process_time()
        for _ in range(rounds):
            side.train()
        spent = time.process_time() - begun
        batch = config.training.batch_size
        rows.append(
            {
                "preset": config.name,
                "size": size,
                "batch": batch,
                "precision": side.compute.precision,
                "images_per_second": rounds * batch / spent,
            }
        )
    return rows


COLUMNS_OF_SIZES = parse_lines("""
preset: {preset}
pixels: {size}
batch: {batch}
precision: {precision}
images/s: {images_per_second:.1f}
""")
COLUMNS = parse_lines("""
method: {method}
preset: {preset}
batch: {batch}
images/s: {images_per_second:.1f}
ratio: {ratio:.2f}
ms per step: {step_ms:.1f}
quantizer, ms: {quantizer_ms:.1f}
quantizer's share: {share:.1%}
its MB: {megabytes:.1f}
""")


def main(argv: Sequence[str] | None = None) -> None:
    """Time the training of a preset's autoencoder; `--section.field VALUE` changes the preset."""
    parser = options(__doc__, rounds=(12, "steps of each side"))
    parser.add_argument(
        "--preset", default="hrvqvae/mnist", metavar="PRESET", help="default: hrvqvae/mnist"
    )
    parser.add_argument(
        "--sizes", nargs="+", metavar="SIZE", help="time images of these sizes on one CPU core"
    )
    arguments, config = preset_of(parser, argv)
    if arguments.sizes:
        rows = bench_sizes(config, arguments.sizes, arguments.rounds)
        finish(rows, COLUMNS_OF_SIZES, arguments.json)
        return
    finish(bench_train(config, arguments.rounds), COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
