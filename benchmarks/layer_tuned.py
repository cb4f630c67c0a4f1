"""TreeVQ beside VectorQuantize and ResidualVQ at equal bits in a small autoencoder, each at its
best of one search.

The autoencoder is the one of vector-quantize-pytorch's own example (examples/autoencoder.py, after
vqtorch): two convolutions with pooling down to a 7x7 grid of width 32, and two with upsampling
back. AdamW minimizes the mean absolute error in [-1, 1] plus ten times the layer's loss. Only the
quantizer differs.

The search is that of `hrvqvae compare --tune`: the same ladders of the learning rate, the decay and
the commitment weight, with the same number of trials for every layer. Trials have a quarter of the
steps and a seed of their own, and are measured on training images that are set aside. Test images
are measured once, with the settings that were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import Row, Rows, as_script, finish, options, positive
from benchmarks.tuning import SEED, open_trials
from hrvqvae.comparison.report import compare_pairs, welch
from hrvqvae.config import DataConfig
from hrvqvae.data.loading import load_images
from hrvqvae.quantize.layer import TreeVQ
from hrvqvae.utils.errors import InputError

WIDTH = 32
LOSS_WEIGHT = 10.0
SET_ASIDE = 5_000  # training images that trials are measured on
RATE = "training.learning_rate"
DECAY = "model.quantizer.decay"
COMMITMENT = "model.quantizer.beta"


class ResidualWithBeam(nn.Module):
    """Apply the library's ResidualVQ to (B, D, H, W), with a beam from the second training step on.

    Release 1.32 refuses images in ResidualVQ, and its k-means start fails with a beam.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.started = False

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, indices, loss = self.layer(
            features.flatten(2).transpose(1, 2), beam_size=4 if self.started else 1
        )
        self.started = True
        grid = features.shape[2:]
        return quantized.transpose(1, 2).unflatten(2, grid), indices.unflatten(1, grid), loss


class SmallAutoencoder(nn.Module):
    """Reconstruct images (B, 1, 28, 28) in [-1, 1]; also return the indices and the layer's
    loss.
    """

    def __init__(self, make_layer: Callable[[], nn.Module], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.MaxPool2d(2),
            nn.GELU(),
            nn.Conv2d(16, WIDTH, 3, padding=1),
            nn.MaxPool2d(2),
        )
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(WIDTH, 16, 3, padding=1),
            nn.GELU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(16, 1, 3, padding=1),
        )
        self.quantizer = make_layer()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, indices, loss = self.quantizer(self.encoder(images))
        return (
            self.decoder(quantized).clamp(-1, 1),
            indices,
            loss.sum(),
        )  # ResidualVQ returns a loss per level

    @torch.no_grad()
    def measure(self, images: Tensor, codewords: int) -> tuple[float, int]:
        """Return the mean squared error in [0, 1] and the number of leaves in use, in evaluation
        mode.
        """
        self.eval()
        squared = 0.0
        leaves = list[Tensor]()
        for batch in images.split(500):  # type: ignore[no-untyped-call]
            output, indices, _ = self(batch)
            squared += float(((output - batch).double() / 2).square().sum())
            levels = indices.unbind(-1) if indices.ndim == 4 else (indices,)
            leaf = levels[0]
            for index in levels[1:]:
                leaf = leaf * codewords + index
            leaves.append(leaf.flatten())
        return squared / images.numel(), len(np.unique(torch.cat(leaves).numpy()))


