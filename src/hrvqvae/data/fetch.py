"""Download the published data sets from several sources, check them, and store them whole or not at
all.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import socket
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from pkgutil import resolve_name

from hrvqvae.config.entries import Dataset
from hrvqvae.config.registry import DATASETS
from hrvqvae.utils.errors import DamagedFileError, InputError, one_line

_NETWORK_SECONDS = 30.0
_MOST_UNPACKED = 1 << 26
_MOST_UNPACKED_PER_BYTE = 50


def check(dataset: Dataset, folder: Path) -> None:
    """Raise DamagedFileError if a file of the set is missing or has another checksum than
    published.
    """
    for file, expected in (dataset.files or {}).items():
        path = folder / file
        if not path.is_file():
            raise DamagedFileError(f"{path} is missing")
        if not expected:
            continue
        md5 = hashlib.md5(read_unpacked(path), usedforsecurity=False).hexdigest()
        if md5 != expected:
            raise DamagedFileError(f"{path} has MD5 {md5}, published is {expected}")


def get(name: str, root: Path, say: Callable[[str], None]) -> Path:
    """Download a published set, unless it is complete, and return its folder. Raises InputError if
    that fails.
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
            download = Path(scratch) / name
            download.mkdir()
            try:
                resolve_name(way)(download)
                check(dataset, download)
            except Exception as error:  # libraries, programs and networks raise any error
                failures.append(f"{title}: {one_line(error)}")
                say(f"{name}: not from {title}")
                continue
            for file in dataset.files or ():
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                if (
                    target.is_file()
                    and (content := target.read_bytes()) != (download / file).read_bytes()
                ):
                    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
                    kept = target.replace(target.with_name(f"{target.name}.replaced-{digest[:8]}"))
                    say(f"{name}: the old file is kept as {kept}")
                (download / file).replace(target)
        say(f"{name}: from {title}, checked, in {folder}")
        return folder
    raise InputError(f"{name} could not be got. " + "; ".join(failures))


def read_unpacked(path: Path) -> bytes:
    """Read a file, and decompress it if its name ends in .gz. Raises DamagedFileError if that
    fails.
    """
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        limit = _MOST_UNPACKED + _MOST_UNPACKED_PER_BYTE * path.stat().st_size
        with gzip.open(path) as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:
            raise EOFError(f"it unpacks to more than {limit:,} bytes")
        return content
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); get it again") from error


@contextmanager
def quiet_network() -> Iterator[None]:
    """Limit waits for connections, and hide the output of downloads."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_SECONDS)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def run_program(*command: str, folder: str) -> None:
    """Run a program in a folder. Raises OSError, with its standard error, if it is missing or
    fails.
    """
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if finished.returncode:
        raise OSError(f"{command[0]} failed: {finished.stderr}")
