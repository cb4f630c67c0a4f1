"""Files and folders are written whole or not at all, under safe names; one process at a time has a
folder or a file.
"""

import errno
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrvqvae.utils import outputs
from hrvqvae.utils.errors import InputError, expand_home
from hrvqvae.utils.locks import lock_folder
from hrvqvae.utils.outputs import (
    TEMPORARY,
    Outputs,
    check_output,
    create_folder,
    write_atomic,
    write_output,
)
from tests.conftest import cells_of, in_use_error, input_error, parametrize
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
FULL = OSError(errno.ENOSPC, "No space left on device")


def test_one_process_has_a_folder(tmp_path):
    """A killed one frees it; who has it may take it again."""
    path = tmp_path / "x"
    in_use = in_use_error("x is in use by another process; wait")
    with in_another_process(path), in_use, lock_folder(path):
        pass
    with lock_folder(path), lock_folder(path):
        pass
    (tmp_path / "file").touch()
    with input_error("can't be written .*choose another folder"), lock_folder(tmp_path / "file/x"):
        pass


def test_what_a_killed_process_forked_does_not_keep_it(tmp_path):
    """Processes that decode images are forked while it is held, and outlive a killed parent for a
    while.
    """
    command = [sys.executable, "-c", _FORKING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            with lock_folder(tmp_path):
                os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)


@parametrize("owner, call", [(os, "fsync"), (Path, "replace")])
def test_a_full_disk_leaves_the_old_file(owner, call, tmp_path):
    path = tmp_path / "x"
    write_atomic(path, b"old")
    full = patch.object(owner, call, side_effect=FULL)
    with full, pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new content")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_keeps_its_mode_and_what_a_killed_writer_left_goes(tmp_path):
    path = tmp_path / "x"
    path.touch(0o600)
    write_atomic(path, b"private")
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / f"{TEMPORARY}12").write_bytes(b"left by a killed writer")
    outputs.remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / os.fsdecode(b"out\xe9")  # a name that is not UTF-8
    with input_error("out.* can't be written .*No space"), create_folder(out) as folder:
        (folder / "half").touch()
        raise FULL
    assert not list(out.parent.iterdir())
    with suppress(StopIteration), create_folder(out) as temporary:
        (temporary.parent / "kept").mkdir()
        raise StopIteration
    assert not temporary.exists()
    with create_folder(out) as folder:
        (folder / "whole").touch()
        assert not out.exists()
    assert sorted(path.name for path in out.parent.rglob("*")) == ["kept", out.name, "whole"]
    for there in (out, Path(), Path("/")):
        with input_error("exists already; choose another"), create_folder(there):
            pass


@settings(max_examples=100)
@given(names=st.lists(st.text("aAb/.\\", max_size=8), max_size=12))
def test_outputs_differ_and_stay_in_their_folder(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "deep"
    outputs = Outputs(folder)
    paths = []
    for name in names:
        with suppress(InputError):  # it leads out of the folder
            paths.append(outputs.reserve(name, ".png"))
    assert len({str(path).lower() for path in paths}) == len(paths)
    for path in paths:
        write_output(path, b"x")
    assert {path for path in folder.rglob("*") if path.is_file()} == set(paths)


def test_what_exists_and_what_is_read_is_kept(tmp_path):
    source = tmp_path / "in.png"
    target = tmp_path / "out.png"
    link = tmp_path / "link.png"
    source.touch()
    target.touch()
    link.hardlink_to(source)
    for name, force, message in cells_of("""
            out.png | no | exists already; choose another output, or overwrite it with --force
            in.png | yes | is an input and is never overwritten
            link.png | yes | is an input
            x.jpg | yes | must end in .png
            in.png/x.png | yes | can't be written
        """):
        with input_error(message):
            check_output(tmp_path / name, force=force == "yes", inputs=[source], suffix=".png")
    check_output(target, force=True, inputs=[source])
    for folder, name, message in (
        (Outputs(target, ".png"), "", "exists already"),
        (Outputs(tmp_path, inputs=[source]), "in.png", "an input"),
        (Outputs(tmp_path.parent), tmp_path.name, "is a folder"),
    ):
        with input_error(message):
            folder.reserve(name, "")


def test_a_single_output_takes_one_image_of_its_format(tmp_path):
    path = tmp_path / "new.PNG"
    single = Outputs(path, ".png")
    assert single.reserve("a", ".png") == path
    with input_error("takes one image"):
        single.reserve("b", ".png")
    with input_error("must end in .png, or be a folder that exists"):
        Outputs(tmp_path / "x.jpg", ".png")


def test_links_are_followed_to_their_file_and_never_out_of_the_folder(tmp_path):
    """A link that is named stays a link; one inside of the folder that leads out is refused, also
    to no file.
    """
    inside = tmp_path / "in"
    outside = tmp_path / "outside"
    link = inside / "x.png"
    inside.mkdir()
    outside.mkdir()
    (inside / "folder").symlink_to(outside)
    link.symlink_to(outside / "none.png")
    for name in ("folder/y", "x"):
        with input_error("leads out of"):
            Outputs(inside).reserve(name, ".png")
    write_output(link, b"new")
    assert link.is_symlink()
    assert (outside / "none.png").read_bytes() == b"new"


def test_a_tilde_without_a_home_is_a_name():
    assert expand_home("~nobody-has-this-name/x") == Path("~nobody-has-this-name/x")
    assert expand_home("~/x") == Path.home() / "x"
