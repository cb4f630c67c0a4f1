"""What is built to be handed on: source archive and wheel, and the wheel at work outside of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import write_picture

ROOT = Path(__file__).parent.parent
WORK = """
import sys
from pathlib import Path
import hrvqvae
from hrvqvae.cli import main

assert Path(hrvqvae.__file__).is_relative_to(sys.argv[1]), hrvqvae.__file__
assert main(["sample", "mnist", "-n", "1", "-o", "digit.png"]) == 0
assert main(["reconstruct", "mnist", "x.png", "-o", "sheet.png"]) == 0
"""


def run(*command: object, cwd: Path, **more: str) -> str:
    """What a process prints, stdout and stderr; it must succeed."""
    environment = {**os.environ, **more}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # setuptools would say that it compiles nothing
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with source archive and wheel, the wheel built from the archive, of a copy of this tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    for name in ("src", "benchmarks", "docs", "examples", "recipes", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    said = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=tree)
    assert [line for line in said.splitlines() if "warning" in line.lower()] == []
    return out


def test_everything_of_the_package_is_in_both(built: Path) -> None:
    source = ROOT / "src"
    ours = {
        path.relative_to(source).as_posix()
        for path in (source / "hrvqvae").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    (wheel,) = built.glob("*.whl")
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hrvqvae/")}
    assert in_wheel == ours
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {f"src/{name}" for name in ours} <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "docs/method.md", "tests/conftest.py"} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_works_outside_of_the_repository(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", site,
        wheel, cwd=elsewhere,
    )  # fmt: skip
    for path in (ROOT / "src").rglob("*.nbc"):  # compiled from these very sources, by which it is known
        copy = site / path.relative_to(ROOT / "src")
        with suppress(FileNotFoundError):  # of a folder that is no more, or compiled anew by another process
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)
    write_picture(elsewhere / "x.png", 1, (28, 28), "L")
    run(sys.executable, "-c", WORK, site, cwd=elsewhere, PYTHONPATH=str(site))
    for name in ("digit.png", "sheet.png"):
        low, high = Image.open(elsewhere / name).convert("L").getextrema()
        assert low < high, f"{name} shows something"
    assert "hrvqvae/mnist" in run(
        sys.executable, site / "bin" / "hrvqvae", "presets", cwd=elsewhere, PYTHONPATH=str(site)
    )
