"""Files and folders are written whole or not at all; one process at a time has a folder or a file."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import (
    HOLDER,
    TEMPORARY,
    InUseError,
    locked,
    locked_file,
    remove_temporaries,
    write_atomic,
    writing_folder,
)  # fmt: skip
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
from hrvqvae.utils.files import locked
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


def test_a_second_writer_of_a_file_is_refused(tmp_path: Path) -> None:
    program = _FORKING.replace("import locked", "import locked_file as locked").replace("not os.fork()", "True")
    path = tmp_path / "x.hrva"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        try:
            with (
                pytest.raises(InUseError, match=rf"x\.hrva is in use by another process \(pid {pid}\)"),
                locked_file(path),
            ):
                pass
        finally:
            process.kill()
    lock = tmp_path / ".x.hrva.lock"
    with locked_file(path):
        with locked_file(path):
            pass
        assert lock.exists(), "the outer one has it still"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new content")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}12-x").write_bytes(b"half")
    (tmp_path / "x").write_bytes(b"whole")
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"

    def full_disk() -> None:
        with writing_folder(out) as folder:
            (folder / "half").write_text("")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="out can't be written .*No space"):
        full_disk()
    assert not list(out.parent.iterdir())
    (out.parent / f"{TEMPORARY}out").mkdir()
    (out.parent / f"{TEMPORARY}out" / "of a killed writer").write_text("")
    with writing_folder(out) as folder:
        (folder / "whole").write_text("")
        assert not out.exists()
    assert [path.name for path in out.parent.rglob("*")] == ["out", "whole"]
    with pytest.raises(InputError, match="exists already; choose another"), writing_folder(out):
        pass
