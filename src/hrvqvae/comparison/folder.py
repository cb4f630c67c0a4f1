"""The folder of a comparison, written so that a kill leaves it whole, and several processes can work in it.

What lies in it directly is written under its lock, and a run under the lock of the run.

DIR/comparison.json      what is compared; another comparison is refused
    runs/NAME/           a run folder for each case
    rows/NAME.json       what was measured of it
    rows/NAME-KIND.png   a few of its images side by side: reconstructions, samples
    results.json, results.md, of all rows

All but the runs is small, and enough to go on elsewhere: a row that is there is not measured again. Its "configuration"
are digests of what decides its results, so that a row of another preset is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.plots.sheets import to_pil
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.files import TEMPORARY, locked, remove_temporaries, write_atomic

Measured = dict[str, Any]
"""What was measured of a run, by name; its labels first."""


def _read(path: Path) -> dict[str, Any]:
    """Raises DamagedFileError where it is no JSON object."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); delete it to have it made again") from error
    if not isinstance(found, dict):
        raise DamagedFileError(f"{path} is damaged (no JSON object); delete it to have it made again")
    return found


def _write(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2).encode())


class Folder:
    """A folder of that form, which need not exist yet. Whatever reads it raises DamagedFileError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._claim, self._rows = path / "comparison.json", path / "rows"

    def run(self, name: str) -> RunFolder:
        """The run of a case."""
        return RunFolder(self.path / "runs" / name)

    def locked(self, say: Callable[[str], None]) -> AbstractContextManager[None]:
        """Work in the folder as the only process, made if need be. Another one is waited for, and `say` gets a line.

        Raises:
            InputError: the folder can't be made or written.
        """
        return locked(self.path, wait=say)

    def chosen(self, about: Mapping[str, Any]) -> dict[str, str]:
        """What was decided when the comparison began (dotted name -> text), if it has begun.

        Raises:
            InputError: the folder holds another comparison; what differs is named.
        """
        if not self._claim.is_file():
            return {}
        claim = _read(self._claim)
        there, here = claim.get("about", claim), json.loads(json.dumps(about))
        for name in {**there, **here}:
            if there.get(name) != here.get(name):
                raise InputError(
                    f"{self.path} holds another comparison: {name} is {there.get(name)} there, {here.get(name)} here; "
                    "choose another --out"
                )
        return dict(claim.get("chosen", {}))

    def measured_by(self) -> dict[str, Any]:
        """Names of what rows are measured by, since there have been any; empty where the rows were deleted."""
        if not (self._claim.is_file() and self._rows.is_dir()):
            return {}
        return dict(_read(self._claim).get("measured_by", {}))

    def begin(self, about: Mapping[str, Any], chosen: Mapping[str, str], measured_by: Mapping[str, Any]) -> None:
        """Write down what is compared and measured by what, and clear what killed writers left.

        Only whoever has the lock may do so.
        """
        self._rows.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self._rows):
            remove_temporaries(folder)
        _write(self._claim, {"about": dict(about), "chosen": dict(chosen), "measured_by": dict(measured_by)})

    def row(self, name: str) -> Measured:
        """What was measured of a case; empty where nothing was."""
        path = self._rows / f"{name}.json"
        return _read(path) if path.is_file() else {}

    def write_row(self, name: str, row: Measured) -> None:
        """Keep what was measured of a case. Only whoever has the lock may do so."""
        _write(self._rows / f"{name}.json", row)

    def write_images(self, name: str, kind: str, images: Tensor) -> None:
        """Keep a few images of a case, (B, C, Y, X) in [0, 1]. Only whoever has the lock may do so."""
        strip = to_pil(torch.cat(list(images), dim=2))
        stream = BytesIO()
        strip.save(stream, "png")
        write_atomic(self._images(name, kind), stream.getvalue())

    def images(self, name: str, kind: str) -> Sequence[Tensor]:
        """The images of that kind that are kept of a case, (C, Y, Y) uint8 each, C = 3; none where none are.

        Raises:
            DamagedFileError: the file is no such picture.
        """
        path = self._images(name, kind)
        if not path.is_file():
            return ()
        try:
            with Image.open(path) as strip:
                pixels = torch.from_numpy(np.array(strip.convert("RGB"))).permute(2, 0, 1)
        except OSError as error:
            raise DamagedFileError(f"{path} is damaged; delete it, and the pictures leave it out") from error
        return pixels.split(pixels.shape[1], dim=2)  # type: ignore[no-any-return, no-untyped-call]

    def _images(self, name: str, kind: str) -> Path:
        return self._rows / f"{name}-{kind}.png"

    def rows(self) -> Iterator[Measured]:
        """All rows."""
        for path in self._row_files():
            yield _read(path)

    def _row_files(self) -> list[Path]:
        return sorted(path for path in self._rows.glob("*.json") if not path.name.startswith(TEMPORARY))

    def require(self, names: Collection[str]) -> None:
        """Make sure that each row has these columns, which one of an earlier version may lack.

        Raises:
            InputError: one has not; the row and what to do is named.
        """
        for path in self._row_files():
            if lacking := sorted(set(names) - _read(path).keys()):
                raise InputError(
                    f"{path} is of an earlier version (it has no {', '.join(lacking)}); delete it to have its run "
                    "measured again (it is not trained again)"
                )

    def sorted_rows(self, order: Callable[[Measured], Any]) -> list[Measured]:
        """All rows in that order."""
        return sorted(self.rows(), key=order)

    def write_results(self, rows: Sequence[Measured], table: str) -> None:
        """The rows as JSON, and as the table. Only whoever has the lock may do so."""
        _write(self.path / "results.json", list(rows))
        write_atomic(self.path / "results.md", table.encode())
