"""Rooms import those before them alone; importing the package is cheap."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from tests.conftest import cells_of, parametrize, run_python

SOURCE = Path(__file__).parent.parent / "src" / "hrvqvae"
# each may import those before it: docs/architecture.md draws them
_ROOMS = """
version utils config distributed data quantize models priors compression codes checkpoints plots
training model image_files export evaluation pictures play cli
"""
ROOMS = _ROOMS.split()


def name_module(path):
    """Return the dotted name of a source file."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_module(path): path for path in SOURCE.rglob("*.py")}


def imported_names(path):
    """Return what a source file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def imported_modules(path):
    """Return the modules of the package that a source file imports."""
    names = imported_names(path)
    assert not {name.partition(".")[0] for name in names} & {"benchmarks", "tests"}, path
    return names & MODULES.keys()


def test_rooms_import_those_before_them():
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert rooms | {path.stem for path in SOURCE.glob("[!_]*.py")} == set(ROOMS)
    for name, path in MODULES.items():
        room = name.split(".")[1] if "." in name else ""
        if room in ROOMS:
            imported = {module.split(".")[1] for module in imported_modules(path) if "." in module}
            later = imported - set(ROOMS[: ROOMS.index(room) + 1])
            assert not later, f"{name} imports {later}"


def test_no_module_imports_itself_in_a_circle():
    graph = {
        name: imported_modules(path) - {"hrvqvae", name, name.rpartition(".")[0]}
        for name, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


# code, and modules that it must not import
LIGHT = """
import hrvqvae; assert {*hrvqvae.__all__} <= {*dir(hrvqvae)} | torch numpy matplotlib PIL yaml
import hrvqvae.cli; hrvqvae.cli._parser().format_help() | torch numpy yaml
from hrvqvae import TreeVQ; TreeVQ(dim=4) | matplotlib torchmetrics torchvision numba llvmlite \
    torch._dynamo yaml PIL
from hrvqvae.config.registry import SYSTEMS as x; [*x] | hrvqvae.models hrvqvae.priors torch
from hrvqvae.config.registry import PRIORS as x; [*x] | hrvqvae.models hrvqvae.priors torch
from hrvqvae.config.registry import DATASETS as x; [*x] | hrvqvae.data torch
from hrvqvae.config import presets; [*map(presets.get, presets.names())] | torch matplotlib
"""


@parametrize("code, heavy", cells_of(LIGHT))
def test_import_is_light_and_has_no_effect(code, heavy, tmp_path):
    listed = f"{code}\nimport sys; print([*sys.modules.keys() & {heavy.split()!r}])"
    assert run_python("-c", listed, cwd=tmp_path).stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []
