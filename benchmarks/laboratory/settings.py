"""The search for the settings of each system: equal ladders of values, seed, budget and images.

Settings are searched in turn, from the preset's values: the learning rate, with Adam and with Muon;
the decay of codebooks; the commitment weight. The search begins with the middle values of a ladder,
and continues beyond an end that is the best so far. A field that a system lacks, or that an option
sets, is not searched.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from benchmarks.laboratory.folder import Folder, decide_case, run_cases
from benchmarks.laboratory.instruments import Row, Say, Validation
from benchmarks.laboratory.systems import Case, Comparison
from hrvqvae.config.parsing import override
from hrvqvae.config.section import flatten
from hrvqvae.utils.errors import InputError

Settings = tuple[tuple[str, str], ...]
"""(dotted name, text) of each field that is searched."""

SEED = 1_000  # of all trials, and of no row
VALIDATION = "0.1"  # share of the training images
_OPTIMIZER = "training.optimizer"
_RATE = "training.learning_rate"
LADDERS: Mapping[str, tuple[str, ...]] = {
    _RATE: ("0.0003", "0.001", "0.003", "0.01", "0.03", "0.1"),
    "model.quantizer.decay": ("0.5", "0.8", "0.95", "0.99", "0.995"),
    "model.quantizer.beta": ("0.06", "0.25", "1.0", "4.0", "16.0"),
}
_FIRST = (1, 3)  # initial range of each ladder, by index


def open_trials(start: Settings, tried: Mapping[Settings, float], most: int) -> list[Settings]:
    """Return the next trials, which don't depend on each other; none if the search has ended.

    They don't depend on the order of the earlier trials.

    Args:
        start: Fields to search, at the preset's values.
        tried: Settings -> validation error, infinite where the training diverged.
        most: Number of trials of the search in all.
    """
    errors: dict[Settings, float] = {}
    # replay the search from its start, so that the order of earlier trials does not matter
    while wave := _wave(start, errors)[: most - len(errors)]:
        new = [trial for trial in wave if trial not in tried]
        if new:
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
        wave = [trial for ladder in ladders for trial in _next_of(ladder, tried)]
        if wave:
            return wave
        ended = [trial for trial in chain([best], *ladders) if trial in tried]
        best = min(ended, key=tried.__getitem__)
    return []


def _with(settings: Settings, name: str, value: str) -> Settings:
    return tuple({**dict(settings), name: value}.items())


def _next_of(ladder: Sequence[Settings], tried: Mapping[Settings, float]) -> list[Settings]:
    low, high = _FIRST
    while True:
        steps = ladder[low : high + 1]
        new = [trial for trial in steps if trial not in tried]
        if new:
            return new
        best = min(steps, key=tried.__getitem__)
        if best == steps[0] and low > 0:
            low -= 1
        elif best == steps[-1] and high + 1 < len(ladder):
            high += 1
        else:
            return []


def make_trial(comparison: Comparison, system: str, settings: Settings) -> Case:
    """Return a trial of a system, tested on held-out training images, with a seed of its own."""
    fields = {**dict(settings), "data.validation": VALIDATION}
    labels = {name.rpartition(".")[2]: value for name, value in settings}
    return Case(
        name="-".join([system, *(value for _, value in settings)]),
        labels={"system": system, **labels, "seed": SEED},
        config=override(comparison.config(system, SEED), fields),
    )


@dataclasses.dataclass(frozen=True)
class Search:
    """The search for the settings of a system, of at most `trials` trials."""

    comparison: Comparison
    trials: int
    system: str
    chosen: Mapping[str, str]  # "auto" fields as the first machine decided them

    @property
    def start(self) -> Settings:
        """The fields to search, at the preset's values."""
        fixed = self.comparison.fields_of(self.system)
        values = flatten(self.comparison.config(self.system, SEED))
        names = [name for name in (_OPTIMIZER, *LADDERS) if name in values and name not in fixed]
        if names == [_OPTIMIZER]:  # which has no ladder of its own
            return ()
        return tuple(
            (name, "null" if values[name] is None else str(values[name])) for name in names
        )

    def tried(self, rows: Sequence[Row]) -> dict[Settings, float]:
        """Return the errors of this system's trials.

        Raises InputError if a trial has another configuration.
        """
        errors = {}
        start = self.start
        for row in rows:
            if row["system"] != self.system:
                continue
            settings = tuple((name, row.get(name.rpartition(".")[2], old)) for name, old in start)
            trial = make_trial(self.comparison, self.system, settings)
            if row["digests"]["autoencoder"] != decide_case(trial, dict(self.chosen)).digest:
                raise InputError(
                    f"trials of {self.system} are of another configuration; choose another --out"
                )
            error = row["validation_mse"]
            errors[settings] = math.inf if error is None else error
        return errors

    def next(self, rows: Sequence[Row]) -> list[Case]:
        """Return the next trials, as many as are left."""
        settings = open_trials(self.start, self.tried(rows), self.trials)
        return [make_trial(self.comparison, self.system, trial) for trial in settings]

    def best(self, rows: Sequence[Row]) -> dict[str, str]:
        """Return the settings with the least validation error.

        Raises InputError if the search has not ended well.
        """
        if not self.start:
            return {}
        tried = self.tried(rows)
        if self.next(rows) or min(tried.values()) == math.inf:
            raise InputError(
                f"the search for {self.system} has not ended well: go on with --tune {self.trials}"
            )
        best: Settings = min(tried, key=tried.__getitem__)
        return dict(best)


def tune(comparison: Comparison, trials: int, out: Path, say: Say) -> int:
    """Make trials in `out`/tuning until the search of every system has ended.

    Return the signal that stopped it, or 0. Several processes share the trials. Raises InputError
    as `run_cases`.
    """
    folder = Folder(out / "tuning")
    about = {**comparison.about(), "tune": trials}
    while True:
        # the trials that follow from those that are made
        rows = folder.rows()
        chosen = folder.claim(about).get("chosen", {})
        searches = [Search(comparison, trials, system, chosen) for system in comparison.systems]
        cases = [case for search in searches for case in search.next(rows)]
        if not cases:
            return 0
        signal = run_cases(cases, about, folder, say, Validation)
        if signal:
            return signal
        if len(folder.rows()) == len(rows):
            time.sleep(2)  # other processes make the rest


def tuned(comparison: Comparison, out: Path, say: Say) -> Comparison:
    """Return the comparison with the settings that the search in `out`/tuning has chosen, at any
    budget.

    Raises InputError if a system has no search that ended, or the search was of other data or
    fields.
    """
    folder = Folder(out / "tuning")
    if not folder.claim_path.is_file():
        raise InputError(f"{out} has no search: make one with --tune N")

    # the search may have had another budget
    steps = folder.claim({})["about"]["max_steps"]
    searched = dataclasses.replace(comparison, max_steps=steps)
    claim = folder.claim(searched.about())
    trials = claim["about"]["tune"]
    rows = folder.rows()
    settings = {}
    for system in comparison.systems:
        settings[system] = Search(searched, trials, system, claim["chosen"]).best(rows)
        values = ", ".join(f"{name} {value}" for name, value in settings[system].items())
        say(f"{system}: {values or 'nothing searched'}")
    return dataclasses.replace(comparison, settings=settings)
