"""Files and folders that are written whole or not at all, and locks that keep other processes out of them.

A lock is the operating system's: it ends with the process, however that ends. In a folder it is the file FOLDER/.lock,
which stays there and means nothing; for a file X it is .X.lock beside it, which is removed at the end.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from hrvqvae.utils.errors import DamagedFileError, InputError

TEMPORARY = ".writing-"


@contextmanager
def writable(what: object, then: str = "") -> Iterator[None]:
    """An OSError becomes InputError: `what` can't be written, why, and `then` what to do."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} can't be written ({error.strerror or error}){then}") from error


@contextmanager
def writing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """A temporary name beside a file, under which it is written; at the end it is flushed to the disk and renamed.

    A kill leaves the old file or the new; a machine that loses power does so only with `flush`.

    Raises:
        OSError: the disk is full or the folder can't be written; the old file is as it was, nothing else is left.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        if flush:
            with temporary.open("r+b") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if flush:
        with suppress(OSError):  # not every file system lets a folder be flushed
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: see `writing`. Raises OSError as it does."""
    with writing(path) as temporary, temporary.open("xb") as stream:
        stream.write(content)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A new, empty folder beside the one that is named, in which its content is written; at the end it is renamed.

    Raises:
        InputError: the folder exists already, or can't be written; nothing is left of it.
        InUseError: another process writes it.
    """
    if path.exists():  # as . and / do, which have no name
        raise InputError(f"{path} exists already; choose another folder")
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with locked_file(path):
        try:
            with writable(path):
                shutil.rmtree(temporary, ignore_errors=True)  # what a killed writer left
                temporary.mkdir(parents=True)
                yield temporary
                temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def path_below(name: str, whose: object) -> PurePosixPath:
    """A stored name as a path below some folder. Raises DamagedFileError where it leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name or "\\" in name or "\0" in name:
        raise DamagedFileError(f"{whose} has a name that leads out of a folder: {name!r}")
    return path


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a folder. Only the process that has its lock may do so."""
    for left in folder.glob(f"{TEMPORARY}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


class InUseError(InputError):
    """Another process works in the folder, or writes the file."""


def in_use(folder: Path) -> bool:
    """Whether another process keeps others out of a folder, as by `locked`; nothing is written."""
    file = folder / ".lock"
    try:
        if file.is_file():
            with FileLock(file, blocking=False):
                pass
    except Timeout:
        return True
    except OSError:  # no lock can be taken here
        pass
    return False


@contextmanager
def locked(what: Path, wait: Callable[[str], None] | None = None, *, is_file: bool = False) -> Iterator[None]:
    """Keep other processes that ask as well out of a folder, or from a file. A process that has it may take it again.

    Args:
        what: a folder, which is made if it does not exist, or a file, which need not exist.
        wait: takes a line that says who has it, and then it is waited for; None does not wait.

    Raises:
        InUseError: another process has it and is not waited for; its number is named.
        InputError: the folder can't be made or written.
    """
    file = what.with_name(f".{what.name}.lock") if is_file else what / ".lock"
    holder = file.with_name(f"{file.name}-holder")
    with writable(what, "; choose another --out"):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, is_singleton=True)
        outermost = not lock.is_locked
        try:
            lock.acquire(blocking=False)
        except Timeout:
            number = ""
            with suppress(OSError, ValueError):
                number = f" (pid {int(holder.read_text())})"
            in_use = f"{what} is in use by another process{number}"
            if wait is None:
                raise InUseError(f"{in_use}; wait until it has ended, or choose another") from None
            wait(f"{in_use}; waiting for it")
            lock.acquire()
    try:
        if outermost:
            with suppress(OSError):  # only messages depend on it, so a full disk does not matter
                holder.write_text(str(os.getpid()))
        yield
    finally:
        if outermost:
            with suppress(OSError):  # Windows removes no open file
                holder.unlink(missing_ok=True)
                if is_file:  # a folder keeps its lock's file
                    file.unlink(missing_ok=True)
        lock.release()


def locked_file(path: Path) -> AbstractContextManager[None]:
    """Keep other processes that ask as well from a file, as `locked` keeps them out of a folder."""
    return locked(path, is_file=True)
