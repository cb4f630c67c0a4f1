"""The built package; what works without any extra, and what the command line says if an extra is
missing.
"""

import json
import os
import re
import shutil
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name
from PIL import Image

from tests.conftest import (
    cells_of,
    names_in,
    parametrize,
    run_python,
    shared_fixture,
    write_picture,
)
from tests.test_architecture import SOURCE, imported_names

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUN = """
import json, sys
for name in {absent!r}:
    sys.modules[name] = None  # as if it were not installed
import contextlib, io
from hrvqvae.cli import main
results = []
for arguments in {commands!r}:
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = main(arguments.split())
    results.append((code, errors.getvalue()))
import torch
from hrvqvae import TreeVQ, load
layer = TreeVQ(4, 2, 2)
assert layer(torch.randn(2, 50, 4))[1].shape == (2, 50, 2)
assert load("mnist").encode(torch.zeros(1, 1, 28, 28))[0].shape == (1, 16, 16)
print(json.dumps(results))
"""
WORK = (
    "presets",
    "data list",
    "sample mnist -n 1 --levels 1 -o drawn.png",
    "reconstruct mnist x.png -o sheet.png",
    "complete mnist x.png --keep 0.5 -n 1 --levels 1 -o completed.png",
    "export mnist exported",
)
NEED = cells_of("""
    train | train hrvqvae/mnist --max-steps 1 --out run
    train | train-prior mnist --max-steps 1
    train | demo --out demo
    train | evaluate mnist
    play | play mnist
    train | tokenize mnist . tokens
""")
_MODULES = metadata.packages_distributions()
EXTRAS = PROJECT["optional-dependencies"]


def modules_of(package):
    name = canonicalize_name(package)
    modules = {
        module for module, names in _MODULES.items() if name in map(canonicalize_name, names)
    }
    return modules | {package.replace("-", "_")}


def optional_packages(left_out=()):
    """Names of the packages of all extras but those left out."""
    lines = [line for extra in EXTRAS.keys() - left_out for line in EXTRAS[extra]]
    names = {re.split(r"[<>=\[]", line)[0] for line in lines}
    return names - {"hrvqvae"}


@shared_fixture
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    write_picture(folder / "x.png", 1, (28, 28), "L")
    missing = optional_packages({"dev"})
    absent = sorted(set().union(*map(modules_of, missing)))
    commands = [*WORK, *(command for _, command in NEED)]
    program = RUN.format(absent=absent, commands=commands)
    results = json.loads(run_python("-c", program, cwd=folder).stdout)
    return folder, dict(zip(commands, results, strict=True))


@parametrize("command", WORK)
def test_what_uses_trained_models_needs_no_extra(command, results):
    assert results[1][command][0] == 0, results[1][command]


@parametrize("extra, command", NEED)
def test_a_missing_extra_is_one_line_before_anything_is_written(extra, command, results):
    code, errors = results[1][command]
    assert (code, errors.count("\n")) == (2, 1), errors
    assert re.fullmatch(rf"hrvqvae: this needs [\w.]+: pip install '\.\[{extra}\]'\n", errors)
    files = {"x.png", "drawn.png", "sheet.png", "completed.png", "exported"}
    assert {*names_in(results[0])} == files


def test_whatever_is_imported_is_required_or_in_an_extra():
    required = [re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"]]
    base = set().union(*map(modules_of, required))
    names = set().union(*map(imported_names, SOURCE.rglob("*.py")))
    imported = {name.partition(".")[0] for name in names}
    needed = imported - set(sys.stdlib_module_names) - base - {"hrvqvae"}
    brought = set().union(*map(modules_of, optional_packages()))
    assert needed - brought == set(), "imported, but neither required nor in an extra"
    assert "matplotlib" in needed  # and not required
    (listed,) = EXTRAS["all"]
    assert {*re.findall(r"[\w-]+", listed)} - {"hrvqvae"} == EXTRAS.keys() - {"all", "dev", "play"}


ELSEWHERE = """
import sys
from pathlib import Path
import hrvqvae
from hrvqvae.cli import main

assert Path(hrvqvae.__file__).is_relative_to(sys.argv[1]), hrvqvae.__file__
assert main(["sample", "mnist", "-n", "1", "--levels", "1", "-o", "digit.png"]) == 0
assert main(["reconstruct", "mnist", "x.png", "-o", "sheet.png"]) == 0
"""


def run(*words, cwd, **more):
    # with PYTHONDONTWRITEBYTECODE setuptools would say that it compiles nothing
    environment = {**os.environ, **more, "PYTHONDONTWRITEBYTECODE": ""}
    ended = run_python(*words, cwd=cwd, env=environment)
    return ended.stdout + ended.stderr


@shared_fixture
def built(tmp_path_factory):
    """A folder with source archive and wheel, the wheel built from the archive, of a copy of this
    tree.
    """
    tree = tmp_path_factory.mktemp("tree")
    out = tmp_path_factory.mktemp("dist")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    for name in ("src", "benchmarks", "docs", "examples", "recipes", "tests", "web"):
        shutil.copytree(
            ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    said = run("-m", "build", "--no-isolation", "--outdir", out, cwd=tree)
    assert [line for line in said.splitlines() if "warning" in line.lower()] == []
    return out


def test_everything_of_the_package_is_in_both(built):
    ours = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    (wheel,) = built.glob("*.whl")
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hrvqvae/")}
    assert in_wheel == ours
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {f"src/{name}" for name in ours} <= names
    assert {"README.md", "LICENSE", "docs/method.md", "web/inline.py", "tests/conftest.py"} <= names


def test_the_wheel_works_outside_of_the_repository(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = "--quiet --no-index --no-deps --no-compile --target"
    run("-m", "pip", "install", *options.split(), site, wheel, cwd=elsewhere)
    write_picture(elsewhere / "x.png", 1, (28, 28), "L")
    run("-c", ELSEWHERE, site, cwd=elsewhere, PYTHONPATH=str(site))
    for name in ("digit.png", "sheet.png"):
        low, high = Image.open(elsewhere / name).convert("L").getextrema()
        assert low < high, f"{name} shows something"
    listed = run(site / "bin/hrvqvae", "presets", cwd=elsewhere, PYTHONPATH=str(site))
    assert "hrvqvae/mnist" in listed
