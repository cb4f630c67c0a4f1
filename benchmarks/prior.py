"""Time the training of the priors of presets' coarsest levels, side by side, on random codes."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.common import Row, as_script, finish, options, parse_lines, side_by_side
from hrvqvae.config import Config, Levels, presets
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import build
from hrvqvae.priors.base import Prior, build_prior
from hrvqvae.priors.generative import sample_codes
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.quantize import Codes
from hrvqvae.training.prior import CodeBatch, PriorTask
from hrvqvae.training.state import TrainState, count_parameters
from hrvqvae.utils.device import Compute


class PriorSide:
    """The prior of some levels, with a batch of random codes to train on."""

    def __init__(
        self, config: Config, levels: Levels, batch: int | None = None, bf16: bool = True
    ) -> None:
        training = dataclasses.replace(
            config.prior.training_of(levels.start), precision="bf16" if bf16 else "fp32"
        )
        self.compute = Compute(training)
        torch.manual_seed(0)
        prior = build_prior(config, levels, classes=10)
        self.parameters = count_parameters(prior)
        self.state = TrainState.start(self.compute.place_model(prior), training)
        self.step = PriorTask("", levels, config, (build(config), config, "")).step
        size = batch or training.batch_size
        codes = tuple(torch.randint(level.symbols, (size, *level.grid)) for level in prior.levels)
        grids = config.model.geometry.grids(*config.data.image_size)
        coarser = zip(prior.level.coarser, grids, strict=False)
        indices = tuple(torch.randint(codewords, (size, *grid)) for codewords, grid in coarser)
        self.batch = CodeBatch(codes, indices, torch.randint(10, (size,)))

    def train(self) -> None:
        """Take a training step."""
        self.step(self.state, self.batch)
        self.state.step += 1


def bench_prior(names: Sequence[str], batch: int, rounds: int) -> list[Row]:
    """Return rows with preset, kind, codes (per image), parameters, images_per_second (median of
    steps in turns).
    """
    sides = {}
    for name in names:
        config = presets.get(name).config
        sides[name] = PriorSide(config, config.prior_levels[0], batch)
    spent = side_by_side({name: side.train for name, side in sides.items()}, rounds)
    return [
        {
            "preset": name,
            "kind": presets.get(name).config.prior.network.kind,
            "parameters": side.parameters,
            "codes": sum(codes[0].numel() for codes in side.batch.codes),
            "images_per_second": batch / spent[name],
        }
        for name, side in sides.items()
    ]


def random_priors(config: Config) -> list[Prior]:
    """Build the priors of all levels with random weights, in evaluation mode."""
    torch.manual_seed(0)
    classes = 10 if config.data.labels else 0
    return [
        build_prior(config, levels, classes).eval().requires_grad_(False)
        for levels in config.prior_levels
    ]


def draws(model: Autoencoder, priors: Sequence[Prior], batch: int) -> Callable[[], Codes]:
    """Return a function that draws codes of all levels of a batch of images."""
    label: Tensor | None = torch.zeros(batch, dtype=torch.long) if priors[0].level.classes else None
    return lambda: sample_codes(
        priors, model.codeword_indices, range(batch), seed=0, label=label, params=SamplingParams()
    )


COLUMNS = parse_lines("""
preset: {preset}
network: {kind}
codes: {codes}
parameters: {parameters:,}
images/s: {images_per_second:.1f}
""")


def main(argv: Sequence[str] | None = None) -> None:
    """Time the training of presets' priors."""
    parser = options(__doc__, batch=(32, "images"), rounds=(5, "steps of each"))
    few = ["hrvqvae/cifar10", "treevq/cifar10", "treevq-deep/cifar10"]
    parser.add_argument(
        "--presets", nargs="+", default=few, metavar="PRESET", help=f"default: {' '.join(few)}"
    )
    arguments = parser.parse_args(argv)
    finish(
        bench_prior(arguments.presets, arguments.batch, arguments.rounds), COLUMNS, arguments.json
    )


if __name__ == "__main__":
    as_script(main)
