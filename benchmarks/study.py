"""A study: settings of one or more systems side by side, in place of the systems as their presets have them.

Cases are trained and measured as those of `hrvqvae compare`, and taken up where they were stopped.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Row, options, positive
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.cli.console import print_json, split_fields
from hrvqvae.comparison.folder import Folder, run_cases
from hrvqvae.comparison.report import as_markdown
from hrvqvae.comparison.systems import Case, Comparison
from hrvqvae.config import Config
from hrvqvae.config.parsing import override
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import locked

SYSTEMS = ("hrvqvae", "treevq", "vqvae")
"""Those with a codebook whose codewords are the leaves, or the one codebook that stands for them."""


def with_leaves(config: Config, branching: int, levels: int) -> Config:
    """The same with branching ** levels codewords at the finest level; a flat codebook has them at its only one."""
    if config.model.system == "vqvae":
        return override(config, {"model.quantizer.codewords": str(branching**levels)})
    return override(config, {"model.quantizer.codewords": str(branching), "model.quantizer.levels": str(levels)})


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study varies, measures and draws.

    Attributes:
        name: its module's.
        varied: fields of a model that it varies, which nobody else may set.
        cases: what is trained and measured, of a comparison that says systems, seeds and budget.
        more: further columns of a run.
        labels: columns that tell the cases apart, but for the seed.
        columns: as those of `as_markdown`.
        order: sorts the rows.
        draw: draws the rows into a PNG file.
    """

    name: str
    varied: tuple[str, ...]
    cases: Callable[[Comparison], list[Case]]
    more: Callable[[RunFolder], Row]
    labels: tuple[str, ...]
    columns: Mapping[str, tuple[str, str]]
    order: Callable[[Row], Any]
    draw: Callable[[Sequence[Row], Path], None]

    def run(self, comparison: Comparison, out: Path) -> list[Row]:
        """Train, measure and draw every case; -> all rows of the folder.

        Raises:
            InputError: as `run_cases`; other systems, or fields that the study varies, are asked for.
        """
        for name in comparison.systems:
            if name not in SYSTEMS:
                raise InputError(f"this is a study of {', '.join(SYSTEMS)}; leave {name} out of --systems")
        for name in comparison.fields:
            if name.endswith(self.varied):
                raise InputError(f"--{name} is what this study varies; leave it out")
        folder = Folder(out)
        signal = run_cases(self.cases(comparison), {**comparison.about(), "study": self.name}, folder, print, self.more)
        if signal:
            print("stopped, saved; the same command goes on", file=sys.stderr)
            sys.exit(128 + signal)
        with locked(out, wait=print):
            rows = sorted(folder.rows(), key=lambda row: (row["seed"], *self.order(row)))
            if rows:
                folder.write_results(rows, self.table(rows))
                self.draw(rows, out / "study.png")
        return rows

    def table(self, rows: Sequence[Row]) -> str:
        """The study as Markdown, a row for each set of labels."""
        return as_markdown(rows, self.labels, self.columns)

    def main(self, about: str | None, argv: Sequence[str] | None = None) -> None:
        """The study as a script; `--section.field VALUE` sets a field of every system."""
        others, fields = split_fields(sys.argv[1:] if argv is None else argv)
        parser = options(about)
        parser.add_argument("dataset", metavar="DATASET", help="mnist, cifar10, emoji32, ...: as in the presets")
        parser.add_argument("--systems", nargs="+", default=SYSTEMS, metavar="NAME", help="default: all three")
        parser.add_argument("--max-steps", type=positive, required=True, metavar="N", help="of each training")
        parser.add_argument("--seeds", type=positive, default=1, metavar="K", help="trainings of each (default: 1)")
        parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="default: 0")
        parser.add_argument("--data", metavar="DIR", help="root folder, or images: a folder, tars, Parquet, arrays")
        parser.add_argument("--out", type=Path, required=True, metavar="DIR")
        arguments = parser.parse_args(others)
        comparison = Comparison(
            dataset=arguments.dataset, systems=tuple(arguments.systems), seeds=arguments.seeds,
            first_seed=arguments.first_seed, max_steps=arguments.max_steps, fields=fields,
            root=None if arguments.data is None else str(Path(arguments.data).expanduser().absolute()),
        )  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
            rows = self.run(comparison, arguments.out)
        if arguments.json:
            print_json(rows)
        else:
            print(f"\n{self.table(rows)}\n{arguments.out / 'results.md'}, results.json, study.png")
