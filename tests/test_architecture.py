"""The import direction of docs/architecture.md, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "hrvqvae"

# A package may import those of the lines above it, and itself.
ORDER = (
    {"errors", "threads"},
    {"config"},
    {"configfile", "storage", "hub"},
    {"nn"},
    {"quantize"},
    {"models", "data", "priors", "losses"},
    {"checkpoint", "codemaps", "sampling"},
    {"pictures", "evaluation"},
    {"training"},
    {"tables"},
    {"presets"},
    {"resolve"},
    {"generate", "figures", "bench"},
    {"commands"},
    {"comparison"},
    {"cli"},
)
FORBIDDEN = {
    ("data", "models"),
    ("data", "priors"),
    ("models", "priors"),
    ("priors", "models"),
    ("models", "data"),
    ("models", "training"),
    ("data", "quantize"),
    ("nn", "quantize"),
}


def package(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hrvqvae"):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("hrvqvae.")}
    return names


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    here = package(path)
    if here == "__init__":
        return
    rank = {name: level for level, names in enumerate(ORDER) for name in names}
    for other in imported(path) - {here}:
        assert rank[other] < rank[here] or (rank[other] == rank[here] and other != here), f"{here} imports {other}"
        assert (here, other) not in FORBIDDEN


def run(code: str, folder: Path) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("code", ["import hrvqvae", "import hrvqvae.cli; hrvqvae.cli._parser().format_help()"])
def test_import_is_light_and_has_no_effect(code: str, tmp_path: Path) -> None:
    heavy = "['torch', 'numpy', 'matplotlib', 'PIL', 'jsonargparse', 'rich', 'yaml']"
    out = run(f"{code}\nimport sys; print([name for name in {heavy} if name in sys.modules])", tmp_path)
    assert out.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_the_public_names_exist() -> None:
    import hrvqvae

    assert all(getattr(hrvqvae, name) is not None for name in hrvqvae.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hrvqvae.nothing
