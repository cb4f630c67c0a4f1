"""Files and folders are written whole or not at all; one process at a time has a folder or a file."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from hrvqvae.utils.errors import InputError
from hrvqvae.utils.locks import InUseError, lock_file, lock_folder
from hrvqvae.utils.outputs import TEMPORARY, create_folder, remove_temporaries, write_atomic
from tests.kills import in_another_process

_FORKING = """
import os, sys, time
from pathlib import Path
from hrvqvae.utils.locks import lock_folder
with lock_folder(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("lock", [lock_folder, lock_file])
def test_one_process_has_it(lock: Callable[[Path], AbstractContextManager[None]], tmp_path: Path) -> None:
    """The number of another one is named; a killed one frees it; who has it may take it again."""
    path = tmp_path / "x"
    holder = path / ".lock-holder" if lock is lock_folder else tmp_path / ".x.lock-holder"
    with in_another_process(path, lock.__name__) as number:
        with pytest.raises(InUseError, match=rf"x is in use by another process \(pid {number}\); wait"), lock(path):
            pass
        holder.write_text("")
        with pytest.raises(InUseError, match="by another process; wait"), lock(path):
            pass
    with lock(path):
        with lock(path):
            pass
        assert holder.read_text() == str(os.getpid()), "the outer one has it still"
        assert holder.with_name(holder.name.removesuffix("-holder")).exists()
    assert {one.name for one in tmp_path.rglob("*")} == ({"x", ".lock"} if lock is lock_folder else set())


def test_what_a_killed_process_forked_does_not_keep_it(tmp_path: Path) -> None:
    """Processes that decode images are forked while it is held, and outlive a killed parent for a while."""
    command = [sys.executable, "-c", _FORKING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            with lock_folder(tmp_path):
                os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"can't be written .*choose another folder"),
        lock_folder(tmp_path / "file" / "run"),
    ):
        pass


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
    (tmp_path / f"{TEMPORARY}folder").mkdir()
    (tmp_path / "x").write_bytes(b"whole")
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"

    def full_disk() -> None:
        with create_folder(out) as folder:
            (folder / "half").write_text("")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="out can't be written .*No space"):
        full_disk()
    assert not list(out.parent.iterdir())
    with suppress(StopIteration), create_folder(out) as temporary:
        (temporary.parent / "kept").mkdir()
        raise StopIteration
    (out.parent / "kept").rename(temporary)
    (temporary / "of a killed writer").write_text("")
    with in_another_process(out, "create_folder"):
        with pytest.raises(InUseError, match="in use"), create_folder(out):
            pass
        assert temporary.is_dir(), "the other one's work is left alone"
    with create_folder(out) as folder:
        (folder / "whole").write_text("")
        assert not out.exists()
    assert [path.name for path in out.parent.rglob("*")] == ["out", "whole"]
    for there in (out, Path(), Path("/")):
        with pytest.raises(InputError, match="exists already; choose another"), create_folder(there):
            pass


def test_a_lock_is_of_the_file_and_not_of_its_name(tmp_path: Path) -> None:
    """By a link, and under a name that leaves no room for the lock's own."""
    (tmp_path / "link").symlink_to(tmp_path / "x")
    with in_another_process(tmp_path / "x", "lock_file"), pytest.raises(InUseError), lock_file(tmp_path / "link"):
        pass
    with lock_file(tmp_path / ("x" * 255)):
        write_atomic(tmp_path / ("x" * 255), b"")


def test_who_asks_for_a_lock_keeps_nobody_out(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from hrvqvae.utils.locks import is_locked\n"
    program += "print(flush=True)\nwhile True: is_locked(Path(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            for _ in range(200):
                with lock_folder(tmp_path):
                    pass
                (tmp_path / ".lock-holder").write_text("1")  # as of a killed process
        finally:
            process.kill()
