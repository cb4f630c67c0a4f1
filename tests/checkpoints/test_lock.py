"""One process at a time in a folder: a second one gets a line, and a killed one leaves nothing that blocks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.lock import HOLDER, InUseError, locked
from hrvqvae.utils.errors import InputError
from tests.checkpoints.other_process import in_another_process


def test_a_second_process_is_refused_with_the_number_of_the_first(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with in_another_process(run.path) as pid:
        message = rf"^{run.path} is in use by another process \(pid {pid}\); wait until it has ended, or choose another"
        with pytest.raises(InUseError, match=message), run.locked():
            pass
    with run.locked():  # that process was killed with the lock in its hands
        assert (run.path / HOLDER).read_text() == str(os.getpid())
    assert not (run.path / HOLDER).exists()


def test_a_number_that_was_not_written_down_is_left_out(tmp_path: Path) -> None:
    with in_another_process(tmp_path):
        (tmp_path / HOLDER).write_text("")
        with pytest.raises(InUseError, match="by another process; wait"), locked(tmp_path):
            pass


def test_who_has_it_may_take_it_again(tmp_path: Path) -> None:
    with locked(tmp_path):
        with locked(tmp_path):
            pass
        assert (tmp_path / HOLDER).read_text() == str(os.getpid()), "the outer one has it still"


_FORKING = """
import os, sys, time
from pathlib import Path
from hrvqvae.checkpoints.lock import locked
with locked(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_forked_does_not_keep_it(tmp_path: Path) -> None:
    """Processes that decode images are forked while it is held, and outlive a killed parent for a while."""
    command = [sys.executable, "-c", _FORKING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            process.kill()
            process.wait()
            with locked(tmp_path):
                os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = r"can't be written \(Not a directory\); choose another --out"
    with pytest.raises(InputError, match=message), locked(tmp_path / "file" / "run"):
        pass
