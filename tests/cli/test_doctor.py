"""hrvqvae doctor: what is there, what is missing, where things are kept."""

from __future__ import annotations

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from hrvqvae.cli import main
from hrvqvae.utils import extras as of_extras


def examined(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["doctor", "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def requirements(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that gives the package other requirements, as pip keeps them."""

    def become(lines: list[str]) -> None:
        of_extras._needed.cache_clear()
        monkeypatch.setattr(metadata, "requires", lambda name: lines)

    yield become
    monkeypatch.undo()
    of_extras._needed.cache_clear()


def test_this_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    found = examined(capsys)
    assert found["problems"] == []
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["threads"] == torch.get_num_threads()
    assert found["folders"]["data"] == {"path": str(tmp_path / "data"), "there": False, "writable": True}
    assert found["folders"]["networks"]["path"] == str(tmp_path / "hub" / "checkpoints")
    assert found["folders"]["networks"]["there"]
    assert found["extras"]["figures"] == {"packages": {"matplotlib": metadata.version("matplotlib")}, "missing": []}
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "data") in printed
    assert all(extra in printed for extra in found["extras"])


def test_an_extra_that_is_not_whole(requirements: Any, capsys: pytest.CaptureFixture[str]) -> None:
    requirements(["torch>=2", 'no-such-package>=1; extra == "one"', 'numpy; extra == "one"', 'numpy; extra == "two"'])
    found = examined(capsys)
    assert found["extras"]["one"]["missing"] == ["no-such-package"]
    assert found["extras"]["two"]["missing"] == []
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "one  missing: no-such-package" in printed
    assert "complete: two\n" in printed
    assert "pip install 'hrvqvae[one]'" in printed


def test_what_keeps_it_from_working_is_exit_code_1(
    requirements: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requirements(["no-such-package>=1"])
    (tmp_path / "file").touch()
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setitem(sys.modules, "torch", None)
    found = examined(capsys, code=1)
    missing, broken, folder = found["problems"]
    assert missing == "no-such-package is missing: pip install no-such-package"
    assert broken.startswith("torch can't be used: ")
    assert folder.endswith(f"can't be written: {tmp_path / 'file' / 'data'}")
    assert "device" not in found
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.splitlines() == [f"hrvqvae: {problem}" for problem in found["problems"]]
