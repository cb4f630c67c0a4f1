"""The folder of a comparison. Its cases are trained and measured in turn, and resumed.

DIR/comparison.json      what is compared; another comparison is refused
    runs/NAME/           a run folder per case
    rows/NAME.json       the measurements of a case
    rows/NAME-reconstructions.png
    results.json, results.md, curves.png, reconstructions.png

A case with a row is not measured again, so its run may be deleted. Several processes can share the
cases: files of DIR are written under its lock, and runs under their locks.
"""

import dataclasses
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, empty

from benchmarks.laboratory.instruments import Instruments, Row, Say
from benchmarks.laboratory.systems import Case
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import flatten, schema
from hrvqvae.config.section import AUTO
from hrvqvae.data.images import read_image, to_pil, write_image
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.trainer import Trainer
from hrvqvae.utils.errors import InputError, NonFiniteError
from hrvqvae.utils.locks import InUseError, lock_folder
from hrvqvae.utils.outputs import TEMPORARY, write_atomic
from hrvqvae.utils.quantities import counted


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return {} if there is no file. Raises InputError."""
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it to have it made again") from error


def write_json(path: Path, value: Any) -> None:
    """Write a plain value as JSON."""
    write_atomic(path, json.dumps(value, indent=2).encode())


class Folder:
    """The folder of a comparison, which may be missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.claim_path = path / "comparison.json"

    def run(self, name: str) -> RunFolder:
        """Return the run folder of a case."""
        return RunFolder(self.path / "runs" / name)

    def row_path(self, name: str) -> Path:
        """Return the file with the row of a case."""
        return self.path / "rows" / f"{name}.json"

    def rows(self) -> list[Row]:
        """Return the rows of all measured cases."""
        paths = sorted((self.path / "rows").glob("*.json"))
        return [read_json(path) for path in paths if not path.name.startswith(TEMPORARY)]

    def claim(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return the contents of comparison.json, or those for a new comparison.

        "about" describes the comparison, "chosen" has its "auto" fields. Raises InputError if the
        folder holds another comparison.
        """
        stored = read_json(self.claim_path) or {"about": about}
        for name, here in json.loads(json.dumps(about)).items():
            there = stored["about"].get(name)
            if there != here:
                raise InputError(
                    f"{self.path} holds another comparison: {name} is {there} there, {here} here;"
                    " choose another --out"
                )
        return {"about": stored["about"], "chosen": dict(stored.get("chosen", {}))}

    def write_row(self, name: str, row: Row, images: Tensor) -> None:
        """Write the row of a case, and a few of its images (B, C, Y, X) in [0, 1], if any."""
        path = self.row_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if images.numel():
            write_image(to_pil(torch.cat(list(images), dim=2)), self._images_path(name))
        write_json(path, row)  # last, so that a row never lacks its images

    def _images_path(self, name: str) -> Path:
        return self.path / "rows" / f"{name}-reconstructions.png"

    def read_images(self, name: str) -> Sequence[Tensor]:
        """Return the stored images (3, Y, Y) uint8 of a case; () if no images are stored."""
        path = self._images_path(name)
        if not path.is_file():
            return ()
        pixels = read_image(path, 3)
        return pixels.split(pixels.shape[1], dim=2)  # type: ignore[no-untyped-call,no-any-return]


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
    instruments_class: type[Instruments],
) -> int:
    """Train and measure every case that has no row; return the signal that stopped it, or 0.

    A case that another process works on is skipped. Raises InputError if the data or a network is
    missing, or the folder holds another comparison, runs with another configuration, or rows
    measured by other distances.
    """
    # what could fail fails before any training
    with lock_folder(folder.path, wait=say):
        claim = folder.claim(about)
        cases = [decide_case(case, claim["chosen"]) for case in cases]
        _require_same(cases, folder)
        open_cases = [case for case in cases if not folder.row_path(case.name).is_file()]
        if not open_cases:
            return 0
        instruments = instruments_class(open_cases[0].config, folder.path)
        instruments.require_same(folder.rows(), folder.path)
        write_json(folder.claim_path, claim)

    done = len(cases) - len(open_cases)
    say(f"{counted(len(open_cases), 'case')} to train and measure; {done:,} measured before")

    # one case after the other; a run that another process holds is left to it
    for case in open_cases:
        say(f"--- {', '.join(f'{name} {value}' for name, value in case.labels.items())}")
        begun = time.monotonic()
        try:
            signal = _measure_case(case, folder, instruments, say)
        except InUseError as error:
            say(str(error))
            continue
        if signal:
            return signal
        done += 1
        spent = timedelta(seconds=int(time.monotonic() - begun))
        say(f"{done} of {counted(len(cases), 'case')} measured, this case in {spent}")
    if done < len(cases):
        say(f"still being made elsewhere: {len(cases) - done} of {len(cases)} cases")
    return 0


def decide_case(case: Case, chosen: dict[str, str]) -> Case:
    """Return the case with its "auto" fields decided, by `chosen` first.

    The decisions of this machine are added to `chosen`.
    """
    # decisions of the first machine hold for all
    before = flatten(case.config)
    decided = {name: value for name, value in chosen.items() if before.get(name) == AUTO}

    # what is still open is decided here
    config = schema.decide_auto(case.config.replace(**decided), "model", "training")
    after = flatten(config).items()
    chosen |= {name: value for name, value in after if before[name] == AUTO != value}
    return dataclasses.replace(case, config=config)


def _require_same(cases: Sequence[Case], folder: Folder) -> None:
    """Raise InputError if a run, or a row that differs in the seed alone, has another
    configuration.
    """
    rows = folder.rows()
    for case in cases:
        # a run that was begun
        run = folder.run(case.name)
        if run.begun():
            stored = dataclasses.replace(case, config=run.read_config()).digest
            if stored != case.digest:
                raise InputError(
                    f"{run.path} was trained with another configuration; choose another --out"
                )

        # rows of other seeds
        labels = {name: value for name, value in case.labels.items() if name != "seed"}
        for row in rows:
            # rows of earlier versions have no digest
            digest = row.get("digests", {}).get("autoencoder", case.digest)
            if row.items() >= labels.items() and digest != case.digest:
                raise InputError(
                    f"{case.name} has another configuration than the row of seed {row['seed']} in"
                    f" {folder.path}; choose another --out"
                )


def _measure_case(case: Case, folder: Folder, instruments: Instruments, say: Say) -> int:
    """Train and measure a case; return the signal that stopped it, or 0. Raises InUseError."""
    run = folder.run(case.name)
    with lock_folder(run.path):
        if folder.row_path(case.name).is_file():  # written by another process since
            return 0

        # train, or go on with the training
        row: Row = {**case.labels, "digests": {"autoencoder": case.digest}, **describe_machine()}
        try:
            task = AutoencoderTask(case.config, run)
            outcome = Trainer(task, resume=run.begun(), pictures=False).train()
        except NonFiniteError:
            if instruments.diverged is None:
                raise
            measured, shown = dict(instruments.diverged), empty(0)
        else:
            if outcome.signal is not None:
                return outcome.signal
            row["training_seconds"] = outcome.seconds
            row["steps_per_second"] = outcome.step / outcome.seconds
            measured, shown = instruments.measure(run)

        # another process may have measured by other distances in the meantime
        with lock_folder(folder.path, wait=say):
            instruments.require_same(folder.rows(), folder.path)
            folder.write_row(case.name, {**row, **measured}, shown)
    return 0


def describe_machine() -> Row:
    """Return the processor, its cores, and the commit of the code ("" if git does not know)."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = ""
    with suppress(OSError):  # there may be no git
        described = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        commit = described.stdout.strip()
    machine = f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores"
    return {"machine": machine, "commit": commit}
