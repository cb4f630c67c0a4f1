"""What the torture of readers sees: errors, signals, memory, other content; and that a case is the same again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.torture.commands import Ended
from benchmarks.torture.readers import Parts, Reader
from hrvqvae.utils.errors import InputError


def read(path: Path) -> Parts:
    """A reader of JSON that does all that it should not."""
    content = path.read_bytes()
    match len(content) % 6:
        case 0:
            raise InputError("refused")
        case 1:
            os.abort()
        case 2:
            raise MemoryError
        case 3:
            raise KeyError(0)
        case 4:
            return {"": "as it was", "told": "yes"}
    return {"": "as it was" if content == b'{"a": 1234}' else "other"}


def test_each_case_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.json").write_bytes(b'{"a": 1234}')
    reader = Reader("x", read)
    expected = reader.expected(tmp_path)
    assert expected == {str(tmp_path / "x" / "a.json"): {"": "as it was"}}
    found = list(reader.run(tmp_path, 0, range(60), expected))
    told = {0: "", 1: "crash: exit code -6", 2: "memory", 3: "crash: KeyError, test_torture.py:", 4: "", 5: "accepted"}
    for number, fault in enumerate(found):
        path, content = reader.case(tmp_path, 0, number)
        assert path.read_bytes() == b'{"a": 1234}', "the file is put back"
        same = content == b'{"a": 1234}'
        assert fault.startswith("" if same else told[len(content) % 6])
        assert bool(fault) == bool(told[len(content) % 6]) or same
    assert len({fault.partition(":")[0] for fault in found}) == 4
    assert "KeyError" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "told", "fault"),
    [(0, "done\n", ""), (2, "hrvqvae: full\n", ""), (2, "full\n", "crash"), (1, "Traceback\n", "crash"),
     (-14, "", "hang"), (-11, "", "crash")],
)  # fmt: skip
def test_how_a_command_may_end(code: int, told: str, fault: str) -> None:
    assert Ended(code, told, 0, 0).fault(refused=True) == fault
    assert Ended(code, told, 0, 2 << 30).fault(refused=True) == "memory"
