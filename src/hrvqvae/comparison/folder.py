"""The folder of a comparison. Its cases are trained and measured in turn; an interrupted case is
resumed.

DIR/comparison.json      what is compared; another comparison is refused
    runs/NAME/           a run folder per case
    rows/NAME.json       the measurements of a case
    rows/NAME-KIND.png   a few reconstructions or samples side by side
    results.json, results.md, and pictures of all rows

A case with a row is not measured again, so its run may be deleted. Several processes can share the
cases: files of DIR are written under its lock, and runs under their locks.
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
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.drawing import draw_training
from hrvqvae.training.prior import resolve_priors, train_priors
from hrvqvae.training.trainer import Trainer
from hrvqvae.utils.errors import DamagedFileError, InputError, NonFiniteError
from hrvqvae.utils.locks import InUseError, lock_folder
from hrvqvae.utils.outputs import TEMPORARY, remove_temporaries, write_atomic
from hrvqvae.utils.quantities import clock, counted

_COLUMNS = (
    "system",
    "seed",
    "prior",
    "prior_bits_per_image",
    "perceptual",
    "frechet",
    "kernel",
    "mse",
    "bits_per_image",
    "test_errors",
)
"""The columns that every row has."""


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; return {} if there is no file. Raises DamagedFileError."""
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise DamagedFileError(
            f"{path} is damaged ({error}); delete it to have it made again"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a plain value as JSON."""
    write_atomic(path, json.dumps(value, indent=2).encode())


class Folder:
    """The folder of a comparison, which may be missing. The methods that read it raise
    DamagedFileError.
    """

    def __init__(self, path: Path, columns: Collection[str] = _COLUMNS) -> None:
        self.path = path
        self.columns = columns
        self.rows_path = path / "rows"

    def run_folder(self, name: str) -> RunFolder:
        """Return the run folder of a case."""
        return RunFolder(self.path / "runs" / name)

    def merge_claim(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return comparison.json with this comparison added: "about" describes it, "chosen" has its
        "auto" fields.

        Nothing is written. Raises InputError if the folder holds another comparison.
        """
        claim = self.read_claim() if (self.path / "comparison.json").is_file() else {"about": about}
        new = json.loads(json.dumps(about))
        stored = dict(claim["about"])
        stored["priors"] = (
            stored.get("priors") or new["priors"]
        )  # priors may be added to autoencoders
        new["priors"] = new["priors"] or stored["priors"]
        for name in {**stored, **new}:
            if stored.get(name) != new.get(name):
                values = f"{name} is {stored.get(name)} there, {new.get(name)} here"
                raise InputError(
                    f"{self.path} holds another comparison: {values}; choose another --out"
                )
        return {"about": stored, "chosen": dict(claim.get("chosen", {}))}

    def read_claim(self) -> dict[str, Any]:
        """Return the contents of comparison.json. Raises InputError if there is no such file."""
        if not (self.path / "comparison.json").is_file():
            raise InputError(f"{self.path} holds no comparison")
        claim = _read(self.path / "comparison.json")
        if (
            not all(isinstance(claim.get(name, {}), dict) for name in ("about", "chosen"))
            or "about" not in claim
        ):
            raise DamagedFileError(
                f"{self.path / 'comparison.json'} does not say what is compared: it is damaged"
            )
        return claim

    def begin(self, claim: Mapping[str, Any]) -> None:
        """Write comparison.json, and remove the temporary files of killed processes."""
        self.rows_path.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.rows_path):
            remove_temporaries(folder)
        write_json(self.path / "comparison.json", claim)

    def read_row(self, name: str) -> Measured:
        """Return the row of a case; empty if the case is not measured yet."""
        return _read(self.rows_path / f"{name}.json")

    def rows(self) -> list[Measured]:
        """Return the rows of all measured cases."""
        rows = []
        for path in sorted(self.rows_path.glob("*.json")):
            if not path.name.startswith(TEMPORARY):
                rows.append(_read(path))
                if missing := set(self.columns) - rows[-1].keys():
                    raise DamagedFileError(
                        f"{path} has no {min(missing)}; delete it to have it made again"
                    )
        return rows

    def write_row(self, name: str, row: Measured, kind: str, images: Tensor) -> None:
        """Write the row of a case, and a few of its images (B, C, Y, X) in [0, 1], if any."""
        if images.numel():
            write_image(
                to_pil(torch.cat(list(images), dim=2)), self.rows_path / f"{name}-{kind}.png"
            )
        write_json(
            self.rows_path / f"{name}.json", row
        )  # last, so that a row never lacks its images

    def read_images(self, name: str, kind: str) -> Sequence[Tensor]:
        """Return the stored images (3, Y, Y) uint8 of a case; () if no images are stored."""
        path = self.rows_path / f"{name}-{kind}.png"
        pixels = read_image(path, 3) if path.is_file() else torch.zeros(3, 1, 0)
        return pixels.split(pixels.shape[1], dim=2) if pixels.numel() else ()  # type: ignore[no-untyped-call]


