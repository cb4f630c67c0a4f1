"""TreeVQ beside vector-quantize-pytorch's layers at equal bits, in a small convolutional autoencoder that is not ours.

The autoencoder is that of the library's own example (examples/autoencoder.py of lucidrains/vector-quantize-pytorch,
after vqtorch): two convolutions with pooling down to a 7x7 grid of width 32, and two with upsampling back; AdamW at
3e-4 on the mean absolute error in [-1, 1] and ten times the layer's loss. Written anew; only the quantizer differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import Row, as_script, finish, options, positive, side_by_side
from hrvqvae.config import DataConfig
from hrvqvae.data.batches import batches
from hrvqvae.data.image_sets import ImageSet
from hrvqvae.data.loading import load_images
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.layer import TreeVQ
from hrvqvae.utils.errors import InputError

WIDTH, WEIGHT, RATE = 32, 10.0, 3e-4

Make = Callable[[], nn.Module]


class _OfPositions(nn.Module):
    """A layer that takes (B, N, D), for (B, D, H, W): release 1.32 of the library refuses images in ResidualVQ."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, indices, loss = self.layer(features.flatten(2).transpose(1, 2))
        grid = features.shape[2:]
        return quantized.transpose(1, 2).unflatten(2, grid), indices.unflatten(1, grid), loss


