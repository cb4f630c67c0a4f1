"""Files are whole or not there, and damage is noticed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrvqvae.checkpoints import storage
from hrvqvae.utils.errors import DamagedFileError, InputError

TENSORS = {
    "weight": torch.arange(24, dtype=torch.float32).view(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "step": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}
META = {"step": 7, "name": "ünïcode"}


def same(found: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> bool:
    tensors, meta = found
    equal = all(tensors[name].dtype == one.dtype and torch.equal(tensors[name], one) for name, one in TENSORS.items())
    return meta == META and tensors.keys() == TENSORS.keys() and equal


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    storage.write(path, TENSORS, META)
    assert same(storage.read(path))
    assert [*tmp_path.iterdir()] == [path]
    content = path.read_bytes()
    path.write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])
    assert storage.read_meta(path) == META, "the header alone is read"


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.dictionaries(st.text("abc.é", min_size=1, max_size=9), st.integers(0, 9), max_size=6),
    name=st.text(max_size=9),
)
def test_the_header_is_in_order_and_the_data_aligned(
    sizes: dict[str, int], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("order") / "x.safetensors"
    tensors = {key: torch.arange(size, dtype=torch.float64) for key, size in sizes.items()}
    storage.write(path, tensors, {"name": name})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0, "safetensors maps the data from there"
    assert list(header) == sorted(header)
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
    found, meta = storage.read(path)
    assert meta == {"name": name}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("content", [b"", b"text that is none", b"\xff" * 40, b"\x02" + b"\0" * 7 + b"{}", b"[" * 2000])
def test_a_damaged_header_is_named(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        storage.read(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"x\.safetensors is damaged"):
        storage.read_meta(tmp_path / "x.safetensors")


@settings(max_examples=100, deadline=None)
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
        assert same(storage.read(path))
