"""Files are whole or not there, and damage is noticed."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrvqvae import storage
from hrvqvae.errors import DamagedFileError, InputError

TENSORS = {
    "weight": torch.arange(24, dtype=torch.float32).view(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "step": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}
META = {"step": 7, "name": "ünïcode"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    storage.write(tmp_path / "x.safetensors", TENSORS, META)
    tensors, meta = storage.read(tmp_path / "x.safetensors")
    assert meta == META
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_noticed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damage") / "x.safetensors"
    storage.write(path, TENSORS, META)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1), "length")]
    else:
        content[data.draw(st.integers(0, len(content) - 1), "place")] ^= 1 << data.draw(st.integers(0, 7), "bit")
    path.write_bytes(content)
    with contextlib.suppress(DamagedFileError):  # else a bit of the header that carries nothing, such as a space
        tensors, meta = storage.read(path)
        assert meta == META
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("place", ["tensor", "length", "header", "end"])
def test_damage_is_named(place: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    storage.write(path, TENSORS, META)
    content = bytearray(path.read_bytes())
    if place == "end":
        content = content[:-1]
    else:
        content[{"tensor": len(content) - 9, "length": 1, "header": content.index(b"weight")}[place]] ^= 4
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"x\.safetensors is damaged"):
        storage.read(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        storage.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    storage.write_atomic(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
    with pytest.raises(OSError, match="No space"):
        storage.write_atomic(path, b"new content")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{storage.TEMPORARY}12-x").write_bytes(b"half")
    (tmp_path / "x").write_bytes(b"whole")
    storage.remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
