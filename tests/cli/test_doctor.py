"""hrvqvae doctor: what is there and missing, where things are kept."""

from __future__ import annotations

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from hrvqvae.cli import main
from hrvqvae.utils import extras


def examined(capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[dict[str, Any], str, list[str]]:
    """What doctor finds: for programs, as it prints it, and the lines of its problems."""
    assert main(["doctor"]) == code
    printed = capsys.readouterr()
    assert main(["doctor", "--json"]) == code
    return json.loads(capsys.readouterr().out), printed.out, printed.err.splitlines()


@pytest.fixture
def requirements(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that gives the package other requirements, as pip keeps them."""

    def become(lines: list[str]) -> None:
        extras.packages.cache_clear()
        monkeypatch.setattr(metadata, "requires", lambda name: lines)

    yield become
    monkeypatch.undo()
    extras.packages.cache_clear()


def test_this_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found, printed, problems = examined(capsys)
    assert found["problems"] == problems == []
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["precision"] in ("bf16", "fp32")
    assert found["folders"]["data sets (HRVQVAE_DATA)"] == str(tmp_path / "data")
    assert found["folders"]["published networks (TORCH_HOME)"] == str(tmp_path / "hub" / "checkpoints")
    assert found["extras"]["figures"] == []
    assert str(tmp_path / "data") in printed
    assert all(f"extra {extra} " in printed for extra in found["extras"])


def test_an_extra_that_is_not_whole(requirements: Any, capsys: pytest.CaptureFixture[str]) -> None:
    requirements(["torch>=2", 'no-such-package>=1; extra == "one"', 'numpy; extra == "one"', 'numpy; extra == "two"'])
    found, printed, _ = examined(capsys)
    assert found["extras"] == {"one": ["no-such-package"], "two": []}
    assert "pip install 'hrvqvae[one]' for no-such-package\n" in printed


def test_what_keeps_it_from_working_is_exit_code_1(
    requirements: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requirements(["no-such-package>=1"])
    (tmp_path / "file").touch()
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setitem(sys.modules, "torch", None)
    found, _, problems = examined(capsys, code=1)
    missing, broken, folder = found["problems"]
    assert missing == "no-such-package is missing: pip install no-such-package"
    assert broken.startswith("torch can't be used: ")
    assert folder.endswith(f"can't be written: {tmp_path / 'file' / 'data'}")
    assert "device" not in found
    assert problems == [f"hrvqvae: {problem}" for problem in found["problems"]]
