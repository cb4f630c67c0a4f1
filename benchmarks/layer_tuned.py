"""TreeVQ beside VectorQuantize and ResidualVQ at equal bits, each at its best of one grid, in a small autoencoder.

The autoencoder is that of the library's own example (examples/autoencoder.py of lucidrains/vector-quantize-pytorch,
after vqtorch): two convolutions with pooling down to a 7x7 grid of width 32, and two with upsampling back; AdamW at
3e-4 on the mean absolute error in [-1, 1] and ten times the layer's loss. Written anew; only the quantizer differs.

The grid is decay and commitment weight; every layer starts by k-means and restarts dead codewords. It is searched for
the first number of steps, with a seed of its own, on training images that are set aside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import Row, as_script, finish, options, positive
from hrvqvae.comparison.report import welch
from hrvqvae.config import DataConfig
from hrvqvae.data.batches import batches
from hrvqvae.data.image_sets import ImageSet
from hrvqvae.data.loading import load_images
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

    def step(self, images: Tensor) -> None:
        output, _, loss = self.model(images)
        total = (output - images).abs().mean() + WEIGHT * loss
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

    @torch.no_grad()
    def measure(self, images: Tensor, codewords: int) -> tuple[float, Tensor]:
        """Mean squared error in [0, 1], and the leaf of each position, of a model in evaluation."""
        self.model.eval()
        squared = 0.0
        leaves: list[Tensor] = []
        for some in images.split(500):  # type: ignore[no-untyped-call]
            output, indices, _ = self.model(some)
            squared += float(((output - some).double() / 2).square().sum())
            number = torch.zeros_like(indices[..., 0]) if indices.ndim == 4 else indices
            for code in indices.unbind(-1) if indices.ndim == 4 else ():
                number = number * codewords + code
            leaves.append(number.flatten())
        return squared / images.numel(), torch.cat(leaves)


GRID = [(decay, weight) for decay in (0.8, 0.95, 0.99) for weight in (0.25, 1.0, 4.0)]
SEARCH_SEED, SET_ASIDE = 1_000, 1 / 12  # share of the training images


def candidates(levels: int, codewords: int) -> dict[str, list[Make]]:
    """Every layer with each point of the grid; TreeVQ also with a greedy search and every level's own commitment."""

    def tree(**fields: Any) -> list[Make]:
        make = partial(TreeVQ, WIDTH, codewords, levels, channel_last=False, **fields)
        return [partial(make, decay=decay, beta=weight) for decay, weight in GRID]

    def library(make: Callable[..., nn.Module]) -> list[Make]:
        helped = partial(make, kmeans_init=True, threshold_ema_dead_code=2)
        return [partial(helped, decay=decay, commitment_weight=weight) for decay, weight in GRID]

    return {
        "TreeVQ": tree(),
        "TreeVQ, greedy": tree(beam=1, coarse_weight=0.0, level_betas=()),
        "VectorQuantize": library(flat_of(levels, codewords)),
        "ResidualVQ": library(residual_of(levels, codewords)),
    }


def _train(makes: Sequence[Make], steps: int, seed: int, images: ImageSet, batch_size: int) -> list[Side]:
    """All of them, a step each in turn, on the same batches."""
    sides = [Side(make, seed) for make in makes]
    stream = batches(images, batch_size=batch_size, seed=seed, workers=0)
    for _, batch in zip(range(steps), stream, strict=False):
        for side in sides:
            side.step(batch.images.float() / 127.5 - 1)
    return sides


def _used(leaf: Tensor) -> int:
    return int((torch.bincount(leaf.flatten()) > 0).sum())


def bench_layer_tuned(
    data: DataConfig, levels: int = 4, codewords: int = 4, steps: Sequence[int] = (400, 2000), batch_size: int = 64,
    seeds: int = 3, test_images: int = 10_000,
) -> list[Row]:  # fmt: skip
    """Rows with layer, decay, weight, steps, mse and sd (over the seeds, of test images in [0, 1]), used (leaves), and
    ratio and p (Welch) to TreeVQ's mse.

    Raises InputError where vector-quantize-pytorch is missing, or the data is not there.
    """
    makes, search = candidates(levels, codewords), replace(data, validation=SET_ASIDE)
    rest, aside = load_images(search, "train"), load_images(search, "test")
    held_out, images = pixels(aside, len(aside)), load_images(data, "train")
    best: dict[str, int] = {}
    for name, some in makes.items():
        sides = _train(some, steps[0], SEARCH_SEED, rest, batch_size)
        best[name] = int(np.argmin([side.measure(held_out, codewords)[0] for side in sides]))
    test, rows = pixels(load_images(data, "test"), test_images), list[Row]()
    for most in steps:
        first: list[float] = []
        for name, place in best.items():
            sides = [_train([makes[name][place]], most, seed, images, batch_size)[0] for seed in range(seeds)]
            measured = [side.measure(test, codewords) for side in sides]
            errors = [one[0] for one in measured]
            first = first or errors
            rows.append(
                {
                    "layer": name, "decay": GRID[place][0], "weight": GRID[place][1], "steps": most,
                    "mse": mean(errors), "sd": stdev(errors), "used": mean(_used(one[1]) for one in measured),
                    "ratio": mean(errors) / mean(first), "p": welch(errors, first),
                }
            )  # fmt: skip
    return rows


COLUMNS = {
    "layer": "{layer}", "decay": "{decay}", "commitment": "{weight}", "steps": "{steps:,}",
    "MSE": "{mse:.3e} ± {sd:.1e}", "leaves used": "{used:.0f}", "ratio": "{ratio:.3f}", "p": "{p:.3f}",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Search the grid, then train each layer at its best with every seed."""
    parser = options(__doc__)
    parser.add_argument("--dataset", default="fashion-mnist", metavar="NAME", help="or mnist")
    parser.add_argument(
        "--size", type=positive, nargs=2, default=(4, 4), metavar=("L", "M"), help="L levels of M words"
    )
    parser.add_argument("--steps", type=positive, nargs="+", default=(400, 2000), metavar="N", help="default: 400 2000")
    parser.add_argument("--seeds", type=positive, default=3, metavar="K", help="two or more (default: 3)")
    parser.add_argument("--images", type=positive, default=10_000, metavar="N", help="test images (default: 10000)")
    arguments = parser.parse_args(argv)
    data = DataConfig(dataset=arguments.dataset, size=28, channels=1)
    levels, codewords = arguments.size
    count = {"seeds": arguments.seeds, "test_images": arguments.images}
    rows = bench_layer_tuned(data, levels, codewords, arguments.steps, **count)
    finish(rows, COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
