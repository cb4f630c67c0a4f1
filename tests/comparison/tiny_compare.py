"""Run as a program: the command `hrvqvae compare` on tiny presets. Arguments: root of the data, then the command's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hrvqvae.cli import main
from tests.comparison.conftest import make_tiny

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(Path(sys.argv[1]), patch)
        sys.exit(main(["compare", *sys.argv[2:]]))
