"""Locks that keep other processes out of a folder.

The operating system holds the lock on the file FOLDER/.lock, and releases it when the process ends,
even by a kill. The file stays.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hrvqvae.utils.errors import InputError, explain_write_errors

_PATIENCE = 0.5  # seconds; a process that asks whether a folder is in use holds it briefly


class InUseError(InputError):
    """Another process holds the lock of a folder."""


@contextmanager
def lock_folder(folder: Path, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep other processes out of a folder, which is created if need be. The holder of the lock may
    acquire it again.

    If another process holds the lock, `wait` is called with a line before waiting; without `wait`
    it is an error.

    Raises:
        InUseError: Another process holds the lock, and `wait` is not given.
        InputError: The folder can't be created or written.
    """
    path = folder.resolve()
    with explain_write_errors(folder, "; choose another folder"):
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock", is_singleton=True)
        try:
            lock.acquire(timeout=_PATIENCE, poll_interval=0.02)
        except Timeout:
            in_use = f"{folder} is in use by another process"
            if wait is None:
                raise InUseError(f"{in_use}; wait until it has ended, or choose another") from None
            wait(f"{in_use}; waiting for it")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
