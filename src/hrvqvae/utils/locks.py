"""Locks that keep other processes out of a folder or from a file.

The operating system holds the lock, and releases it when the process ends, even by a kill. The lock
of a folder is on the file FOLDER/.lock, which stays there when nobody holds the lock. The lock of a
file X is on .X.lock beside the file, which is removed with the lock.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hrvqvae.utils.errors import InputError, explain_write_errors

_LONGEST = 200  # bytes; a lock's name holds a digest of any longer name
_PATIENCE = 0.5  # seconds; `is_locked` in another process may hold the lock for a moment


class InUseError(InputError):
    """Another process holds the lock of a folder or file."""


def is_locked(folder: Path) -> bool:
    """Return whether another process holds the lock of a folder, without writing to the folder."""
    path = folder.resolve() / ".lock"
    try:
        if path.with_name(".lock-holder").is_file():  # exists while a process holds the lock
            with FileLock(path, blocking=False):
                pass
    except Timeout:
        return True
    except OSError:  # the folder can't be locked
        pass
    return False


def lock_folder(
    folder: Path, wait: Callable[[str], None] | None = None
) -> AbstractContextManager[None]:
    """Keep other processes out of a folder, which is created if need be. The holder of the lock may
    acquire it again.

    If another process holds the lock, `wait` is called with a line before waiting; without `wait`
    it is an error.

    Raises:
        InUseError: Another process holds the lock, and `wait` is not given. The message names the
            process id.
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
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    return _lock(file, path.with_name(f".{name}.lock"))


@contextmanager
def _lock(target: Path, path: Path, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    with explain_write_errors(target, "; choose another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True)
        holder = path.with_name(f"{path.name}-holder")
        outermost = not lock.is_locked

        # Try for a moment; then name the holder, and wait if that is wanted.
        try:
            lock.acquire(timeout=_PATIENCE, poll_interval=0.02)
        except Timeout:
            user = "another process"
            with suppress(OSError, ValueError):
                pid = int(holder.read_text())
                user = "another thread" if pid == os.getpid() else f"another process (pid {pid})"
            in_use = f"{target} is in use by {user}"
            if wait is None:
                raise InUseError(f"{in_use}; wait until it has ended, or choose another") from None
            wait(f"{in_use}; waiting for it")
            lock.acquire()
    try:
        if outermost:
            # Only `is_locked` and messages read this file, so a full disk does no harm.
            with suppress(OSError):
                holder.write_text(str(os.getpid()))
        yield
    finally:
        if outermost:
            with suppress(OSError):  # Windows can't remove an open file
                holder.unlink(missing_ok=True)
                if path.name != ".lock":  # which stays in the folder
                    path.unlink(missing_ok=True)
        lock.release()
