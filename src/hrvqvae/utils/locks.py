"""Locks that keep other processes out of a folder or from a file.

A lock is the operating system's: it ends with the process, however that ends. In a folder it is the file FOLDER/.lock,
which stays there and means nothing; for a file X it is .X.lock beside it, which is removed at the end.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hrvqvae.utils.errors import InputError, explain_write_errors

_LONGEST = 200  # bytes of a name that a lock's name holds as it is
_PATIENCE = 0.5  # seconds: `is_locked` of another process may have the lock for a moment


class InUseError(InputError):
    """Another process works in the folder, or writes the file."""


def is_locked(folder: Path) -> bool:
    """Return whether another process has the lock of a folder; nothing is written."""
    path = folder.resolve() / ".lock"
    try:
        if _holder(path).is_file():  # whoever has the lock says so there
            with FileLock(path, blocking=False):
                pass
    except Timeout:
        return True
    except OSError:  # no lock can be taken here
        pass
    return False


def lock_folder(folder: Path, wait: Callable[[str], None] | None = None) -> AbstractContextManager[None]:
    """Keep other processes out of a folder, which is made if need be. A process that has the lock may take it again.

    Args:
        wait: Takes a line that says who has the lock, before it is waited for; None does not wait.

    Raises:
        InUseError: Another process has the lock and is not waited for; the message names its process id.
        InputError: The folder can't be made or written.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file; name a folder")
    return _lock(folder, folder.resolve() / ".lock", wait)


def lock_file(file: Path) -> AbstractContextManager[None]:
    """Keep other processes from a file, which need not exist. Raises InUseError and InputError as `lock_folder`."""
    place = file.resolve()  # by two names it is one file
    name = place.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    return _lock(file, place.with_name(f".{name}.lock"))


def _holder(path: Path) -> Path:
    return path.with_name(f"{path.name}-holder")


@contextmanager
def _lock(what: Path, path: Path, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    with explain_write_errors(what, "; choose another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True)
        outermost = not lock.is_locked
        try:
            lock.acquire(timeout=_PATIENCE, poll_interval=0.02)
        except Timeout:
            process = ""
            with suppress(OSError, ValueError):
                process = f" (pid {int(_holder(path).read_text())})"
            in_use = f"{what} is in use by another process{process}"
            if wait is None:
                raise InUseError(f"{in_use}; wait until it has ended, or choose another") from None
            wait(f"{in_use}; waiting for it")
            lock.acquire()
    try:
        if outermost:
            with suppress(OSError):  # only messages depend on it, so a full disk does not matter
                _holder(path).write_text(str(os.getpid()))
        yield
    finally:
        if outermost:
            with suppress(OSError):  # Windows removes no open file
                _holder(path).unlink(missing_ok=True)
                if path.name != ".lock":  # a folder keeps its lock's file
                    path.unlink(missing_ok=True)
        lock.release()
