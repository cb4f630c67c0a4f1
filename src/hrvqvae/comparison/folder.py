"""The folder of a comparison. Its cases are trained and measured in turn, and continue where they stopped.

DIR/comparison.json      what is compared; another comparison is refused
    runs/NAME/           a run folder per case
    rows/NAME.json       the measurements of a case
    rows/NAME-KIND.png   a few reconstructions or samples side by side
    results.json, results.md, and pictures of all rows

A case with a row is not measured again, so the folder without its runs is enough to continue on another machine.
Several processes can share the cases: files of DIR are written under its lock, and runs under their locks.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, empty

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.comparison.instruments import Instruments, Measured, Say
from hrvqvae.comparison.systems import Case
from hrvqvae.config import flatten, schema, to_dict
from hrvqvae.config.parsing import digest_of
from hrvqvae.config.section import AUTO
from hrvqvae.data.images import read_image, to_pil, write_image
from hrvqvae.plots.curves import draw_training
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.prior import resolve_priors, train_priors
from hrvqvae.training.trainer import Trainer
from hrvqvae.utils.errors import DamagedFileError, InputError, NonFiniteError
from hrvqvae.utils.locks import InUseError, lock_folder
from hrvqvae.utils.outputs import TEMPORARY, remove_temporaries, write_atomic
from hrvqvae.utils.quantities import clock, counted

_COLUMNS = (
    "system", "seed", "prior", "prior_bits_per_image", "perceptual", "frechet", "kernel", "mse", "bits_per_image",
    "test_errors",
)  # fmt: skip  # that every row has


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing file is empty. Raises DamagedFileError."""
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); delete it to have it made again") from error


def write_json(path: Path, value: Any) -> None:
    """Write a plain value as JSON."""
    write_atomic(path, json.dumps(value, indent=2).encode())


