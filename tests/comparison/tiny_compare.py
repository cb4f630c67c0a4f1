"""Run as a program: the command `hrvqvae compare` on tiny presets. Arguments: root of the data, then the command's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hrvqvae.cli import main
from hrvqvae.comparison import instruments
from hrvqvae.utils.errors import InputError
from tests.comparison.conftest import make_tiny


def _none() -> str:
    """No network, which takes seconds to load."""
    raise InputError("none")


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(Path(sys.argv[1]), patch)
        patch.setattr(instruments, "choose_perceptual", _none)
        sys.exit(main(["compare", *sys.argv[2:]]))
