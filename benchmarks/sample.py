"""Sampling: the cached sampler against the plain one, same weights, side by side; and how its cost grows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common import Row, as_script, finish, median_seconds, options, positive
from benchmarks.search import machine_rates
from hrvqvae.config import Grid, presets
from hrvqvae.models.build import build
from hrvqvae.priors.base import Level, build_prior
from hrvqvae.priors.configs import PixelSNAILConfig
from hrvqvae.priors.generative import sample_cached, sample_codes
from hrvqvae.priors.pixelsnail import PixelSNAIL
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.training.state import count_parameters

# 2.7 million parameters at 16x16, as the best-known public sampler has, which takes 57 s for one level on 2 such cores
_REFERENCE_SIZE = PixelSNAILConfig(hidden_units=96, residual_units=96, residual_blocks=15)


@dataclass(frozen=True)
class SampledPrior:
    """One level's prior with random weights, and what it is conditioned on for a batch."""

    name: str
    prior: PixelSNAIL

    def given(self, batch: int) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor | None, list[Tensor]]:
        """(codes, known, coarser, label, uniforms) for a batch: what a sampler takes."""
        level, generator = self.prior.level, torch.Generator().manual_seed(0)
        shape = (batch, *level.grid)
        codes = torch.randint(level.symbols, shape, generator=generator)
        coarser = [torch.randint(words, shape, generator=generator) for words in level.coarser]
        label = torch.randint(level.classes, (batch,), generator=generator) if level.classes else None
        uniforms = torch.rand(shape, dtype=torch.float64, generator=generator)
        return [codes], [torch.zeros(shape, dtype=torch.bool)], coarser, label, [uniforms]

    def multiply_adds(self) -> int:
        """Of one full forward pass of one image, up to the small: what any sampler computes at least once."""
        height, width = self.prior.level.grid
        positions, hidden = height * width, self.prior.config.hidden_units
        weights = sum(one.numel() for one in self.prior.parameters() if one.dim() > 1)
        attention = len(self.prior.attentions) * 2 * hidden * positions * (positions + 1) // 2
        return weights * positions + attention


def make_sampled_prior(name: str, network: PixelSNAILConfig, level: Level, index: int) -> SampledPrior:
    """A prior of that size with random weights, in evaluation mode."""
    torch.manual_seed(0)
    return SampledPrior(name, PixelSNAIL(network, level, index).eval().requires_grad_(False))


def preset_case(name: str, index: int, grid: Grid | None = None) -> SampledPrior:
    """The prior of a preset's level (0 is the coarsest) with random weights, on its own grid or another."""
    config = presets.get(name).config
    torch.manual_seed(0)
    prior = build_prior(config, range(index, index + 1), classes=10 if config.data.labels else 0)
    assert isinstance(prior, PixelSNAIL)
    level = prior.level if grid is None else dataclasses.replace(prior.level, grid=grid)
    return make_sampled_prior(name, prior.config, level, index)


def _cached(case: SampledPrior, batch: int, rounds: int) -> float:
    """Seconds of one level of a batch."""
    given = case.given(batch)
    return median_seconds(lambda: sample_cached(case.prior, *given, SamplingParams()), rounds)


@torch.inference_mode()
def _plain(case: SampledPrior, batch: int, positions: int) -> float:
    """Seconds of one level of a batch: so many forward passes, scaled to all positions."""
    (codes,), _, coarser, label, _ = case.given(batch)
    height, width = case.prior.level.grid
    return median_seconds(lambda: case.prior.logits(codes, coarser, label), positions) * height * width


def _row(
    network: str, cases: Sequence[SampledPrior], method: str, batch: int, seconds: float, rate: float, **more: object
) -> Row:
    return {
        "method": method, "network": network, "grid": list(cases[0].prior.level.grid), "levels": len(cases),
        "batch": batch, "parameters": sum(count_parameters(case.prior) for case in cases),
        "seconds_per_image": seconds / batch, "floor_seconds": sum(case.multiply_adds() for case in cases) / rate,
        **more,
    }  # fmt: skip


