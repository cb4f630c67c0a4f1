"""What the tests of the commands share."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hrvqvae.cli import main
from hrvqvae.config import Config, to_dict


def write_file(config: Config, path: Path) -> Path:
    """A configuration as the YAML file that the commands take."""
    path.write_text(yaml.safe_dump(to_dict(config)))
    return path


def do(*arguments: object) -> None:
    """Run a command that ends well."""
    assert main([str(argument) for argument in arguments]) == 0


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command refuses with, exit code 2."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("hrvqvae: ")
    return captured.err
