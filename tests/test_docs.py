"""What the pages name exists: modules and folders, tests, other pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "hrvqvae"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_modules_and_folders_are_there(page: Path) -> None:
    named = re.findall(r"`((?:[a-z0-9_]+/)+(?:\w+\.py)?)`", text(page))
    here = [name for name in named if not name.startswith(("train/", "test/", "val/", "validation/", "binary_codes/"))]
    assert not [name for name in here if not (SOURCE / name).exists() and not (ROOT / name).exists()]


def test_tests_are_there(page: Path) -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    named = re.findall(r"`(test_\w+)`", text(page))
    assert not [name for name in named if f"def {name}(" not in written]


def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text(page))
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (page.parent / link).exists()]