def _whole_image(preset: str, batch: int, rounds: int, rate: float) -> Row:
    """All levels of a preset, decoded."""
    config = presets.get(preset).config
    model, size = build(config).eval().requires_grad_(False), config.data.size
    cases = [preset_case(preset, index) for index in range(len(config.model.num_symbols))]
    priors = [case.prior for case in cases]
    label = torch.zeros(batch, dtype=torch.long) if priors[0].level.classes else None

    @torch.inference_mode()
    def image() -> None:
        codes = sample_codes(priors, model.paths, range(batch), seed=0, label=label, params=SamplingParams())
        model.decode(codes, size=(size, size))

    return _row(f"{preset}, decoded", cases, "cached", batch, median_seconds(image, rounds), rate)


def bench_sample(
    *, rounds: int, plain_positions: int, batches: Sequence[int], whole: Sequence[tuple[str, int]],
    grids: Sequence[int], beside_plain: Sequence[tuple[str, int]],
) -> list[Row]:  # fmt: skip
    """Rows with method, network, grid, levels, batch, parameters, seconds_per_image, floor_seconds.

    The plain sampler makes one forward pass for each position, all alike: it is timed on `plain_positions` of them, the
    median scaled to all, and the row says so (timed_positions). ratio is the plain time over the cached. The floor is
    the multiply-adds of one forward pass of an image at the rate of a large float32 matrix product in the same run.

    Args:
        whole: presets and batches of which whole images are drawn.
        beside_plain: presets and levels (1 is the coarsest) that both samplers draw.
    """
    rate = machine_rates()[0]
    rows: list[Row] = []
    for case in (preset_case(preset, level - 1) for preset, level in beside_plain):
        plain, cached = _plain(case, 1, plain_positions), _cached(case, 1, rounds)
        rows.append(_row(case.name, [case], "plain", 1, plain, rate, timed_positions=plain_positions))
        rows.append(_row(case.name, [case], "cached", 1, cached, rate, ratio=plain / cached))

    def add(case: SampledPrior, batch: int = 1) -> None:
        rows.append(_row(case.name, [case], "cached", batch, _cached(case, batch, rounds), rate))

    add(make_sampled_prior("2.7 M parameters, 512 symbols", _REFERENCE_SIZE, Level(grid=(16, 16), symbols=512), 0))
    rows += [_whole_image(preset, batch, rounds, rate) for preset, batch in whole]
    for batch in batches:
        add(preset_case("hrvqvae/mnist", 0), batch)
    for side in grids:
        add(preset_case("hrvqvae/mnist", 0, (side, side)))
    return rows


COLUMNS = {
    "method": "{method}", "network": "{network}", "grid": "{grid[0]}x{grid[1]}", "levels": "{levels}",
    "batch": "{batch}", "parameters": "{parameters:,}", "s per image": "{seconds_per_image:.4f}",
    "from positions": "{timed_positions}", "ratio": "{ratio:.1f}", "one forward pass at best": "{floor_seconds:.4f}",
}  # fmt: skip


def _numbered(text: str) -> tuple[str, int]:
    """The type of PRESET:NUMBER."""
    preset, _, number = text.rpartition(":")
    return preset, positive(number)


def main(argv: Sequence[str] | None = None) -> None:
    """Time the samplers of presets, with random weights."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="calls of each row (default: 3)")
    parser.add_argument(
        "--positions", type=positive, default=24, metavar="N", help="of the plain sampler that are timed"
    )
    parser.add_argument("--batches", type=positive, nargs="*", default=(1, 4, 16, 64), metavar="N")
    parser.add_argument("--grids", type=positive, nargs="*", default=(8, 16, 32), metavar="SIDE")
    usual = [("hrvqvae/mnist", 1), ("hrvqvae/ffhq", 2)]
    what = "priors that the plain sampler draws, too"
    parser.add_argument("--plain", type=_numbered, nargs="*", default=usual, metavar="PRESET:LEVEL", help=what)
    usual = [("hrvqvae/mnist", 1), ("hrvqvae/mnist", 64), ("hrvqvae/cifar10", 1)]
    what = "presets of which whole images are drawn"
    parser.add_argument("--whole", type=_numbered, nargs="*", default=usual, metavar="PRESET:BATCH", help=what)
    arguments = parser.parse_args(argv)
    rows = bench_sample(
        rounds=arguments.rounds, plain_positions=arguments.positions, batches=arguments.batches, whole=arguments.whole,
        grids=arguments.grids, beside_plain=arguments.plain,
    )  # fmt: skip
    finish(rows, COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
