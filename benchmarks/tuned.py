"""The options of `hrvqvae compare` for the tuned tables of docs/comparison.md, or the command itself.

python -m benchmarks.tuned mnist prints them; with further options it runs the comparison with them, of the systems that
--systems names, or of all:
python -m benchmarks.tuned mnist --systems printed,treevq,vqvae --tune 12 --max-steps 250 --seeds 5 --out DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.common import as_script
from hrvqvae.cli import main as hrvqvae
from hrvqvae.config import presets
from hrvqvae.config.schema import flatten, to_dict

_SEARCHED = ("training.optimizer", "training.learning_rate", "model.quantizer.decay", "model.quantizer.beta")


def arguments(dataset: str, wanted: str = "") -> list[str]:
    """What names the systems that are wanted (all), and what sets the variants among them apart."""
    printed = presets.get(f"hrvqvae/{dataset}").config
    values, own = dict(flatten(to_dict(printed))), printed.model.quantizer  # type: ignore[attr-defined]
    variants = {
        "printed": ("hrvqvae", {name: values[name] for name in _SEARCHED}),
        "links2": ("treevq", {"model.quantizer.linked": 2}),
        "links1": ("treevq", {"model.quantizer.linked": 1, "model.quantizer.beam": 1}),
        "simvq": ("vqpytorch", {"model.quantizer.name": "simvq"}),
        "qinco": (
            "vqpytorch",
            {
                "model.quantizer.name": "qinco", "model.quantizer.levels": own.levels,
                "model.quantizer.codewords": own.codewords,
            },
        ),
    }  # fmt: skip
    every = ["hrvqvae", "treevq", "vqvae", "rqvae", "fsq", "vqvae2", *variants]
    names = wanted.split(",") if wanted else every
    found = ["--systems", ",".join(f"{name}={variants[name][0]}" if name in variants else name for name in names)]
    for name in names:
        for field, value in variants.get(name, ("", {}))[1].items():
            found += [f"--{name}.{field}", str(value)]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the options, or run the comparison."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("dataset")
    parser.add_argument("--systems", default="")
    given, options = parser.parse_known_args(argv)
    found = arguments(given.dataset, given.systems)
    if not options:
        print(" ".join(found))
    else:
        sys.exit(hrvqvae(["compare", given.dataset, *found, *options]))


if __name__ == "__main__":
    as_script(main)
