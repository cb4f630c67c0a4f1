"""The search for the settings of each system: the same ladders of values, seed, budget and images
for all systems.

Settings are searched in turn, from the preset's values: the learning rate, with Adam and with Muon;
the decay of codebooks; the commitment weight. The search begins with the middle values of a ladder,
and continues beyond an end that is the best so far. A field that a system lacks, or that an option
sets, is not searched.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from torch import Tensor, empty

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.comparison.folder import Folder, decide_case, format_markdown, run_cases
from hrvqvae.comparison.instruments import Instruments, Measured, Say
from hrvqvae.comparison.systems import Case, Comparison
from hrvqvae.config import Config
from hrvqvae.config.parsing import override
from hrvqvae.config.section import flatten, to_dict
from hrvqvae.evaluation.report import evaluate_run
from hrvqvae.utils.errors import InputError

Settings = tuple[tuple[str, str], ...]
"""(dotted name, text) of each field that is searched."""

SEED = 1_000  # of all trials, and of no training of the comparison
VALIDATION = "0.1"  # share of the training images
_IMAGES = 2_000  # validation images that a trial is measured on
_OPTIMIZER = "training.optimizer"
_RATE = "training.learning_rate"
LADDERS: Mapping[str, tuple[str, ...]] = {
    _RATE: ("0.0003", "0.001", "0.003", "0.01", "0.03", "0.1"),
    "model.quantizer.decay": ("0.5", "0.8", "0.95", "0.99", "0.995"),
    "model.quantizer.beta": ("0.06", "0.25", "1.0", "4.0", "16.0"),
}
_FIRST = 1, 3  # initial range of each ladder, by index


class Validation(Instruments):
    """Measure a trial: the error on the images that were cut from the training split."""

    diverged = MappingProxyType({"validation_mse": None, "leaves_used": None})

    def __init__(self, config: Config, folder: Path) -> None:
        """Load nothing."""
        self.distance_names = {}

    def measure(self, run: RunFolder) -> tuple[Measured, Tensor]:
        """Return the columns of a trial, and no images."""
        report = evaluate_run(run.path, rate=False, limit=_IMAGES).report
        return {"validation_mse": report.mse, "leaves_used": report.levels[-1].used}, empty(0)


def folder_of(out: Path) -> Folder:
    """Return the folder of a comparison's trials."""
    return Folder(out / "tuning", ("system", "seed", "digests", *Validation.diverged))


def open_trials(start: Settings, tried: Mapping[Settings, float], most: int) -> list[Settings]:
    """Return the next trials, which don't depend on each other; none if the search has ended.

    They don't depend on the order of the earlier trials.

    Args:
        start: Fields to search, at the preset's values.
        tried: Settings -> validation error, infinite where the training diverged.
        most: Number of trials of the search in all.
    """
    errors: dict[Settings, float] = {}
    while wave := _wave(start, errors)[: most - len(errors)]:
        if new := [trial for trial in wave if trial not in tried]:
            return new
        errors |= {trial: tried[trial] for trial in wave}
    return []


def _wave(start: Settings, tried: Mapping[Settings, float]) -> list[Settings]:
    best = start
    for name in (name for name in LADDERS if name in dict(start)):
        lines = [best]
        if name == _RATE and _OPTIMIZER in dict(start):
            lines = [_with(best, _OPTIMIZER, optimizer) for optimizer in ("adam", "muon")]
        ladders = [[_with(line, name, value) for value in LADDERS[name]] for line in lines]
        if wave := [trial for ladder in ladders for trial in _next_of(ladder, tried)]:
            return wave
        best = min(
            (trial for trial in chain([best], *ladders) if trial in tried), key=tried.__getitem__
        )
    return []


def _with(settings: Settings, name: str, value: str) -> Settings:
    return tuple({**dict(settings), name: value}.items())


def _next_of(ladder: Sequence[Settings], tried: Mapping[Settings, float]) -> list[Settings]:
    low, high = _FIRST
    while True:
        steps = ladder[low : high + 1]
        if new := [trial for trial in steps if trial not in tried]:
            return new
        best = min(steps, key=tried.__getitem__)
        if best == steps[0] and low > 0:
            low -= 1
        elif best == steps[-1] and high + 1 < len(ladder):
            high += 1
        else:
            return []


