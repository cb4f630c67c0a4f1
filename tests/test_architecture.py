"""Rooms import those before them alone; importing the package is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "hrvqvae"
ROOMS = (  # each may import those before it: docs/architecture.md draws them
    "version",
    "utils",
    "config",
    "distributed",
    "data",
    "quantize",
    "models",
    "priors",
    "compression",
    "checkpoints",
    "plots",
    "tokens",
    "training",
    "model",
    "image_files",
    "export",
    "evaluation",
    "pictures",
    "play",
    "cli",
)


def imported_rooms(path: Path) -> set[str]:
    """Rooms of this package that a module imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module]
                if node.module != "hrvqvae"
                else [f"hrvqvae.{one.name}" for one in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        else:
            continue
        assert not any(name.split(".")[0] in ("benchmarks", "tests") for name in names), path
        found |= {name.split(".")[1] for name in names if name.startswith("hrvqvae.")}
    return found & set(ROOMS)


def test_rooms_import_those_before_them() -> None:
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages | {path.stem for path in SOURCE.glob("[!_]*.py")} == set(ROOMS)
    for room in ROOMS:
        for path in (*SOURCE.glob(f"{room}.py"), *(SOURCE / room).rglob("*.py")):
            later = imported_rooms(path) - set(ROOMS[: ROOMS.index(room) + 1])
            assert not later, f"{path.relative_to(SOURCE)} imports {later}"


LIGHT = {  # code -> modules that it must not import
    "import hrvqvae; assert {*hrvqvae.__all__} <= {*dir(hrvqvae)}": (
        "torch",
        "numpy",
        "matplotlib",
        "PIL",
        "rich",
        "yaml",
    ),
    "import hrvqvae.cli; hrvqvae.cli._parser().format_help()": ("torch", "numpy", "rich", "yaml"),
    "from hrvqvae import TreeVQ; TreeVQ(dim=4)": (
        "matplotlib",
        "torchmetrics",
        "torchvision",
        "numba",
        "llvmlite",
        "rich",
        "yaml",
        "PIL",
        "torch._dynamo",
    ),
    "from hrvqvae.config.registry import DATASETS, PRIORS, SYSTEMS; "
    "[*SYSTEMS, *PRIORS, *DATASETS]": (
        "hrvqvae.models",
        "hrvqvae.priors",
        "hrvqvae.data",
        "torch",
    ),
    "from hrvqvae.config import presets; [presets.get(name) for name in presets.names()]": (
        "torch",
        "matplotlib",
    ),
}


@pytest.mark.parametrize("code", LIGHT)
def test_import_is_light_and_has_no_effect(code: str, tmp_path: Path) -> None:
    listed = f"{code}\nimport sys; print([name for name in {LIGHT[code]!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", listed], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_the_models_in_the_package_stay_small() -> None:
    assert (
        sum(path.stat().st_size for path in (SOURCE / "weights").rglob("*") if path.is_file())
        < 24 * 2**20
    )
