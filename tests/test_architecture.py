"""The drawing of docs/architecture.md is true: rooms, modules, the direction of imports; and what importing costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "hrvqvae"
MODULES = sorted(SOURCE.rglob("*.py"))
LONG: set[str] = set()


def drawing() -> dict[str, str]:
    """Room -> what the drawing says of it, from the top of the tower down."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    block = re.search(r"```\n(.*?)```", page, re.DOTALL)
    assert block is not None
    rooms: dict[str, str] = {}
    for line in block[1].splitlines():
        if not line.startswith(" "):
            room, text = line.split(maxsplit=1)
            rooms[room.removesuffix("/").removesuffix(".py")] = text
        else:
            rooms[list(rooms)[-1]] += " " + line
    return rooms


def name_of(path: Path) -> str:
    """Dotted name of a module below the package, such as systems.vqvae.model."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Dotted names of the modules of this package that a module imports anywhere in it."""
    names = {name_of(other) for other in MODULES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hrvqvae":
            base = node.module.removeprefix("hrvqvae").removeprefix(".")
            for alias in node.names:
                deeper = f"{base}.{alias.name}".removeprefix(".")
                found.add(deeper if deeper in names else base)
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("hrvqvae.") for alias in node.names if alias.name.startswith("hrvqvae.")}
    return found - {""}


def test_the_drawing_has_every_room() -> None:
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in MODULES}
    assert set(drawing()) == rooms - {"__init__"}


def test_every_room_that_lists_modules_lists_them_all() -> None:
    for room, text in drawing().items():
        drawn = set(re.findall(r"(\w+)\.py", text))
        there = {path.stem for path in (SOURCE / room).glob("*.py")} - {"__init__", "__main__"}
        if drawn and (SOURCE / room).is_dir() and room not in ("cli", "nn"):
            inner = {path.stem for path in (SOURCE / room).glob("*/*.py")}
            assert there <= drawn, f"{room}: {there - drawn} not in the drawing"
            assert drawn <= there | inner, f"{room}: {drawn - there - inner} in the drawing, but not there"
        folders = {path.parent.name for path in (SOURCE / room).glob("*/*.py")}
        assert folders <= set(re.findall(r"(\w+)/", text)), f"{room}: {folders} not all in the drawing"


def test_imports_go_down_the_tower() -> None:
    rooms = list(drawing())
    for path in MODULES:
        here = name_of(path).split(".")[0]
        for other in {name.split(".")[0] for name in imported(path)} - {here} if here else ():
            assert rooms.index(other) > rooms.index(here), f"{name_of(path)} imports {other}, which is above it"


def test_no_import_goes_in_a_circle() -> None:
    graph = {name_of(path): imported(path) - {name_of(path)} for path in MODULES if name_of(path)}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def test_systems_and_networks_of_priors_know_only_themselves() -> None:
    for room in ("systems", "priors"):
        for path in (SOURCE / room).glob("*/*.py"):
            for other in imported(path):
                parts = other.split(".")
                assert parts[0] != room or len(parts) < 3 or parts[1] == path.parent.name, f"{path} imports {other}"


def test_no_room_outside_names_a_system_or_a_network_of_priors() -> None:
    """Not by importing it: what they need to know, they ask its entry. What measures one network's parts may."""
    for path in MODULES:
        here = name_of(path).split(".")[0]
        if here in ("", "systems", "priors") or path.relative_to(SOURCE).as_posix() == "bench/sample.py":
            continue
        for other in imported(path):
            parts = other.split(".")
            folder = SOURCE / "/".join(parts[:2])
            assert parts[0] not in ("systems", "priors") or not folder.is_dir() or len(parts) < 2, f"{path}: {other}"


def test_modules_are_short() -> None:
    lines = {path.relative_to(SOURCE).as_posix(): len(path.read_text().splitlines()) for path in MODULES}
    assert {name for name, number in lines.items() if number > 300} == LONG


def run(code: str, folder: Path) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout


_LIGHT = {
    "import hrvqvae": ("torch", "numpy", "matplotlib", "PIL", "rich", "yaml"),
    "import hrvqvae.cli; hrvqvae.cli._parser().format_help()": ("torch", "numpy", "rich", "yaml"),
    "from hrvqvae import TreeVQ; TreeVQ(dim=4)": (
        "matplotlib",
        "torchmetrics",
        "torchvision",
        "numba",
        "rich",
        "yaml",
        "PIL",
        "torch._dynamo",
    ),
    "from hrvqvae.config import presets; [presets.get(name) for name in presets.names()]": ("torch", "matplotlib"),
}


@pytest.mark.parametrize("code", _LIGHT)
def test_import_is_light_and_has_no_effect(code: str, tmp_path: Path) -> None:
    out = run(f"{code}\nimport sys; print([name for name in {_LIGHT[code]!r} if name in sys.modules])", tmp_path)
    assert out.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_the_public_names_exist() -> None:
    import hrvqvae

    assert all(getattr(hrvqvae, name) is not None for name in hrvqvae.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hrvqvae.nothing