class Folder:
    """The folder of a comparison, which need not exist yet. Reading it raises DamagedFileError."""

    def __init__(self, path: Path, columns: Collection[str] = _COLUMNS) -> None:
        self.path, self.columns = path, columns
        self.rows_path = path / "rows"

    def run(self, name: str) -> RunFolder:
        """Return the run of a case."""
        return RunFolder(self.path / "runs" / name)

    def claim(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is compared ("about") and what the machine decided ("chosen"), here and in the folder.

        Raises InputError if the folder holds another comparison.
        """
        claim = self.read_claim() if (self.path / "comparison.json").is_file() else {"about": about}
        here, there = json.loads(json.dumps(about)), dict(claim["about"])
        there["priors"] = there.get("priors") or here["priors"]  # priors may be added to autoencoders
        here["priors"] = here["priors"] or there["priors"]
        for name in {**there, **here}:
            if there.get(name) != here.get(name):
                values = f"{name} is {there.get(name)} there, {here.get(name)} here"
                raise InputError(f"{self.path} holds another comparison: {values}; choose another --out")
        return {"about": there, "chosen": dict(claim.get("chosen", {}))}

    def read_claim(self) -> dict[str, Any]:
        """Return the contents of comparison.json. Raises InputError if there is no such file."""
        if not (self.path / "comparison.json").is_file():
            raise InputError(f"{self.path} holds no comparison")
        claim = _read(self.path / "comparison.json")
        if not all(isinstance(claim.get(name, {}), dict) for name in ("about", "chosen")) or "about" not in claim:
            raise DamagedFileError(f"{self.path / 'comparison.json'} does not say what is compared: it is damaged")
        return claim

    def begin(self, claim: Mapping[str, Any]) -> None:
        """Write what is compared, and remove the temporary files of killed writers."""
        self.rows_path.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.rows_path):
            remove_temporaries(folder)
        write_json(self.path / "comparison.json", claim)

    def row(self, name: str) -> Measured:
        """Return the row of a case; empty if the case is not measured yet."""
        return _read(self.rows_path / f"{name}.json")

    def rows(self) -> list[Measured]:
        """Return all rows."""
        rows = []
        for path in sorted(self.rows_path.glob("*.json")):
            if not path.name.startswith(TEMPORARY):
                rows.append(_read(path))
                if missing := set(self.columns) - rows[-1].keys():
                    raise DamagedFileError(f"{path} has no {min(missing)}; delete it to have it made again")
        return rows

    def write_row(self, name: str, row: Measured, kind: str, images: Tensor) -> None:
        """Write the row of a case, and a few of its images (B, C, Y, X) in [0, 1], if any."""
        if images.numel():
            write_image(to_pil(torch.cat(list(images), dim=2)), self.rows_path / f"{name}-{kind}.png")
        write_json(self.rows_path / f"{name}.json", row)  # last, so that the images of a row are there

    def images(self, name: str, kind: str) -> Sequence[Tensor]:
        """Return the stored images of a case, (3, Y, Y) uint8 each; () if there are none."""
        path = self.rows_path / f"{name}-{kind}.png"
        pixels = torch.from_numpy(read_image(path, 3)) if path.is_file() else torch.zeros(3, 1, 0)
        return pixels.split(pixels.shape[1], dim=2) if pixels.numel() else ()  # type: ignore[no-untyped-call]


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """Return a table as Markdown; the first row is its header."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines) + "\n"


def run_cases(
    cases: Sequence[Case], about: Mapping[str, Any], folder: Folder, say: Say, using: type[Instruments] = Instruments
) -> int:
    """Train and measure every case that is not measured yet; return the signal that stopped the work, or 0.

    A case that another process works on is skipped, and done here if that process stops. `about` is what
    `Comparison.about` returns.

    Raises:
        InputError: The data or a network is missing; or the folder holds another comparison, or runs or rows of other
            configurations or distances.
    """
    with lock_folder(folder.path, wait=say):
        claim, rows = folder.claim(about), folder.rows()
        cases = [decide_case(case, claim["chosen"]) for case in cases]
        for case in cases:
            _require_same(case, folder, rows)
        left = [case for case in cases if _is_open(case, folder.row(case.name))]
        if not left:
            return 0
        instruments = using(left[0].config, folder.path)
        instruments.require_same(rows, folder.path)
        folder.begin(claim)
    measured, skipped = len(cases) - len(left), 0
    say(f"{counted(len(left), 'case')} to train and measure; {measured:,} measured before")
    for case in left:
        begun = time.monotonic()
        try:
            signal = _make(case, folder, instruments, say)
        except InUseError as error:
            say(f"{error}".partition(";")[0])
            skipped += 1
            continue
        if signal:
            return signal
        measured += 1
        say(f"{measured} of {counted(len(cases), 'case')} measured, this case in {clock(time.monotonic() - begun)}")
    if 0 < skipped < len(left):
        return run_cases(cases, about, folder, say, using)  # the other process may have stopped since
    if skipped:
        say(f"still being made elsewhere: {skipped} of {len(cases)} cases; the last to end completes the table")
    return 0


def decide_case(case: Case, chosen: dict[str, str]) -> Case:
    """Return the case with "auto" fields decided as in `chosen`; add what this machine decides to `chosen`."""
    before = dict(flatten(to_dict(case.config)))
    config = case.config.replace(**{name: value for name, value in chosen.items() if before.get(name) == AUTO})
    config = schema.decide_auto(config, "model", "training", "prior")
    chosen |= {name: value for name, value in flatten(to_dict(config)) if before[name] == AUTO != value}
    return dataclasses.replace(case, config=config)


def _is_open(case: Case, row: Measured) -> bool:  # a measurement is missing
    return not row or bool(case.prior and not row["prior"])


def _require_same(case: Case, folder: Folder, rows: Sequence[Measured]) -> None:
    """Raise InputError if the run of a case, or a row of its labels with any seed, has another configuration."""
    run, here, parts = folder.run(case.name), case.digests(), ("data", "model", "training")
    if run.begun() and digest_of(run.read_config(), *parts) != digest_of(case.config, *parts):
        raise InputError(f"{run.path} was trained with another configuration; choose another --out")
    for row in rows:
        if all(row[name] == value for name, value in case.labels.items() if name != "seed"):
            for part, there in row.get("digests", {}).items():
                if here.get(part, there) != there:
                    place = f"the row of seed {row['seed']} in {folder.path}"
                    raise InputError(f"the {part} of {case.name} has another configuration than {place}")


def _make(case: Case, folder: Folder, using: Instruments, say: Say) -> int:
    """Train and measure what is left of a case; return the signal that stopped it, or 0. Raises InUseError."""

    def keep(row: Measured, kind: str, images: Tensor) -> None:
        with lock_folder(folder.path, wait=say):
            using.require_same(folder.rows(), folder.path)
            folder.write_row(case.name, row, kind, images)

    run = folder.run(case.name)
    with run.locked():
        row = folder.row(case.name)  # another process may have been here since
        if not _is_open(case, row):
            return 0
        digests = case.digests()
        say(f"--- {', '.join(f'{name} {value}' for name, value in case.labels.items())}")
        if not row:
            row = {**case.labels, "digests": {"autoencoder": digests["autoencoder"]}}
            try:
                task = AutoencoderTask(case.config, run)
                outcome = Trainer(task, resume=run.begun(), callbacks=[draw_training], say=say).train()
            except NonFiniteError:
                if using.diverged is None:
                    raise
                keep({**row, **using.diverged}, "", empty(0))
                return 0
            if outcome.signal is not None:
                return outcome.signal
            measured, shown = using.measure(run)
            row |= {"training_seconds": outcome.seconds, "prior": {}, **measured}
            keep(row, "reconstructions", shown)
        if case.prior:
            configs = resolve_priors(str(run.path), None, case.prior, resume=False)
            outcomes = train_priors(run.path, configs, resume=True, callbacks=[draw_training], say=say).values()
            for outcome in outcomes:
                if outcome.signal is not None:
                    return outcome.signal
            measured, shown = using.measure_priors(run)
            keep(row | {"prior": dict(case.prior), **measured, "digests": digests}, "samples", shown)
    return 0
