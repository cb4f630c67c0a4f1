"""Completion in a shell: the script that is printed, run in bash."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hrvqvae.cli import main
from hrvqvae.config import presets
from tests.cli.helpers import refused


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "completion.sh"
    path.write_text(capsys.readouterr().out)
    return path


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    line = " ".join(f"'{word}'" for word in words)
    program = f"""
        source {script}
        COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
        _shtab_hrvqvae hrvqvae "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", program], cwd=script.parent, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_commands_and_options(script: Path) -> None:
    assert completed(script, "hrvqvae", "rec") == ["reconstruct"]
    assert completed(script, "hrvqvae", "data", "") == ["list", "get", "pack"]
    assert completed(script, "hrvqvae", "sample", "--temp") == ["--temperature"]


def test_names_and_files(script: Path) -> None:
    (script.parent / "mine").mkdir()
    (script.parent / "mine.png").touch()
    assert completed(script, "hrvqvae", "train", "vqvae2/") == [n for n in presets.names() if n.startswith("vqvae2/")]
    assert sorted(completed(script, "hrvqvae", "evaluate", "min")) == ["mine", "mine.png"]
    assert completed(script, "hrvqvae", "train", "--data", "min") == ["mine"]


def test_other_shells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef hrvqvae\n")
    assert "invalid choice: 'csh'" in refused(["completion", "csh"], capsys)
