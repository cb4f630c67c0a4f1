"""A study: settings of one or more systems side by side, in place of the systems as their presets have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.comparison.compare import Comparison
from hrvqvae.comparison.folder import Folder, Measured
from hrvqvae.comparison.harness import Case, as_markdown, run_cases
from hrvqvae.comparison.instruments import Say
from hrvqvae.comparison.systems import STUDIED
from hrvqvae.utils.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study varies, measures and draws.

    Attributes:
        name: as `hrvqvae compare --study` takes it.
        title: as messages speak of it, such as "the study of codebooks".
        varied: fields of a model that it varies, which nobody else may set.
        cases: what is trained and measured, of a comparison that says systems, seeds and budget.
        more: further columns of a run.
        labels: columns that tell the cases apart, but for the seed.
        columns: as those of `as_markdown`.
        order: sorts the rows.
        draw: draws the rows into a PNG file.
    """

    name: str
    title: str
    varied: tuple[str, ...]
    cases: Callable[[Comparison], list[Case]]
    more: Callable[[RunFolder], Measured]
    labels: tuple[str, ...]
    columns: Mapping[str, tuple[str, str]]
    order: Callable[[Measured], Any]
    draw: Callable[[Sequence[Measured], Path], None]

    def table(self, rows: Sequence[Measured]) -> str:
        """The study as Markdown, a row for each set of labels."""
        return as_markdown(rows, self.labels, self.columns)

    def run(self, comparison: Comparison, out: Path, say: Say = print) -> tuple[list[Measured], int]:
        """Train, measure and draw every case; -> all rows of the folder, and the signal that stopped it (0: none).

        Raises:
            InputError: as `run_cases`; priors, other systems, or fields that the study varies, are asked for.
        """
        for name in comparison.systems:
            if name not in STUDIED:
                raise InputError(f"{self.title} is of {', '.join(STUDIED)}; leave {name} out of --systems")
        for name in comparison.fields:
            if name.endswith(self.varied):
                raise InputError(f"--{name} is what {self.title} varies; leave it out")
        if comparison.prior_budget():
            raise InputError(f"{self.title} has no priors; leave --priors and --prior-steps out")
        about = {**comparison.about(), "study": self.name}
        folder = Folder(out)
        needed = ("seed", *self.labels, *self.columns)
        signal = run_cases(self.cases(comparison), about, folder, say, self.more, needed)
        with folder.locked(say):
            rows = folder.sorted_rows(lambda row: (row["seed"], *self.order(row)))
            if rows and not signal:
                folder.write_results(rows, self.table(rows))
                self.draw(rows, out / "study.png")
        return rows, signal
