"""Output files: their names, what they may replace, and writing them whole or not at all."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hrvqvae.utils.errors import InputError, explain_write_errors
from hrvqvae.utils.progress import note
from hrvqvae.utils.quantities import counted

T = TypeVar("T")
TEMPORARY = ".writing-"


def base_name(run: str | Path) -> str:
    """Return the name of a run's folder."""
    return Path(run).resolve().name


def check_output(
    path: Path, *, force: bool = False, inputs: Iterable[Path] = (), suffix: str = ""
) -> None:
    """Check that a file may be written, before anything is computed for it.

    Raises:
        InputError: The path has another suffix, is a folder, is one of the inputs, can't be
            written, or exists and `force` is not given.
    """
    if suffix and path.suffix.lower() != suffix:
        raise InputError(f"{path} must end in {suffix}")
    _check_replaceable(path, force, {_identify(source) for source in inputs if source.exists()})
    resolved = path.resolve()
    folder = next(parent for parent in resolved.parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InputError(f"{path} can't be written: {folder} is no folder that may be written")


def _identify(path: Path) -> tuple[int, int]:
    """Return the device and inode of a path: equal for all names of a file, also in other case."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _check_replaceable(path: Path, force: bool, inputs: set[tuple[int, int]]) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    if not path.exists():
        return
    if _identify(path) in inputs:
        raise InputError(f"{path} is an input and is never overwritten; choose another output")
    if not force:
        raise InputError(
            f"{path} exists already; choose another output, or overwrite it with --force"
        )


class Outputs:
    """The files that a command writes: one file, or files below a folder.

    Args:
        out: The file, if its name ends in the suffix; else the folder, which need not exist.
        suffix: Suffix of a single file, such as ".png"; "" if `out` is always a folder.
        force: Replace a single file that exists. Files below a folder may always exist.
        inputs: Files that are never replaced.
    """

    def __init__(
        self, out: Path, suffix: str = "", *, force: bool = False, inputs: Iterable[Path] = ()
    ) -> None:
        extension = out.suffix.lower()
        if suffix and extension not in ("", suffix) and not out.is_dir():
            raise InputError(f"{out} must end in {suffix}, or be a folder that exists")
        self._out = out
        self._single = bool(suffix) and extension == suffix
        self._force = force or not self._single
        self._inputs = {_identify(path) for path in inputs if path.exists()}
        self._taken = set[str]()  # in lower case: some systems ignore the case

    def reserve(self, name: str, suffix: str) -> Path:
        """Return the path of an output: the file, or the name and the suffix below the folder.
        Equal names are numbered: x, x-2, x-3.

        Raises:
            InputError: The path can't be written (see `check_output`), the name or a symbolic link
                leads out of the folder, or a single file is reserved twice.
        """
        path = self._out
        if self._single:
            if self._taken:
                raise InputError(f"{path} takes one image, and there are more; name a folder")
            self._taken.add(name)
        else:
            path /= self._make_unique(os.path.normpath(name), suffix)
            if not path.resolve().is_relative_to(self._out.resolve()):
                raise InputError(f"{path} leads out of {self._out}; rename the image")
        _check_replaceable(path, self._force, self._inputs)
        return path

    def _make_unique(self, name: str, suffix: str) -> str:
        unique = f"{name}{suffix}"
        number = 1
        while unique.casefold() in self._taken:
            number += 1
            unique = f"{name}-{number}{suffix}"
        self._taken.add(unique.casefold())
        return unique


@dataclass(frozen=True)
class Record:
    """A file in a folder that tells with which options the other files there are made.

    A second call goes on if it has the same options. A file that is older than the record or than
    its input is made anew.
    """

    path: Path
    options: Mapping[str, Any]

    def is_written(self) -> bool:
        """Return whether the folder has this record."""
        return self.path.is_file() and self.path.read_bytes() == self._content

    @property
    def _content(self) -> bytes:
        return json.dumps(self.options).encode()

    def write(self) -> None:
        """Write the record before the first file. Raises InputError."""
        if not self.is_written():
            write_output(self.path, self._content)

    def select_missing(self, targets: Mapping[T, Path], find_input: Callable[[T], Path]) -> list[T]:
        """Return the sources whose files must be made; a notice counts the others. Raises
        InputError if files were made with other options.
        """
        existing = [source for source in targets if targets[source].exists()]
        folder = self.path.parent
        if not self.is_written() and (existing or self.path.exists()):
            raise InputError(
                f"{folder} was begun with other options or another model; choose another, or begin"
                " anew with --force"
            )
        missing = dict(targets)
        for source in existing:
            status = find_input(source).stat()
            # a file that replaces another one may have been written earlier
            changed = max(self.path.stat().st_mtime, status.st_mtime, status.st_ctime)
            if targets[source].stat().st_mtime >= changed:
                del missing[source]
        if existing:
            kept = len(targets) - len(missing)
            files = counted(len(existing), "file")
            note(f"{folder} has {files} already; {kept} newer than their inputs are kept")
        return [*missing]


def _name_temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")


@contextmanager
def replace_file(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to, and replace the file by it at the end. After an error the
    file is unchanged.

    A file that is replaced keeps its permissions. If the path is a symbolic link, its target is
    replaced. Without `flush`, both the old and the new file may be lost when the machine loses
    power. Raises OSError if the disk is full or the folder can't be written.
    """
    path = path.resolve()
    temporary = _name_temporary(path)
    try:
        yield temporary
        if flush:
            with temporary.open("r+b") as stream:
                os.fsync(stream.fileno())
        with suppress(FileNotFoundError):  # a new file
            temporary.chmod(path.stat().st_mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises OSError as `replace_file`."""
    with replace_file(path) as temporary, temporary.open("xb") as stream:
        stream.write(content)


def write_output(path: Path, content: bytes) -> None:
    """Create the folder of a file, and write the file whole or not at all. Raises InputError if
    that fails.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)


@contextmanager
def create_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty folder to write to, and rename it to `path` at the end. After an error it
    is removed. Raises InputError if the folder exists already, or can't be written.
    """
    if path.exists():  # also if the path is . or /, for which `with_name` would fail
        raise InputError(f"{path} exists already; choose another folder")
    temporary = _name_temporary(path.resolve())
    with explain_write_errors(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files that killed processes left. The caller must hold the folder's
    lock.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_file():
            path.unlink(missing_ok=True)
