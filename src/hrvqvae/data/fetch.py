"""Getting the published data sets: several ways, tried in order, checked, and stored whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import shutil
import socket
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hrvqvae.config.registry import DATASETS, Dataset, imported
from hrvqvae.utils.errors import DamagedFileError, InputError

NETWORK_SECONDS = 30.0


def check(dataset: Dataset, folder: Path) -> None:
    """Raises DamagedFileError where a file of the set is missing or has another checksum than published."""
    for file, expected in (dataset.files or {}).items():
        path = folder / file
        if not path.is_file():
            raise DamagedFileError(f"{path} is missing")
        if expected:
            found = hashlib.md5(unpacked(path), usedforsecurity=False).hexdigest()
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


# What the ways need


def unpacked(path: Path) -> bytes:
    """Content of a file, decompressed where its name ends in .gz. Raises DamagedFileError where it can't be."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); get it again") from error


@contextmanager
def quiet_network() -> Iterator[None]:
    """No endless wait for a connection, and no chatter from a downloader."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_SECONDS)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def run_program(*command: str, folder: Path | None = None) -> str:
    """Run a program in a folder; -> its standard output.

    Raises:
        OSError: it is not installed, or fails; what it wrote on standard error is told.
    """
    if shutil.which(command[0]) is None:
        raise OSError(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise OSError(f"{command[0]} failed: {' '.join(done.stderr.split()) or 'no message'}")
    return done.stdout


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy arrays and plain containers; any other class in the file is an error, and none of it runs."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.ndarray.__reduce__(np.empty(0))[0]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, coding: text.encode("latin1")
        raise DamagedFileError(f"the file holds {module}.{name}; only numpy arrays are admitted")


def read_arrays(stream: BinaryIO | bytes) -> Any:
    """Object of a pickle that may hold numpy arrays, numbers, strings and containers, nothing else.

    Raises:
        DamagedFileError: it holds anything else, or is cut short.
    """
    source = io.BytesIO(stream) if isinstance(stream, bytes) else stream
    try:
        return _ArraysOnly(source, encoding="latin1").load()
    except DamagedFileError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise DamagedFileError(f"the file of arrays is damaged: {error}") from error