@dataclasses.dataclass(frozen=True)
class Search:
    """The search for the settings of a system, of at most `trials` trials."""

    comparison: Comparison
    trials: int
    name: str
    chosen: Mapping[str, str]  # "auto" fields as the first machine decided them

    @property
    def start(self) -> Settings:
        """The fields to search, at the preset's values."""
        options = self.comparison.fields_of(self.name)
        values = dict(flatten(to_dict(self._config(()))))
        names = [name for name in (_OPTIMIZER, *LADDERS) if name in values and name not in options]
        return tuple(
            (name, "null" if values[name] is None else str(values[name])) for name in names
        )

    def _config(self, settings: Settings) -> Config:
        return override(self.comparison.config(self.name, SEED), dict(settings))

    def case(self, settings: Settings) -> Case:
        """Return a trial."""
        values = "-".join(value for _, value in settings)
        config = override(self._config(settings), {"data.validation": VALIDATION})
        labels = {
            "system": self.name,
            **{name.rpartition(".")[2]: value for name, value in settings},
            "seed": SEED,
        }
        return Case(name=f"{self.name}-{values}", labels=labels, config=config)

    def tried(self, rows: Sequence[Measured]) -> dict[Settings, float]:
        """Return the errors of this system's trials. Raises InputError if a trial has another
        configuration.
        """
        errors = {}
        start = self.start
        for row in rows:
            if row["system"] == self.name:
                settings = tuple(
                    (name, row.get(name.rpartition(".")[2], value)) for name, value in start
                )
                if row["digests"] != decide_case(self.case(settings), dict(self.chosen)).digests():
                    raise InputError(
                        f"trials of {self.name} are of another configuration; choose another --out"
                    )
                errors[settings] = (
                    math.inf if row["validation_mse"] is None else row["validation_mse"]
                )
        return errors

    def next(self, rows: Sequence[Measured]) -> list[Settings]:
        """Return the next trials, as many as are left."""
        return open_trials(self.start, self.tried(rows), self.trials)

    def best(self, rows: Sequence[Measured]) -> dict[str, str]:
        """Return the settings with the least validation error. Raises InputError if the search has
        not ended well.
        """
        if not self.start:
            return {}
        tried = self.tried(rows)
        if self.next(rows) or min(tried.values()) == math.inf:
            raise InputError(
                f"the search for {self.name} has not ended well: go on with --tune {self.trials}"
            )
        best: Settings = min(tried, key=tried.__getitem__)
        return dict(best)


def tune(comparison: Comparison, trials: int, folder: Folder, say: Say) -> int:
    """Make the open trials until the search of every system has ended; return the signal that
    stopped it, or 0.

    Several processes share the trials. Raises InputError as `run_cases`.
    """
    about = {**comparison.about(), "study": "tuning", "priors": None, "tune": trials}
    while True:
        rows = folder.rows()
        chosen = folder.read_claim().get("chosen", {}) if rows else {}
        searches = [Search(comparison, trials, system, chosen) for system in comparison.systems]
        cases = [search.case(settings) for search in searches for settings in search.next(rows)]
        if not cases:
            return 0
        if signal := run_cases(cases, about, folder, say, instruments_class=Validation):
            return signal
        if len(folder.rows()) == len(rows):
            time.sleep(2)  # other processes make the rest


def tuned(comparison: Comparison, out: Path, say: Say) -> Comparison:
    """Return the comparison with the settings that the search in the folder `out` has chosen, at
    any budget.

    Raises InputError if a system has no search that ended, or the search was of other data or
    fields; fields of priors don't matter.
    """
    folder = folder_of(out)
    claim = folder.read_claim()
    about = claim["about"]
    fields = {
        name: text for name, text in comparison.fields.items() if not name.startswith("prior.")
    }
    budget = {name: about[name] for name in ("max_steps", "max_minutes")}
    searched = dataclasses.replace(comparison, **budget, fields=fields)
    for name, here in searched.about().items():
        if name in ("dataset", "fields", "root") and about.get(name) != here:
            raise InputError(
                f"{folder.path} searched with {name} {about.get(name)}, this comparison has {here}"
            )
    rows = folder.rows()
    searches = {
        system: Search(searched, about["tune"], system, claim.get("chosen", {}))
        for system in comparison.systems
    }
    settings = {system: search.best(rows) for system, search in searches.items()}
    for system, chosen in settings.items():
        values = ", ".join(f"{name} {value}" for name, value in chosen.items())
        say(f"{system}: {values or 'nothing searched'}")
    return dataclasses.replace(comparison, settings=settings)


def table(rows: Sequence[Measured]) -> str:
    """Return the trials as Markdown, the best of each system first."""
    names = [name.rpartition(".")[2] for name in (_OPTIMIZER, *LADDERS)]
    lines: list[Sequence[object]] = [("system", *names, "validation MSE", "leaves used")]
    for row in sorted(rows, key=lambda row: (row["system"], row["validation_mse"] or math.inf)):
        error = "diverged" if row["validation_mse"] is None else f"{row['validation_mse']:.3e}"
        lines.append(
            (row["system"], *(row.get(name, "") for name in names), error, row["leaves_used"] or "")
        )
    return format_markdown(lines)
