"""TreeVQ beside VectorQuantize and ResidualVQ at equal bits in a small autoencoder, each at its
best of one search.

The autoencoder is the one of vector-quantize-pytorch's own example (examples/autoencoder.py, after
vqtorch): two convolutions with pooling down to a 7x7 grid of width 32, and two with upsampling
back. AdamW minimizes the mean absolute error in [-1, 1] plus ten times the layer's loss. Only the
quantizer differs.

The search is that of `python -m benchmarks.compare --tune`: the same ladders of the learning rate,
the decay and the commitment weight, with the same number of trials for every layer. Trials have a
quarter of the steps and a seed of their own, and are measured on training images that are set
aside. Test images are measured once, with the settings that were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import (
    Row,
    Rows,
    as_script,
    finish,
    import_rival,
    options,
    positive,
    read_images,
)
from benchmarks.laboratory.report import compare_pairs
from benchmarks.laboratory.settings import LADDERS, SEED, Settings, open_trials
from hrvqvae.config import DataConfig
from hrvqvae.quantize.layer import TreeVQ

DATA = DataConfig(dataset="fashion-mnist", size=28, channels=1)
WIDTH = 32
LEVELS = 4
CODEWORDS = 4
LINKED = 2  # levels of a group
BATCH = 32
LOSS_WEIGHT = 10.0
SET_ASIDE = 5_000  # training images that trials are measured on
RATE, DECAY, COMMITMENT = LADDERS


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


def train(model: SmallAutoencoder, images: Tensor, rate: float, steps: int, seed: int) -> None:
    """Train for so many steps; the order of the images depends on the seed alone."""
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    rng = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [
            torch.randperm(len(images), generator=rng)
            for _ in range(-(-steps * BATCH // len(images)))
        ]
    )
    model.train()
    for chosen in order[: steps * BATCH].split(BATCH):  # type: ignore[no-untyped-call]
        output, _, loss = model(images[chosen])
        optimizer.zero_grad()
        ((output - images[chosen]).abs().mean() + LOSS_WEIGHT * loss).backward()
        optimizer.step()


Make = Callable[[float, float], nn.Module]
"""Return a layer with a decay and a commitment weight."""


def make_layers() -> dict[str, tuple[Make, tuple[str, str]]]:
    """Return each layer with the defaults of its decay and commitment weight.

    Raises InputError without the library.
    """
    library = import_rival("vector_quantize_pytorch")
    helped = {"kmeans_init": True, "threshold_ema_dead_code": 2}
    ours = ("0.95", "0.25")
    theirs = ("0.8", "1.0")

    def tree(decay: float, beta: float, linked: int = 0) -> nn.Module:
        fields: Any = {"decay": decay, "beta": beta, "linked": linked}
        return TreeVQ(WIDTH, CODEWORDS, LEVELS, channel_last=False, **fields)

    def flat(decay: float, beta: float) -> nn.Module:
        fields = {"decay": decay, "commitment_weight": beta, **helped}
        layer: nn.Module = library.VectorQuantize(
            dim=WIDTH, codebook_size=CODEWORDS**LEVELS, accept_image_fmap=True, **fields
        )
        return layer

    def residual(decay: float, beta: float) -> nn.Module:
        fields = {"decay": decay, "commitment_weight": beta, **helped}
        layer = library.ResidualVQ(
            dim=WIDTH, num_quantizers=LEVELS, codebook_size=CODEWORDS, **fields
        )
        return ResidualWithBeam(layer)

    return {
        "TreeVQ, groups": (partial(tree, linked=LINKED), ours),
        "TreeVQ": (tree, ours),
        "VectorQuantize": (flat, theirs),
        "ResidualVQ, beam": (residual, theirs),
    }


def bench_layer_tuned(
    steps: int, trials: int, seeds: int, limit: int | None, kept: Path | None
) -> list[Row]:
    """Search, then train every layer with each seed.

    Rows have layer, learning_rate, decay, commitment, seed, mse (of test images in [0, 1]) and used
    (leaves). `limit` is a number of images of each split, `kept` a file of rows, to go on where it
    stopped. Raises InputError if vector-quantize-pytorch or the data is missing.
    """
    layers = make_layers()
    rows = Rows(kept)
    splits = (read_images(DATA, limit, split) for split in ("train", "test"))
    train_images, test_images = (images.float() / 127.5 - 1 for images in splits)
    aside = min(SET_ASIDE, len(train_images) // 2)

    def run(name: str, settings: Settings, seed: int) -> Row:
        seen, tested, count = train_images, test_images, steps
        if seed == SEED:  # a trial
            seen, tested = train_images[aside:], train_images[:aside]
            count = max(1, steps // 4)
        rate, decay, commitment = (float(value) for _, value in settings)
        labels: Row = {
            "layer": name,
            "learning_rate": rate,
            "decay": decay,
            "commitment": commitment,
            "seed": seed,
            "steps": count,
            "images": len(seen),
        }

        def measure() -> Row:
            model = SmallAutoencoder(partial(layers[name][0], decay, commitment), seed)
            train(model, seen, rate, count, seed)
            mse, used = model.measure(tested, CODEWORDS)
            return {"mse": mse, "used": used}

        return rows.get(labels, measure)

    measured = list[Row]()
    for name, (_, (decay, commitment)) in layers.items():
        # search, by training images that are set aside
        start = ((RATE, "0.001"), (DECAY, decay), (COMMITMENT, commitment))
        tried: dict[Settings, float] = {}
        while wanted := open_trials(start, tried, trials):
            tried |= {settings: run(name, settings, SEED)["mse"] for settings in wanted}

        # measure the best settings once, by test images
        best = min(tried, key=tried.__getitem__)
        measured += [run(name, best, seed) for seed in range(seeds)]
    return measured


COLUMNS = {
    "layer": "{layer}",
    "rate": "{learning_rate}",
    "decay": "{decay}",
    "commitment": "{commitment}",
    "seed": "{seed}",
    "MSE": "{mse:.3e}",
    "leaves used": "{used:.0f}",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Search, then train each layer at its best with every seed."""
    parser = options(__doc__)
    parser.add_argument(
        "--steps", type=positive, default=2_000, metavar="N", help="(default: 2000)"
    )
    parser.add_argument("--seeds", type=positive, default=5, metavar="K", help="(default: 5)")
    parser.add_argument("--trials", type=positive, default=10, metavar="N", help="(default: 10)")
    parser.add_argument("--images", type=positive, metavar="N", help="of each split (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep rows, to go on from")
    arguments = parser.parse_args(argv)
    rows = bench_layer_tuned(
        arguments.steps, arguments.trials, arguments.seeds, arguments.images, arguments.out
    )
    finish(rows, COLUMNS, arguments.json)
    if not arguments.json:
        print(f"\n{compare_pairs(rows, 'layer')}")


if __name__ == "__main__":
    as_script(main)
