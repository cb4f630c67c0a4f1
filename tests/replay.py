"""Run the commands of pages and recipes in this process, with small budgets and models, on drawn
digits.
"""

import io
import re
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np

from hrvqvae.data import fetch
from tests.conftest import do, drawn_digits, write_mnist


def use_data(root, monkeypatch):
    """Take drawn images for published sets."""
    monkeypatch.setenv("HRVQVAE_DATA", str(root))
    monkeypatch.setattr(fetch, "check", lambda dataset, there: None)


def drawn_mnist(root, monkeypatch):
    write_mnist(root / "mnist", 120, 60, size=28)
    use_data(root, monkeypatch)


def drawn_cifar10(root, monkeypatch):
    folder = root / "cifar10"
    folder.mkdir(parents=True)
    for seed in range(6):
        name = f"data_batch_{seed + 1}" if seed < 5 else "test_batch"
        grey, labels = drawn_digits(60, seed, size=32)
        tint = np.random.default_rng(seed).integers(80, 256, (60, 3, 1, 1))
        planes = (grey[:, None] * tint // 255).astype(np.uint8).reshape(60, -1)
        np.concatenate([labels[:, None], planes], axis=1).tofile(folder / f"{name}.bin")
    use_data(root, monkeypatch)


def blocks(page):
    """Return (language, content) of the blocks of code of a page of the repository."""
    text = (Path(__file__).parent.parent / page).read_text()
    return re.findall(r"```(console|python|toml|bash)\n(.*?)```", text, re.DOTALL)


def cut(words, cuts):
    """Replace patterns in the words of a command, in order. `cuts` are pairs of a pattern and its
    replacement.
    """
    command = "\0".join(words)
    for cells in cuts:
        pattern, replacement = (cell.replace(" ", "\0") for cell in cells)
        command = re.sub(pattern, replacement, command)
    return command.split("\0")


def replay(words):
    if words[0] == "python":
        # a script finds its neighbours
        beside = patch.object(sys, "path", [str(Path(words[1]).parent), *sys.path])
        with beside, redirect_stdout(io.StringIO()) as out:
            runpy.run_path(words[1])["main"](words[2:])
        return out.getvalue()
    assert words[0] == "hrvqvae"
    return do(*words[1:])
