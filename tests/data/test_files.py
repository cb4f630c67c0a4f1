"""File formats: IDX, and pickles of arrays."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest

from hrvqvae.data.fetch import read_arrays
from hrvqvae.data.sets.mnist import read_idx, write_idx
from hrvqvae.utils.errors import DamagedFileError


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5)])
def test_idx_round_trip(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    write_idx(tmp_path / "a.gz", array)
    (tmp_path / "b").write_bytes(gzip.decompress((tmp_path / "a.gz").read_bytes()))
    for name in ("a.gz", "b"):
        np.testing.assert_array_equal(read_idx(tmp_path / name), array)


def test_damaged_idx_is_named(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    write_idx(path, np.zeros((5, 4, 4), np.uint8))
    whole = path.read_bytes()
    inside = gzip.decompress(whole)
    swapped = whole[:15] + bytes([whole[15] ^ 255]) + whole[16:]  # zlib has its own error for this
    cut, other = gzip.compress(inside[:-1]), gzip.compress(b"\0\0\x09" + inside[3:])
    for content in (whole[:30], b"", swapped, cut, other):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"images\.gz.*get it again"):
            read_idx(path)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must never run",))


def test_pickles_may_hold_arrays_alone(capsys: pytest.CaptureFixture[str]) -> None:
    good = {"data": np.arange(6, dtype=np.uint8), "labels": [1, 2]}
    for protocol in (0, 2, 4):
        read = read_arrays(pickle.dumps(good, protocol))
        np.testing.assert_array_equal(read["data"], good["data"])
        assert read["labels"] == [1, 2]
        with pytest.raises(DamagedFileError, match=r"builtins\.print|__builtin__\.print"):
            read_arrays(pickle.dumps({"data": _Evil()}, protocol))
    with pytest.raises(DamagedFileError):
        read_arrays(pickle.dumps(good)[:-8])
    assert capsys.readouterr().out == ""
