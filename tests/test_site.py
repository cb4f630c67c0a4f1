"""The documentation site: built without a warning, and what its guides show runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hrvqvae.config import presets
from tests.conftest import write_picture
from tests.replay import cut, drawn_mnist, replay
from tests.test_readme import CUTS

DOCS = Path(__file__).parent.parent / "docs"
SMALLER = (
    *CUTS,
    (r"^(hrvqvae train \w+/photos .*)", r"\1 --data.size 32"),
    (r"^(hrvqvae train .*)", r"\1 --data.workers 0"),
    (r"^(hrvqvae sample mnist) -n 64", r"\1 -n 2"),
    (r"^(hrvqvae sample mnist) -n 20", r"\1 -n 10"),
    (r"^(hrvqvae sample runs/photos) -n 16", r"\1 -n 1"),
    (r"^(hrvqvae complete .*) -n 8", r"\1 -n 1"),
    (r"\{000000..000099\}", "{000000..000000}"),
)  # fmt: skip


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def commands_in(block: str) -> list[list[str]]:
    """The commands of this package in a console block, as words."""
    return [shlex.split(line[2:]) for line in block.splitlines() if line.startswith("$ hrvqvae ")]


def commands(page: str) -> list[list[str]]:
    """The page's commands of this package, as words."""
    return [words for block in blocks(page, "console") for words in commands_in(block)]


def test_it_is_built_without_a_warning_and_asks_nothing_of_the_internet(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-b", "html", DOCS]
    done = subprocess.run(
        [*map(str, command), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "class_name" in (tmp_path / "api.html").read_text(), "signatures are read from the code"
    loads = r"<(?:script|img|iframe)[^>]*\ssrc=\"(?:https?:)?//|<link[^>]*\shref=\"(?:https?:)?//"
    pages = [page.read_text() for page in tmp_path.rglob("*.html")]
    assert len(pages) > len(list(DOCS.glob("*.md")))
    assert not [found for page in pages for found in re.findall(loads, page)]
    assert not [
        path
        for path in tmp_path.rglob("*.css")
        if re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", path.read_text())
    ]


@pytest.mark.parametrize("page", ["start.md", "own-data.md"])
def test_a_guide(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(12):
        write_picture(tmp_path / "my-photos" / f"{index:02d}.jpg", index, (60, 48))
    drawn_mnist(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for language, block in re.findall(r"```(console|python)\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        if language == "python":
            exec(block, names)
            continue
        for words in commands_in(block):
            capsys.readouterr()
            target = None
            if ">" in words:
                words, target = words[: words.index(">")], words[-1]
            replay(cut(words, SMALLER))
            if target is not None:
                Path(target).write_text(capsys.readouterr().out)
                assert yaml.safe_load(Path(target).read_text())["name"] in presets.names()
            for word in words:
                assert not word.endswith(".png") or Path(word).is_file(), words
    if page == "start.md":
        assert names["digits"].shape == names["images"].shape == names["coarse"].shape == (4, 1, 28, 28)
        assert [code.shape for code in names["codes"]] == [(4, 16, 16)] * 3


def test_a_logger_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The guide's training with the guide's logger, as a package that announces it would bring it."""
    from hrvqvae.config.registry import LOGGERS

    (code,) = blocks("loggers.md", "python")
    (tmp_path / "my_package.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import my_package  # type: ignore[import-not-found]

    (announced,) = blocks("loggers.md", "toml")
    assert 'print = "my_package:LOGGER"' in announced
    monkeypatch.setitem(LOGGERS._loaded, "print", my_package.LOGGER)
    drawn_mnist(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    (words,) = commands("loggers.md")
    replay([word.replace("tensorboard", "print,tensorboard") for word in cut(words, SMALLER)])
    assert "mnist 2 {'train/" in capsys.readouterr().out
    assert list((tmp_path / "runs" / "mnist" / "tensorboard").iterdir())
