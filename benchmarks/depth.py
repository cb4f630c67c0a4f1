"""Two kinds of priors side by side, such as one for each level and one for all: a training step, and a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks.common import Row, as_script, finish, options, positive, preset_of, side_by_side
from benchmarks.prior import Form, PriorSide
from hrvqvae.config import Config
from hrvqvae.config.parsing import override
from hrvqvae.models.build import build
from hrvqvae.priors.base import build_prior
from hrvqvae.priors.generative import sample_codes
from hrvqvae.priors.sampling import SamplingParams


def _of_kind(config: Config, kind: str) -> Config:
    """The configuration with priors of that kind: as they stand, or with that network's defaults."""
    return config if config.prior.network.kind == kind else override(config, {"prior.network.kind": kind})


def _steps(config: Config) -> tuple[Callable[[], object], int]:
    """(a training step of each prior, on random codes; parameters of all)."""
    sides = [PriorSide(config, levels, Form()) for levels in config.prior_levels]

    def step() -> None:
        for side in sides:
            side.train()

    return step, sum(side.parameters for side in sides)


def _draws(config: Config, batch: int) -> Callable[[], object]:
    """Draws codes of all levels, by priors with random weights."""
    model = build(config).eval().requires_grad_(False)
    torch.manual_seed(0)
    priors = [build_prior(config, levels, classes=10).eval().requires_grad_(False) for levels in config.prior_levels]
    label = torch.zeros(batch, dtype=torch.long)
    return lambda: sample_codes(priors, model.paths, range(batch), seed=0, label=label, params=SamplingParams())


def bench_depth(
    config: Config, rounds: int = 3, batches: Sequence[int] = (1, 64), kinds: tuple[str, str] = ("pixelsnail", "depth")
) -> list[Row]:
    """Rows with method, measured, batch, parameters, seconds_per_image; the second of two has ratio, by turns measured.

    Raises:
        InputError: a kind of prior can't cover the levels of this system.
    """
    compared = {kind: _of_kind(config, kind) for kind in kinds}
    steps = {method: _steps(one) for method, one in compared.items()}
    rows = []
    trained = config.prior.training_of(0).batch_size
    for measured, batch in (("training", trained), *(("sampling", batch) for batch in batches)):
        calls = {
            method: steps[method][0] if measured == "training" else _draws(one, batch)
            for method, one in compared.items()
        }
        spent = side_by_side(calls, rounds)
        first, second = (
            {
                "method": method, "measured": measured, "batch": batch, "parameters": steps[method][1],
                "seconds_per_image": seconds / batch,
            }
            for method, seconds in spent.items()
        )  # fmt: skip
        second["ratio"] = spent[kinds[0]] / spent[kinds[1]]
        rows += [first, second]
    return rows


COLUMNS = {
    "measured": "{measured}", "batch": "{batch}", "method": "{method}", "parameters": "{parameters:,}",
    "s per image": "{seconds_per_image:.4f}", "ratio": "{ratio:.2f}",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Time two kinds of priors of a preset; `--section.field VALUE` changes the preset."""
    parser = options(__doc__)
    parser.add_argument("--preset", default="hrvqvae/cifar10", metavar="PRESET", help="default: hrvqvae/cifar10")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="calls of each row (default: 3)")
    parser.add_argument("--batches", type=positive, nargs="+", default=(1, 64), metavar="N", help="samples at a time")
    parser.add_argument(
        "--kinds", nargs=2, default=("pixelsnail", "depth"), metavar="KIND", help="default: pixelsnail depth"
    )
    arguments, config = preset_of(parser, argv, given={"prior.training.batch_size": "32"})
    rows = bench_depth(config, arguments.rounds, arguments.batches, tuple(arguments.kinds))
    finish(rows, COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
