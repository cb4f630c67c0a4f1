"""Programs and connections that get data."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

NETWORK_SECONDS = 30.0


@contextmanager
def quiet_network() -> Iterator[None]:
    """No endless wait for a connection, and no chatter from a downloader."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_SECONDS)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
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
