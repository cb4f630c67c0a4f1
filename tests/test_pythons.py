"""Another Python, where it is on this machine: syntax and standard library, in what needs no other package."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
PYTHON = shutil.which("python3.13")
WORK = """
import sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, sys.argv[1])
import hrvqvae.config.presets, hrvqvae.utils.errors, hrvqvae.utils.extras, hrvqvae.utils.quantities
from hrvqvae.cli import main

assert main(["reconstruct"]) == 2
try:
    main(["--help"])
except SystemExit as left:
    assert left.code == 0
"""


@pytest.mark.skipif(PYTHON is None, reason="there is no Python 3.13 on this machine")
def test_every_module_compiles_and_what_needs_no_package_works(tmp_path: Path) -> None:
    assert PYTHON is not None
    compiled = f"import sys; sys.pycache_prefix = {str(tmp_path)!r}; import compileall as c; "
    compiled += f"sys.exit(not c.compile_dir({str(SOURCE / 'hrvqvae')!r}, quiet=1))"
    for arguments in (["-W", "error", "-c", compiled], ["-c", WORK, str(SOURCE)]):
        done = subprocess.run([PYTHON, "-B", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "reconstruct" in done.stdout
    assert "hrvqvae: the following arguments are required" in done.stderr
