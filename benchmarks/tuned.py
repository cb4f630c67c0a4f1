"""Compare systems at settings of their own: search them on validation images, then train and measure every system.

python -m benchmarks.tuned mnist --systems printed,treevq,vqvae --tune 12 --max-steps 250 --seeds 5 --out DIR

--tune N searches the optimizer, learning rate, decay and commitment weight of each system by at most N trials of the
same budget, on a tenth of the training images. --tuned-in DIR takes the settings of an earlier search. All other
options are those of `hrvqvae compare`. Systems and variants: hrvqvae, treevq, vqvae, rqvae, fsq, vqvae2, printed,
links2, links1, simvq, qinco.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import tuning
from benchmarks.common import as_script, positive
from hrvqvae.cli import _parser
from hrvqvae.cli.console import split_fields
from hrvqvae.cli.train import comparison_of
from hrvqvae.comparison.report import compare, table
from hrvqvae.config import presets
from hrvqvae.config.section import flatten, to_dict
from hrvqvae.utils.outputs import write_atomic

_SEARCHED = ("training.optimizer", "training.learning_rate", "model.quantizer.decay", "model.quantizer.beta")


def arguments(dataset: str, wanted: str = "") -> list[str]:
    """Return the options that name the wanted systems (default: all) and set the variants among them apart."""
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
    """Search, then compare."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--systems", default="", metavar="A,B")
    parser.add_argument("--tune", type=positive, metavar="N", help="search by at most N trials per system")
    parser.add_argument("--tuned-in", type=Path, metavar="DIR", help="take the settings of the search in DIR")
    own, options = parser.parse_known_args(argv)
    options, fields = split_fields(["compare", own.dataset, *arguments(own.dataset, own.systems), *options])
    parsed = _parser().parse_args(options)
    parsed.fields = fields
    comparison, out = comparison_of(parsed), Path(parsed.out)
    if own.tune:
        trials = tuning.folder_of(out)
        if signal := tuning.tune(comparison, own.tune, trials, print):
            sys.exit(128 + signal)
        write_atomic(trials.path / "results.md", tuning.table(trials.rows()).encode())
    if own.tune or own.tuned_in:
        comparison = tuning.tuned(comparison, own.tuned_in or out, print)
    rows, signal = compare(comparison, out)
    if signal:
        sys.exit(128 + signal)
    print(table(rows))


if __name__ == "__main__":
    as_script(main)
