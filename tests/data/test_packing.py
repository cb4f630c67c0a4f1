"""Folders of images to shards: whole or not at all, the same bytes each time, and nothing else written over."""

import os
import shutil
import tarfile
from pathlib import Path

import filelock
import pytest

from hrvqvae.cli import main
from hrvqvae.data import packing
from hrvqvae.utils.outputs import TEMPORARY
from tests.conftest import refused, write_picture
from tests.data.stored import folder_of
from tests.kills import Killed, Kills
from tests.trained_run import silent


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def test_the_command(picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (picture_folder / "notes.txt").write_text("no image")
    assert main(["data", "pack", str(picture_folder), str(tmp_path / "out" / "pets"), "--shard-size", "1"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/out/pets-000000.tar: 30 images\n30 images, 2 classes in 1 shard\n"
    expected = folder_of(picture_folder)
    del expected["notes.txt"]
    with tarfile.open(tmp_path / "out" / "pets-000000.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(0, 0, "")}
    labels = {name: int(one) for name, one in members.items() if name.endswith(".cls")}
    assert {name: one for name, one in members.items() if name not in labels} == expected
    assert labels == {f"{name.rpartition('.')[0]}.cls": int(name.startswith("dogs")) for name in expected}
    assert (tmp_path / "out" / "classnames.txt").read_text() == "cats\ndogs\n"
    assert sorted(os.listdir(tmp_path / "out")) == ["classnames.txt", "pets-000000.tar"]  # noqa: PTH208


@pytest.mark.parametrize("form", packing.FORMATS)
def test_killed_and_called_again(
    form: str, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is killed, every shard under its name is whole, and the end is the same bytes."""
    packing.pack(picture_folder, tmp_path / "whole" / "p", form, 3000, silent)
    expected, out, killer, kills = files(tmp_path / "whole"), tmp_path / "out", Kills(5), 0
    assert len(expected) > 4
    while kills < 8:
        with monkeypatch.context() as patched:
            killer.watch(patched, ((Path, "read_bytes"), (Path, "replace")))
            killer.arm(10 + 10 * kills)
            try:
                packing.pack(picture_folder, out / "p", form, 3000, silent)
                shutil.rmtree(out)  # or nothing would be left to kill
            except Killed:
                kills += 1
                (out / f"{TEMPORARY}left-p-000001.{form}").write_bytes(b"what a real kill leaves")
        assert {name: one for name, one in files(out).items() if name[0] != "."}.items() <= expected.items()
    packing.pack(picture_folder, out / "p", form, 3000, silent)
    assert files(out) == expected


def test_what_is_refused(picture_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    packing.pack(picture_folder, out / "p", shard_bytes=3000, say=silent)
    before = files(out)

    def told(*arguments: object) -> str:
        return refused(["data", "pack", *arguments])

    assert "p-000001.tar is there and is not of this packing; choose another OUT" in told(picture_folder, out / "p")
    assert f"{out} is a folder; name how the shards begin, such as {out}/pictures" in told(picture_folder, out)
    assert "invalid choice" in told(picture_folder, out / "p", "--format", "zip")
    assert "--shard-size is 0" in told(picture_folder, out / "p", "--shard-size", 0)
    assert "has no PNG, JPEG or WebP image" in told(out, tmp_path / "nothing")
    write_picture(picture_folder / "birds" / "b.png", 3)
    assert "classnames.txt is there and holds something else" in told(picture_folder, out / "q")
    (picture_folder / "birds" / "b.png").unlink()
    with filelock.FileLock(out / ".q.lock"):
        assert "is in use by another process" in told(picture_folder, out / "q")
    (out / ".q.lock").unlink(missing_ok=True)
    assert files(out) == before
    damaged = before["p-000000.tar"][:700] + b"x" + before["p-000000.tar"][701:]
    (out / "p-000000.tar").write_bytes(damaged)
    with pytest.raises(packing.InputError, match="p-000000.tar is there and holds something else"):
        packing.pack(picture_folder, out / "p", shard_bytes=3000, say=silent)
    assert (out / "p-000000.tar").read_bytes() == damaged


def test_names_become_keys(tmp_path: Path) -> None:
    said = list[str]()
    for name in ("a.b.png", "a.png", "a.jpg", ".c.png"):
        write_picture(tmp_path / "in" / name, len(name))
    packing.pack(tmp_path / "in", tmp_path / "out" / "p", say=said.append)
    with tarfile.open(tmp_path / "out" / "p-000000.tar") as archive:
        assert archive.getnames() == ["_c.png", "a_b.png", "a.jpg", "a_png.png"]
    assert said[0].startswith("3 files with dots in the name or with another's name")
    for name in ("a.b_png.jpg", "a_b.png"):
        write_picture(tmp_path / "in" / name, 1)
    with pytest.raises(packing.InputError, match="a.b_png.jpg and a_b.png would both be a_b_png"):
        packing.pack(tmp_path / "in", tmp_path / "again" / "p", say=silent)
