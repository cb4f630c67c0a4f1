"""Time the drawing of decoded images, by priors with random weights."""

from collections.abc import Sequence

import torch

from benchmarks.common import (
    Row,
    as_script,
    finish,
    median_seconds,
    options,
    parse_lines,
    positive,
)
from benchmarks.prior import draws, random_priors
from hrvqvae.config import presets
from hrvqvae.models.build import build
from hrvqvae.training.state import count_parameters


@torch.inference_mode()
def bench_sample(preset: str, batch: int, rounds: int) -> Row:
    """Return a row with drawn, batch, parameters and seconds_per_image, of images of which all
    levels are drawn and decoded.
    """
    config = presets.get(preset).config
    model = build(config).eval().requires_grad_(False)
    priors = random_priors(config)
    draw = draws(model, priors, batch)
    size = config.data.image_size
    spent = median_seconds(lambda: model.decode(draw(), size=size), rounds)
    return {
        "drawn": preset,
        "batch": batch,
        "parameters": sum(map(count_parameters, priors)),
        "seconds_per_image": spent / batch,
    }


COLUMNS = parse_lines("""
drawn: {drawn}
batch: {batch}
parameters: {parameters:,}
s per image: {seconds_per_image:.4f}
""")


def _parse_pair(text: str) -> tuple[str, int]:
    """Parse PRESET:BATCH."""
    preset, _, batch = text.rpartition(":")
    return preset, positive(batch)


def main(argv: Sequence[str] | None = None) -> None:
    """Time the priors of presets, with random weights."""
    parser = options(__doc__, rounds=(3, "calls of each row"))
    usual = [("hrvqvae/mnist", 1), ("hrvqvae/mnist", 64)]
    text = "images that are drawn together"
    parser.add_argument(
        "--images", type=_parse_pair, nargs="+", default=usual, metavar="PRESET:BATCH", help=text
    )
    arguments = parser.parse_args(argv)
    rows = [bench_sample(preset, batch, arguments.rounds) for preset, batch in arguments.images]
    finish(rows, COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
