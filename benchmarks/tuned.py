"""Compare systems at tuned settings: search them on validation images, then train and measure every
system.

python -m benchmarks.tuned mnist --systems printed,treevq,vqvae --tune 12 --max-steps 250 --seeds 5
--out DIR

--tune N searches the optimizer, learning rate, decay and commitment weight of each system by at
most N trials of the same budget, on a tenth of the training images. --tuned-in DIR takes the
settings of an earlier search. All other options are those of `hrvqvae compare`. Systems and
variants: hrvqvae, treevq, vqvae, rqvae, fsq, vqvae2, printed, links2, links1, simvq, qinco; of 36
bits per position, with only rate and decay searched: rq12x8, rq6x64, rq4x512, rq3x4096, groups3,
groups4, groups6, joint4.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tuning
from benchmarks.common import as_script, positive
from hrvqvae.cli import _parser
from hrvqvae.cli.console import split_fields
from hrvqvae.cli.train import build_comparison
from hrvqvae.comparison.report import compare, table
from hrvqvae.config import presets
from hrvqvae.config.section import flatten, to_dict
from hrvqvae.utils.outputs import write_atomic

_SEARCHED = (
    "training.optimizer",
    "training.learning_rate",
    "model.quantizer.decay",
    "model.quantizer.beta",
)


_RQ = {"linked": 1, "beam": 1}
DEEP: Mapping[str, Mapping[str, Any]] = {
    "rq12x8": _RQ,
    "rq6x64": _RQ | {"levels": 6, "codewords": 64},
    "rq4x512": _RQ | {"levels": 4, "codewords": 512},
    "rq3x4096": _RQ | {"levels": 3, "codewords": 4096},
    "groups3": {"linked": 3},
    "groups4": {},
    "groups6": {"linked": 6},
    "joint4": {"joint_beam": "true"},
}
"""Quantizers of 36 bits for each of few positions: what differs from 12 levels of 8 codewords in
groups of 4.
"""


_OF_DEEP = ("model.stride", "model.hidden_units", "model.residual_blocks", "training.optimizer")
_OF_DEEP_QUANTIZER = ("dim", "beta", "levels", "codewords", "linked", "beam")


def deep_fields(dataset: str, name: str) -> dict[str, Any]:
    """Return the fields of treevq-deep with the quantizer `DEEP[name]`; learning rate and decay are
    searched.
    """
    values = dict(flatten(to_dict(presets.get(f"treevq-deep/{dataset}").config)))
    fields = {
        field: values[field]
        for field in (*_OF_DEEP, *(f"model.quantizer.{key}" for key in _OF_DEEP_QUANTIZER))
    }
    return fields | {f"model.quantizer.{key}": value for key, value in DEEP[name].items()}


def arguments(dataset: str, systems: str = "") -> list[str]:
    """Return the options that name the systems (default: all), with the fields of the variants
    among them.
    """
    values = dict(flatten(to_dict(presets.get(f"hrvqvae/{dataset}").config)))
    tree = {
        f"model.quantizer.{name}": values[f"model.quantizer.{name}"]
        for name in ("levels", "codewords")
    }
    variants = {
        "printed": ("hrvqvae", {name: values[name] for name in _SEARCHED}),
        "links2": ("treevq", {"model.quantizer.linked": 2}),
        "links1": ("treevq", {"model.quantizer.linked": 1, "model.quantizer.beam": 1}),
        "simvq": ("vqpytorch", {"model.quantizer.name": "simvq"}),
        "qinco": ("vqpytorch", {"model.quantizer.name": "qinco", **tree}),
    }
    names = (
        systems.split(",")
        if systems
        else ["hrvqvae", "treevq", "vqvae", "rqvae", "fsq", "vqvae2", *variants]
    )
    variants |= {name: ("treevq", deep_fields(dataset, name)) for name in names if name in DEEP}
    options = [
        "--systems",
        ",".join(f"{name}={variants[name][0]}" if name in variants else name for name in names),
    ]
    for name in names:
        for field, value in variants.get(name, ("", {}))[1].items():
            options += [f"--{name}.{field}", str(value)]
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Search, then compare."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("dataset")
    parser.add_argument("--systems", default="", metavar="A,B")
    parser.add_argument(
        "--tune", type=positive, metavar="N", help="search by at most N trials per system"
    )
    parser.add_argument(
        "--tuned-in", type=Path, metavar="DIR", help="take the settings of the search in DIR"
    )
    tuned, options = parser.parse_known_args(argv)
    options, fields = split_fields(
        ["compare", tuned.dataset, *arguments(tuned.dataset, tuned.systems), *options]
    )
    parsed = _parser().parse_args(options)
    parsed.fields = fields
    comparison = build_comparison(parsed)
    out = Path(parsed.out)
    if tuned.tune:
        trials = tuning.folder_of(out)
        if signal := tuning.tune(comparison, tuned.tune, trials, print):
            sys.exit(128 + signal)
        write_atomic(trials.path / "results.md", tuning.table(trials.rows()).encode())
    if tuned.tune or tuned.tuned_in:
        comparison = tuning.tuned(comparison, tuned.tuned_in or out, print)
    rows, signal = compare(comparison, out)
    if signal:
        sys.exit(128 + signal)
    print(table(rows))


if __name__ == "__main__":
    as_script(main)