def train(
    model: SmallAutoencoder, images: Tensor, rate: float, steps: int, batch: int, seed: int
) -> None:
    """Train for so many steps; the order of the images depends on the seed alone."""
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    rng = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [
            torch.randperm(len(images), generator=rng)
            for _ in range(-(-steps * batch // len(images)))
        ]
    )
    model.train()
    for chosen in order[: steps * batch].split(batch):  # type: ignore[no-untyped-call]
        output, _, loss = model(images[chosen])
        optimizer.zero_grad()
        ((output - images[chosen]).abs().mean() + LOSS_WEIGHT * loss).backward()
        optimizer.step()


@dataclass(frozen=True)
class Shape:
    """What all layers have in common: levels of so many codewords each, and how many levels a group
    links.
    """

    levels: int
    codewords: int
    linked: int


Make = Callable[[float, float], nn.Module]
"""Return a layer with a decay and a commitment weight."""


def layers(shape: Shape) -> dict[str, tuple[Make, tuple[str, str]]]:
    """Return each layer with the defaults of its decay and commitment weight. Raises InputError
    without the library.
    """
    try:
        from vector_quantize_pytorch import ResidualVQ, VectorQuantize
    except ImportError as error:
        raise InputError(
            "this compares with vector-quantize-pytorch: pip install 'hrvqvae[bench]'"
        ) from error

    def tree(decay: float, beta: float, **fields: Any) -> nn.Module:
        return TreeVQ(
            WIDTH,
            shape.codewords,
            shape.levels,
            channel_last=False,
            decay=decay,
            beta=beta,
            **fields,
        )

    def library(make: Callable[..., nn.Module], decay: float, beta: float) -> nn.Module:
        helped = {"kmeans_init": True, "threshold_ema_dead_code": 2}
        return make(dim=WIDTH, decay=decay, commitment_weight=beta, **helped)

    flat = partial(
        VectorQuantize, codebook_size=shape.codewords**shape.levels, accept_image_fmap=True
    )
    residual = partial(ResidualVQ, num_quantizers=shape.levels, codebook_size=shape.codewords)
    ours = ("0.95", "0.25")
    theirs = ("0.8", "1.0")
    return {
        "TreeVQ, groups": (partial(tree, linked=shape.linked), ours),
        "TreeVQ": (tree, ours),
        "VectorQuantize": (partial(library, flat), theirs),
        "ResidualVQ, beam": (
            lambda decay, beta: ResidualWithBeam(library(residual, decay, beta)),
            theirs,
        ),
    }


def pixels(data: DataConfig, split: str) -> Tensor:
    """Return the images of a split, (N, 1, 28, 28) in [-1, 1]. Raises InputError where the data is
    missing.
    """
    images = load_images(data, split)
    return (
        torch.stack([torch.from_numpy(images.decode(i, None).pixels) for i in range(len(images))])
        / 127.5
        - 1
    )


def bench_layer_tuned(
    data: DataConfig,
    shape: Shape,
    steps: int = 2_000,
    batch: int = 32,
    seeds: int = 5,
    trials: int = 10,
    limit: int | None = None,
    kept: Path | None = None,
    names: Sequence[str] = (),
) -> list[Row]:
    """Search, then train every layer with each seed.

    Args:
        limit: images of each split at most.
        kept: file of rows, to go on where it stopped.
        names: layers to measure; none is all.

    Returns:
        Rows with layer, learning_rate, decay, commitment, seed, mse (of test images in [0, 1]) and
        used (leaves).

    Raises:
        InputError: vector-quantize-pytorch or the data is missing.
    """
    makes = layers(shape)
    rows = Rows(kept)
    measured = list[Row]()
    train_images, test_images = (pixels(data, split)[:limit] for split in ("train", "test"))
    aside = min(SET_ASIDE, len(train_images) // 2)

    def run(name: str, settings: tuple[tuple[str, str], ...], seed: int) -> Row:
        trial = seed == SEED
        seen, tested = (
            (train_images[aside:], train_images[:aside]) if trial else (train_images, test_images)
        )
        rate, decay, commitment = (
            float(dict(settings)[field]) for field in (RATE, DECAY, COMMITMENT)
        )
        labels: Row = {
            "layer": name,
            "learning_rate": rate,
            "decay": decay,
            "commitment": commitment,
            "seed": seed,
            "steps": max(1, steps // 4) if trial else steps,
            "batch": batch,
            "dataset": data.dataset,
            "images": len(seen),
            **asdict(shape),
        }

        def measure() -> Row:
            model = SmallAutoencoder(partial(makes[name][0], decay, commitment), seed)
            train(model, seen, rate, labels["steps"], batch, seed)
            mse, used = model.measure(tested, shape.codewords)
            return {"mse": mse, "used": used}

        return rows.get(labels, measure)

    for name in names or makes:
        start = ((RATE, "0.001"), (DECAY, makes[name][1][0]), (COMMITMENT, makes[name][1][1]))
        tried: dict[tuple[tuple[str, str], ...], float] = {}
        while wanted := open_trials(start, tried, trials):
            tried |= {settings: run(name, settings, SEED)["mse"] for settings in wanted}
        best = min(tried, key=tried.__getitem__)
        measured += [run(name, best, seed) for seed in range(seeds)]
    return measured


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return a row per layer: means over its seeds, with ratio and p (Welch) to the first layer's
    error.
    """
    errors: dict[str, list[float]] = {}
    for row in rows:
        errors.setdefault(row["layer"], []).append(row["mse"])
    first = next(iter(errors.values()))
    found = list[Row]()
    for name, values in errors.items():
        of_layer = [row for row in rows if row["layer"] == name]
        test = {"sd": stdev(values), "p": welch(values, first)} if len(values) > 1 else {}
        used = mean(row["used"] for row in of_layer)
        found.append(
            {
                **of_layer[0],
                "mse": mean(values),
                "used": used,
                "ratio": mean(values) / mean(first),
                **test,
            }
        )
    return found


COLUMNS = {
    "layer": "{layer}",
    "rate": "{learning_rate}",
    "decay": "{decay}",
    "commitment": "{commitment}",
    "MSE": "{mse:.3e} ± {sd:.1e}",
    "leaves used": "{used:.0f}",
    "ratio": "{ratio:.3f}",
    "p": "{p:.3f}",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Search, then train each layer at its best with every seed."""
    parser = options(__doc__)
    parser.add_argument("--dataset", default="fashion-mnist", metavar="NAME", help="or mnist")
    parser.add_argument(
        "--size",
        type=positive,
        nargs=3,
        default=(4, 4, 2),
        metavar=("L", "M", "G"),
        help="L levels of M codewords, in groups of G linked levels (default: 4 4 2)",
    )
    parser.add_argument(
        "--steps", type=positive, default=2_000, metavar="N", help="training steps (default: 2000)"
    )
    parser.add_argument(
        "--batch", type=positive, default=32, metavar="N", help="images per batch (default: 32)"
    )
    parser.add_argument(
        "--seeds", type=positive, default=5, metavar="K", help="seeds per layer (default: 5)"
    )
    parser.add_argument(
        "--trials", type=positive, default=10, metavar="N", help="trials per layer (default: 10)"
    )
    parser.add_argument(
        "--images", type=positive, metavar="N", help="images of each split (default: all)"
    )
    parser.add_argument(
        "--layers", nargs="+", default=(), metavar="NAME", help="layers to measure (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="keep rows as JSON lines, to go on from"
    )
    given = parser.parse_args(argv)
    data = DataConfig(dataset=given.dataset, size=28, channels=1)
    shape = Shape(*given.size)
    rows = bench_layer_tuned(
        data,
        shape,
        given.steps,
        given.batch,
        given.seeds,
        given.trials,
        given.images,
        given.out,
        given.layers,
    )
    finish(summary(rows), COLUMNS, given.json)
    if not given.json:
        print(f"\n{compare_pairs([{**row, 'system': row['layer']} for row in rows])}")


if __name__ == "__main__":
    as_script(main)
