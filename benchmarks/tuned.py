"""The options of `hrvqvae compare` for the tuned tables of docs/comparison.md, or the command itself.

python -m benchmarks.tuned mnist prints them; with further options it runs the comparison with them:
python -m benchmarks.tuned mnist --tune 12 --max-steps 250 --seeds 5 --out DIR
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.common import as_script
from hrvqvae.cli import main as hrvqvae
from hrvqvae.config import presets
from hrvqvae.config.schema import flatten, to_dict

_SEARCHED = ("training.optimizer", "training.learning_rate", "model.quantizer.decay", "model.quantizer.beta")


def arguments(dataset: str) -> list[str]:
    """What names the systems, their variants, and what sets these apart."""
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
    systems = ["hrvqvae", "treevq", "vqvae", "rqvae", "fsq", "vqvae2"]
    found = ["--systems", ",".join([*systems, *(f"{name}={system}" for name, (system, _) in variants.items())])]
    for name, (_, fields) in variants.items():
        for field, value in fields.items():
            found += [f"--{name}.{field}", str(value)]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the options, or run the comparison."""
    dataset, *options = sys.argv[1:] if argv is None else argv
    if not options:
        print(" ".join(arguments(dataset)))
    else:
        sys.exit(hrvqvae(["compare", dataset, *arguments(dataset), *options]))


if __name__ == "__main__":
    as_script(main)
