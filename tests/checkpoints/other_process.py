"""Another process that has the lock of a folder or a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROGRAM = """
import sys
from pathlib import Path
from hrvqvae.utils import files
with getattr(files, sys.argv[2])(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def in_another_process(path: Path, lock: str = "locked") -> Iterator[int]:
    """Another process has the lock of a folder, or by "locked_file" of a file, until the block ends; -> its number."""
    command = [sys.executable, "-c", _PROGRAM, str(path), lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "locked\n"
            yield process.pid
        finally:
            process.kill()
