"""One process at a time in a folder.

The lock is the operating system's, on the file FOLDER/.lock: it ends with the process, however that ends. The file
itself stays, and means nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hrvqvae.utils.errors import InputError

LOCK, HOLDER = ".lock", ".lock-holder"


class InUseError(InputError):
    """Another process works in the folder."""


@contextmanager
def locked(folder: Path, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep other processes out of a folder, if they ask as well. Whoever has it already may take it again.

    Args:
        folder: made if it does not exist.
        wait: is given a line that says who has it, and then it is waited for; None does not wait.

    Raises:
        InUseError: another process has it and is not waited for; its number is named.
        InputError: the folder can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, is_singleton=True)
        outermost = not lock.is_locked
        try:
            lock.acquire(blocking=False)
        except Timeout:
            in_use = f"{folder} is in use by another process{_holder(folder)}"
            if wait is None:
                raise InUseError(f"{in_use}; wait until it has ended, or choose another folder") from None
            wait(f"{in_use}; waiting for it")
            lock.acquire()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"the folder {folder} can't be written ({reason}); choose another --out") from error
    try:
        with _named(folder) if outermost else contextlib.nullcontext():
            yield
    finally:
        lock.release()


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Write down which process has the folder. Only messages depend on it, so a full disk does not matter."""
    with contextlib.suppress(OSError):
        (folder / HOLDER).write_text(str(os.getpid()))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)


def _holder(folder: Path) -> str:
    """The number of the process that has the folder, in brackets, where it has been written down."""
    try:
        return f" (pid {int((folder / HOLDER).read_text())})"
    except (OSError, ValueError):
        return ""