class SmallAutoencoder(nn.Module):
    """(B, 1, 28, 28) in [-1, 1] -> the same, indices (B, 7, 7) or (B, 7, 7, L), and the layer's loss."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.MaxPool2d(2), nn.GELU(),
            nn.Conv2d(16, WIDTH, 3, padding=1), nn.MaxPool2d(2),
        )  # fmt: skip
        self.quantizer = quantizer
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, 16, 3, padding=1), nn.GELU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(16, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, indices, loss = self.quantizer(self.encoder(images))
        return self.decoder(quantized).clamp(-1, 1), indices, loss.sum()  # ResidualVQ gives a loss for each level


def _library() -> Any:
    """Raises InputError where vector-quantize-pytorch is missing."""
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise InputError("this compares with vector-quantize-pytorch: pip install 'hrvqvae[bench]'") from error
    return vector_quantize_pytorch


def flat_of(levels: int, codewords: int) -> Callable[..., nn.Module]:
    """VectorQuantize of as many codewords as the tree has leaves, by options. Raises InputError without the library."""
    size = codewords**levels
    return partial(_library().VectorQuantize, dim=WIDTH, codebook_size=size, accept_image_fmap=True)


def residual_of(levels: int, codewords: int) -> Callable[..., nn.Module]:
    """ResidualVQ of as many levels, by options. Raises InputError without the library."""
    make = partial(_library().ResidualVQ, dim=WIDTH, num_quantizers=levels, codebook_size=codewords)
    return lambda **options: _OfPositions(make(**options))


def layers(levels: int, codewords: int) -> dict[str, Make]:
    """What is compared, all at levels * log2(codewords) bits a position; the library's by default and at its best.

    Raises:
        InputError: vector-quantize-pytorch is missing.
    """
    flat, residual = flat_of(levels, codewords), residual_of(levels, codewords)
    helped: dict[str, Any] = {"kmeans_init": True, "threshold_ema_dead_code": 2}
    return {
        "TreeVQ": lambda: TreeVQ(WIDTH, codewords, levels, channel_last=False),
        "VectorQuantize": flat,
        "VectorQuantize, k-means, dead-code restart": partial(flat, **helped),
        "ResidualVQ": residual,
        "ResidualVQ, k-means, dead-code restart": partial(residual, **helped),
    }


def pixels(images: ImageSet, count: int) -> Tensor:
    """The first images of a set, (count, 1, 28, 28) in [-1, 1]."""
    return torch.stack([torch.from_numpy(images.decode(index, None).pixels) for index in range(count)]) / 127.5 - 1


class Side:
    """One layer in its autoencoder: the same start, the same batches."""

    def __init__(self, make: Make, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = SmallAutoencoder(nn.Identity())
        self.model.quantizer = make()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), RATE)
        self.seconds: list[float] = []

    def step(self, images: Tensor) -> None:
        begun = perf_counter()
        output, _, loss = self.model(images)
        total = (output - images).abs().mean() + WEIGHT * loss
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.seconds.append(perf_counter() - begun)

    def quantize(self, latents: Tensor) -> None:
        """The quantizer alone, both ways."""
        found, _, loss = self.model.quantizer(latents)
        (found.sum() + loss.sum()).backward()

    @torch.no_grad()
    def measure(self, images: Tensor, codewords: int) -> tuple[float, float, Tensor]:
        """Mean squared and absolute error in [0, 1], and how often each leaf is chosen, of a model in evaluation."""
        self.model.eval()
        squared = absolute = 0.0
        leaves: list[Tensor] = []
        for some in images.split(500):  # type: ignore[no-untyped-call]
            output, indices, _ = self.model(some)
            error = (output - some).double() / 2
            squared += float(error.square().sum())
            absolute += float(error.abs().sum())
            number = torch.zeros_like(indices[..., 0]) if indices.ndim == 4 else indices
            for code in indices.unbind(-1) if indices.ndim == 4 else ():
                number = number * codewords + code
            leaves.append(number.flatten())
        return squared / images.numel(), absolute / images.numel(), torch.cat(leaves)


def bench_layer(
    data: DataConfig, levels: int = 4, codewords: int = 4, steps: int = 2000, batch_size: int = 128, seed: int = 0,
    test_images: int = 10_000, rounds: int = 20,
) -> list[Row]:  # fmt: skip
    """Rows with layer, bits (a position), mse and mae (of test images, in [0, 1]), used, leaves, usage and perplexity
    (of the m^L leaves), step_seconds, quantizer_seconds, and their ratios to TreeVQ's.

    All layers train in turns, a step each, on the same batches. `step_seconds` is the median of a whole step after the
    first fifth, `quantizer_seconds` that of `rounds` runs of the layer alone, forward and backward.

    Raises:
        InputError: vector-quantize-pytorch is missing, or the data is not there.
    """
    images, test = load_images(data, "train"), load_images(data, "test")
    sides = {name: Side(make, seed) for name, make in layers(levels, codewords).items()}
    stream = batches(images, batch_size=batch_size, seed=seed, workers=0)
    for _, batch in zip(range(steps), stream, strict=False):
        scaled = batch.images.float() / 127.5 - 1
        for side in sides.values():
            side.step(scaled)
    latents = {name: side.model.encoder(scaled).detach().requires_grad_() for name, side in sides.items()}
    alone = {name: partial(side.quantize, latents[name]) for name, side in sides.items()}
    times = side_by_side(alone, rounds)
    held_out, rows = pixels(test, test_images), list[Row]()
    for name, side in sides.items():
        squared, absolute, leaf = side.measure(held_out, codewords)
        count = vq.counts(leaf, codewords**levels)
        rows.append(
            {
                "layer": name, "bits": levels * math.log2(codewords), "mse": squared, "mae": absolute,
                "used": int((count > 0).sum()), "leaves": len(count), "usage": float((count > 0).double().mean()),
                "perplexity": vq.perplexity(count), "step_seconds": median(side.seconds[steps // 5 :]),
                "quantizer_seconds": times[name],
            }
        )  # fmt: skip
    for row in rows:
        for name in ("step", "quantizer"):
            row[f"{name}_ratio"] = row[f"{name}_seconds"] / rows[0][f"{name}_seconds"]
    return rows


COLUMNS = {
    "layer": "{layer}", "MSE": "{mse:.3e}", "MAE": "{mae:.4f}", "used": "{used:,} of {leaves:,}",
    "usage": "{usage:.1%}", "perplexity": "{perplexity:.1f}", "step ms": "{step_ms:.1f}",
    "ratio": "{step_ratio:.2f}",
    "layer alone ms": "{quantizer_ms:.2f}", "ratio, alone": "{quantizer_ratio:.2f}",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Train every layer on Fashion-MNIST."""
    parser = options(__doc__)
    parser.add_argument(
        "--size", type=positive, nargs=2, default=(4, 4), metavar=("L", "M"), help="L levels of M words"
    )
    parser.add_argument("--steps", type=positive, default=2000, metavar="N", help="of each layer (default: 2000)")
    parser.add_argument("--batch", type=positive, default=128, metavar="N", help="images a step (default: 128)")
    parser.add_argument("--images", type=positive, default=10_000, metavar="N", help="test images (default: 10000)")
    parser.add_argument("--rounds", type=positive, default=20, metavar="N", help="calls of a layer alone (default: 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    arguments = parser.parse_args(argv)
    data = DataConfig(dataset="fashion-mnist", size=28, channels=1)
    levels, codewords = arguments.size
    rows = bench_layer(
        data, levels, codewords, arguments.steps, arguments.batch, arguments.seed, arguments.images, arguments.rounds
    )
    finish(rows, COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
