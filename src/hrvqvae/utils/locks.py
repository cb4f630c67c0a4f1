"""Locks that keep other processes out of a folder or from a file.

The operating system holds the lock, and releases it when the process ends, even by a kill. The lock
of a folder is on the file FOLDER/.lock, which stays there when nobody holds the lock. The lock of a
file X is on .X.lock beside the file, which is removed with the lock.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hrvqvae.utils.errors import InputError, explain_write_errors

_PATIENCE = 0.5  # seconds; `is_locked` in another process may hold the lock for a moment


class InUseError(InputError):
    """Another process holds the lock of a folder or file."""


def is_locked(folder: Path) -> bool:
    """Return whether another process holds the lock of a folder."""
    path = folder.resolve() / ".lock"
    if not path.is_file():
        return False
    try:
        with FileLock(path, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # the folder can't be locked
        return False


def lock_folder(
    folder: Path, wait: Callable[[str], None] | None = None
) -> AbstractContextManager[None]:
    """Keep other processes out of a folder, which is created if need be. The holder of the lock may
    acquire it again.

    If another process holds the lock, `wait` is called with a line before waiting; without `wait`
    it is an error.

    Raises:
        InUseError: Another process holds the lock, and `wait` is not given.
        InputError: The folder can't be created or written.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file; name a folder")
    return _lock(folder, folder.resolve() / ".lock", wait)


def lock_file(file: Path) -> AbstractContextManager[None]:
    """Keep other processes from a file, which need not exist. Raises InUseError and InputError as
    `lock_folder`.
    """
    path = file.resolve()  # one lock for all names of the file
    return _lock(file, path.with_name(f".{path.name}.lock"))


@contextmanager
def _lock(target: Path, path: Path, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    with explain_write_errors(target, "; choose another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True)
        is_outermost = not lock.is_locked
        try:
            lock.acquire(timeout=_PATIENCE, poll_interval=0.02)
        except Timeout:
            in_use = f"{target} is in use by another process"
            if wait is None:
                raise InUseError(f"{in_use}; wait until it has ended, or choose another") from None
            wait(f"{in_use}; waiting for it")
            lock.acquire()
    try:
        yield
    finally:
        if is_outermost and path.name != ".lock":  # which stays in the folder
            with suppress(OSError):  # Windows can't remove an open file
                path.unlink(missing_ok=True)
        lock.release()