def format_markdown(rows: Sequence[Sequence[object]]) -> str:
    """Return a table as Markdown; the first row is its header."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines) + "\n"


def run_cases(
    cases: Sequence[Case],
    about: Mapping[str, Any],
    folder: Folder,
    say: Say,
    instruments_class: type[Instruments] = Instruments,
) -> int:
    """Train and measure every case that is not measured yet; return the signal that stopped the
    work, or 0.

    A case that another process works on is skipped. If that process stops, the case is resumed
    here. `about` describes the comparison, as `Comparison.about` does. Raises InputError if the
    data or a network is missing, or the folder holds another comparison, runs with another
    configuration, or rows measured by other distances.
    """
    with lock_folder(folder.path, wait=say):
        claim = folder.merge_claim(about)
        rows = folder.rows()
        cases = [decide_case(case, claim["chosen"]) for case in cases]
        for case in cases:
            _require_same(case, folder, rows)
        open_cases = [case for case in cases if _is_open(case, folder.read_row(case.name))]
        if not open_cases:
            return 0
        instruments = instruments_class(open_cases[0].config, folder.path)
        instruments.require_same(rows, folder.path)
        folder.begin(claim)
    measured = len(cases) - len(open_cases)
    skipped = 0
    say(f"{counted(len(open_cases), 'case')} to train and measure; {measured:,} measured before")
    for case in open_cases:
        start = time.monotonic()
        try:
            signal = _measure_case(case, folder, instruments, say)
        except InUseError as error:
            say(f"{error}".partition(";")[0])
            skipped += 1
            continue
        if signal:
            return signal
        measured += 1
        say(
            f"{measured} of {counted(len(cases), 'case')} measured, this case in"
            f" {clock(time.monotonic() - start)}"
        )
    if 0 < skipped < len(open_cases):
        return run_cases(
            cases, about, folder, say, instruments_class
        )  # the other process may have stopped since
    if skipped:
        say(
            f"still being made elsewhere: {skipped} of {len(cases)} cases; the last process to end"
            " completes the table"
        )
    return 0


def decide_case(case: Case, chosen: dict[str, str]) -> Case:
    """Return the case with its "auto" fields decided, by `chosen` first. Adds this machine's
    decisions to `chosen`.
    """
    before = dict(flatten(to_dict(case.config)))
    config = case.config.replace(
        **{name: value for name, value in chosen.items() if before.get(name) == AUTO}
    )
    config = schema.decide_auto(config, "model", "training", "prior")
    chosen |= {
        name: value for name, value in flatten(to_dict(config)) if before[name] == AUTO != value
    }
    return dataclasses.replace(case, config=config)


def _is_open(case: Case, row: Measured) -> bool:
    """Return whether a measurement of the case is missing in its row."""
    return not row or bool(case.prior and not row["prior"])


def _require_same(case: Case, folder: Folder, rows: Sequence[Measured]) -> None:
    """Raise InputError if the run of a case, or a row that differs only in the seed, has another
    configuration.
    """
    run = folder.run_folder(case.name)
    digests = case.digests()
    sections = ("data", "model", "training")
    if run.begun() and digest_of(run.read_config(), *sections) != digest_of(case.config, *sections):
        raise InputError(f"{run.path} was trained with another configuration; choose another --out")
    for row in rows:
        if all(row[name] == value for name, value in case.labels.items() if name != "seed"):
            for network, digest in row.get("digests", {}).items():
                if digests.get(network, digest) != digest:
                    described = f"the row of seed {row['seed']} in {folder.path}"
                    raise InputError(
                        f"the {network} of {case.name} has another configuration than {described}"
                    )


def _measure_case(case: Case, folder: Folder, instruments: Instruments, say: Say) -> int:
    """Train and measure the missing stages of a case; return the signal that stopped it, or 0.
    Raises InUseError.
    """

    def store(row: Measured, kind: str, images: Tensor) -> None:
        with lock_folder(folder.path, wait=say):
            instruments.require_same(folder.rows(), folder.path)
            folder.write_row(case.name, row, kind, images)

    run = folder.run_folder(case.name)
    with lock_folder(run.path):
        row = folder.read_row(case.name)  # another process may have written the row since
        if not _is_open(case, row):
            return 0
        digests = case.digests()
        say(f"--- {', '.join(f'{name} {value}' for name, value in case.labels.items())}")
        if not row:
            row = {**case.labels, "digests": {"autoencoder": digests["autoencoder"]}}
            try:
                task = AutoencoderTask(case.config, run)
                outcome = Trainer(
                    task, resume=run.begun(), callbacks=[draw_training], say=say
                ).train()
            except NonFiniteError:
                if instruments.diverged is None:
                    raise
                store({**row, **instruments.diverged}, "", empty(0))
                return 0
            if outcome.signal is not None:
                return outcome.signal
            measured, shown = instruments.measure(run)
            row |= {"training_seconds": outcome.seconds, "prior": {}, **measured}
            store(row, "reconstructions", shown)
        if case.prior:
            configs = resolve_priors(str(run.path), None, case.prior, resume=False)
            outcomes = train_priors(
                run.path, configs, resume=True, callbacks=[draw_training], say=say
            ).values()
            for outcome in outcomes:
                if outcome.signal is not None:
                    return outcome.signal
            measured, shown = instruments.measure_priors(run)
            store(
                row | {"prior": dict(case.prior), **measured, "digests": digests}, "samples", shown
            )
    return 0
