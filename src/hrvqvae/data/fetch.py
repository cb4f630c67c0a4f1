"""Download the published data sets from several sources, check them, and then move them, file by
file, into the folder of the set.
"""

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
# An unpacked file has at most 64 MiB, and 50 bytes more per packed byte: no file fills the memory.
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
        # of the unpacked content: another source may pack the same content otherwise
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
        # on the file system of the target, so that files can be moved there
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as scratch:
            download = Path(scratch)
            fill_folder = resolve_name(way)
            try:
                fill_folder(download)
                check(dataset, download)
            except Exception as error:  # libraries, programs and networks raise any error
                failures.append(f"{title}: {one_line(error)}")
                say(f"{name}: not from {title}")
                continue
            for file in dataset.files or ():
                new = download / file
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                old_content = target.read_bytes() if target.is_file() else None
                if old_content not in (None, new.read_bytes()):
                    digest = hashlib.md5(old_content, usedforsecurity=False).hexdigest()
                    kept = target.replace(target.with_name(f"{target.name}.replaced-{digest[:8]}"))
                    say(f"{name}: the old file is kept as {kept}")
                new.replace(target)
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
        if len(content) > limit:  # told as damage below
            raise EOFError(f"it unpacks to more than {limit:,} bytes")
        return content
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); get it again") from error


@contextmanager
def quiet_network() -> Iterator[None]:
    """Limit waits for connections in this process, and hide the output of downloads."""
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
