"""Cases that are trained and measured alike, one after the other, and taken up where they were stopped.

More systems, more seeds, or priors can be added to a folder later, and several processes can share the cases.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from torch import Tensor

from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.comparison.folder import Folder, Measured
from hrvqvae.comparison.instruments import Instruments, Say
from hrvqvae.config import Config, Levels
from hrvqvae.config.parsing import decide_autoencoder, decide_priors, digest_of, prior_config
from hrvqvae.plots.training import draw_training
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.prior import resolve_priors, train_priors
from hrvqvae.training.trainer import Trainer
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import InUseError
from hrvqvae.utils.quantities import clock, counted


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that is trained and measured.

    Attributes:
        name: of its folder.
        labels: what its row begins with, such as system and seed.
        config: its whole configuration.
        prior: dotted name -> text, in what its priors' training differs from `config` (empty: no priors).
    """

    name: str
    labels: Mapping[str, Any]
    config: Config
    prior: Mapping[str, str] = field(default_factory=dict)


def _configurations(case: Case) -> dict[str, str]:
    """Digests of what decides the results of its autoencoder, and of its priors where it has some."""
    found = {"autoencoder": digest_of(case.config, "data", "model", "training")}
    return found | ({"prior": digest_of(prior_config(case.config, case.prior), "prior")} if case.prior else {})


def _require_same(case: Case, folder: Folder) -> None:
    """Raises InputError where a run, a prior or the row of that case is of another configuration.

    A row of an earlier version keeps no digests, and is taken as it is.
    """
    run, here = folder.run(case.name), _configurations(case)
    if run.begun():
        _require_same_run(case, run)
    for name, there in folder.row(case.name).get("configuration", {}).items():
        if here.get(name, there) != there:
            raise InputError(
                f"the {name} of {case.name} in {folder.path} was measured with another configuration; "
                "choose another --out"
            )


def _require_same_run(case: Case, run: RunFolder) -> None:
    """Raises InputError where the run or a prior of it has begun with another configuration."""
    if run.read_config() != case.config:
        raise InputError(f"{run.path} was trained with another configuration; choose another --out")
    for levels, config in _prior_configs(case, run).items():
        prior = prior_folder(run.path, *levels)
        if prior.config.is_file() and prior.read_config().prior != config.prior:
            raise InputError(f"{prior.path} has another budget or configuration of priors; choose another --out")


def _prior_configs(case: Case, run: RunFolder) -> dict[Levels, Config]:
    """The levels that a prior covers -> what it is trained with; empty without priors."""
    return resolve_priors(str(run.path), None, case.prior, resume=False) if case.prior else {}


def _train_priors(case: Case, run: RunFolder, say: Say) -> int:
    """Train a case's priors, or go on; -> the signal that stopped it, or 0."""
    configs = _prior_configs(case, run)
    outcomes = train_priors(run.path, configs, resume=True, callbacks=[draw_training], say=say).values()
    return next((one.signal for one in outcomes if one.signal is not None), 0)


def run_cases(
    cases: Sequence[Case],
    about: Mapping[str, Any],
    folder: Folder,
    say: Say,
    more: Callable[[RunFolder], Measured] = lambda _: {},
    needed: Sequence[str] = (),
) -> int:
    """Train and measure every case; -> the signal that stopped it (0: none).

    What is there already is not made again: a run goes on where it stopped, a measured one is taken as it is. Several
    processes may share a folder: a case that another one makes is passed over, and taken up if that one stops; what
    others still make at the end is said.

    Args:
        about: what is compared, as plain values; a folder that holds something else is refused.
        more: further columns of a run.
        needed: columns that every row in the folder must have.

    Raises:
        InputError: no such data, no network that is needed, or the folder holds another comparison, or runs or rows
            that were made otherwise.
    """
    with folder.locked(say):
        chosen = folder.chosen(about)
        folder.require(needed)
        cases = [_decided(case, chosen) for case in cases]
        for case in cases:
            _require_same(case, folder)
        left = [case for case in cases if _open(case, folder.row(case.name))]
        if not left:
            return 0
        using = Instruments.of(left[0].config, folder.path, say)  # first: what it needs may be missing
        _require_same_instruments(folder, using)
        folder.begin(about, chosen, using.names())
    for line in _plan(left, len(cases) - len(left)):
        say(line)
    maker = _Maker(folder, using, say, more)
    measured, begun = len(cases) - len(left), time.monotonic()
    before = measured
    while left:
        in_use = []
        for case in left:
            try:
                signal = maker.make(case)
            except InUseError as error:
                say(f"{error}".partition(";")[0])
                in_use.append(case)
            else:
                if signal:
                    return signal
                measured += 1
                remaining = (time.monotonic() - begun) / (measured - before) * (len(cases) - measured)
                say(f"{measured} of {counted(len(cases), 'case')} measured, {clock(remaining)} left")
        if in_use == left:
            break
        left = in_use
    if left:
        say(f"still being made elsewhere: {len(left)} of {len(cases)} cases; whoever ends last completes the table")
    return 0


