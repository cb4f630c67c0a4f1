"""Getting the published data sets: several ways, tried in order, checked, and stored whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hrvqvae.config.registry import DATASETS, Dataset, imported
from hrvqvae.data.files import digest, unpacked
from hrvqvae.utils.errors import DamagedFileError, InputError


def check(dataset: Dataset, folder: Path) -> None:
    """Raises DamagedFileError where a file of the set is missing or has another checksum than published."""
    for file, expected in (dataset.files or {}).items():
        path = folder / file
        if not path.is_file():
            raise DamagedFileError(f"{path} is missing")
        if expected:
            found = digest(unpacked(path), "md5")
            if found != expected:
                raise DamagedFileError(f"{path} has MD5 {found}, published is {expected}")


def get(name: str, root: Path, say: Callable[[str], None]) -> Path:
    """Make a published set be there, complete and checked: -> its folder. Says which way it took.

    Raises:
        InputError: no such set, one that must be got by hand, or every way failed (each with its reason).
    """
    dataset = DATASETS.get(name)
    if not dataset.ways:
        raise InputError(f"{name} can't be got by command: it is {dataset.how}")
    folder = root / name
    try:
        check(dataset, folder)
    except DamagedFileError as error:
        if folder.is_dir() and any(folder.iterdir()):
            say(f"getting {name} again: {error}")
    else:
        say(f"{name}: already in {folder}, checked")
        return folder
    root.mkdir(parents=True, exist_ok=True)
    failures = []
    for title, way in dataset.ways:
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as scratch:
            filled = Path(scratch) / name
            filled.mkdir()
            try:
                imported(way)(filled)
                check(dataset, filled)
            except Exception as error:  # whatever a library, a program or a network runs into
                failures.append(f"{title}: {' '.join(str(error).split())[:240]}")
                say(f"{name}: not from {title}")
                continue
            for file in dataset.files or ():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (filled / file).replace(folder / file)
        say(f"{name}: from {title}, checked, in {folder}")
        return folder
    raise InputError(f"{name} could not be got. " + "; ".join(failures))