def _plan(left: Sequence[Case], measured: int) -> list[str]:
    """What is trained and for how long each, as lines for a person, with the values of each label."""
    training = left[0].config.training
    minutes = f"{training.max_minutes:g} min"
    each = counted(training.max_steps, "step") if training.max_steps else minutes
    if training.max_steps and training.max_minutes:
        each += f" or {minutes}"
    if any(case.prior for case in left):
        each += ", and its priors"
    before = f", besides {measured:,} that are measured" if measured else ""
    lines = [f"{counted(len(left), 'case')} to train and measure{before}; each is trained for {each}"]
    for name in left[0].labels:
        values = dict.fromkeys(str(case.labels[name]) for case in left)
        lines.append(f"  {name}: {' | '.join(values)}")
    return [*lines, "how long the rest takes is said after each case"]


def _decided(case: Case, chosen: dict[str, str]) -> Case:
    """The case with what it leaves to the machine as it was chosen; what is chosen now is added to `chosen`."""
    config, of_autoencoder = decide_autoencoder(case.config, chosen)
    config, of_priors = decide_priors(config, chosen)
    chosen |= of_autoencoder | of_priors
    return dataclasses.replace(case, config=config)


def _open(case: Case, row: Measured) -> bool:
    """Whether anything of a case is not measured yet."""
    return not row or bool(case.prior and not row["prior"])


@dataclass(frozen=True)
class _Maker:
    """Trains and measures one case after another."""

    folder: Folder
    using: Instruments
    say: Say
    more: Callable[[RunFolder], Measured]

    def make(self, case: Case) -> int:
        """Train and measure what is left of a case; -> the signal that stopped it, or 0. Raises InUseError."""
        run = self.folder.run(case.name)
        with run.locked():
            row = self.folder.row(case.name)  # another process may have been here since
            _require_same(case, self.folder)
            if not _open(case, row):
                return 0
            known = _configurations(case)
            self.say(f"--- {', '.join(f'{name} {value}' for name, value in case.labels.items())}")
            if not row:
                task = AutoencoderTask(case.config, run)
                outcome = Trainer(task, resume=run.begun(), callbacks=[draw_training], say=self.say).train()
                if outcome.signal is not None:
                    return outcome.signal
                measured, shown = self.using.measure(run)
                seconds = {"training_seconds": outcome.seconds, "prior": {}}
                row = {**case.labels, **seconds, **measured, **self.more(run)}
                row["configuration"] = {"autoencoder": known["autoencoder"]}
                self._write(case, row, {"reconstructions": shown})
            if case.prior:
                signal = _train_priors(case, run, self.say)
                if signal:
                    return signal
                measured, shown = self.using.measure_priors(run)
                row["configuration"] = row.get("configuration", {}) | {"prior": known["prior"]}
                self._write(case, row | {"prior": dict(case.prior), **measured}, {"samples": shown})
        return 0

    def _write(self, case: Case, row: Measured, shown: Mapping[str, Tensor]) -> None:
        with self.folder.locked(self.say):
            for kind, images in shown.items():  # before the row: what it says is measured is there
                self.folder.write_images(case.name, kind, images)
            self.folder.write_row(case.name, row)


def _require_same_instruments(folder: Folder, using: Instruments) -> None:
    """Raises InputError where the folder holds rows, or is to get some, that are measured by other distances."""
    for row in (folder.measured_by(), *folder.rows()):
        names = {name: row.get(name) for name in using.names()}
        if row and names != using.names():
            there, here = (" and ".join(str(name) for name in one.values()) for one in (names, using.names()))
            raise InputError(
                f"{folder.path} has rows measured by {there}, this machine now measures by {here}: delete "
                f"{folder.path / 'rows'} to have every run measured again (none is trained again)"
            )


def as_markdown(rows: Sequence[Measured], labels: Sequence[str], columns: Mapping[str, tuple[str, str]]) -> str:
    """A table with a row for each set of labels: means over the rest, with standard deviations where there are several.

    Args:
        columns: name -> (head, format of its values); a name in braces in a head stands for the rows' value of it.
    """
    shown = [name for name in columns if any(row.get(name) is not None for row in rows)]
    heads = [*labels, "seeds", *(columns[name][0].format(**rows[0]) for name in shown)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for key in dict.fromkeys(tuple(row[label] for label in labels) for row in rows):
        some = [row for row in rows if tuple(row[label] for label in labels) == key]
        cells = [*map(str, key), str(len(some))]
        for name in shown:
            values = [row[name] for row in some if row.get(name) is not None]
            form = columns[name][1]
            cell = form.format(mean(values)) if values else "-"
            if len(values) > 1 and not math.isclose(stdev(values), 0, abs_tol=1e-12):
                cell += f" ± {form.format(stdev(values))}"
            if 0 < len(values) < len(some):
                cell += f" (n={len(values)})"
            cells.append(cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
