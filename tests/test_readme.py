"""The README's commands and code, run in the order of the page on drawn digits and pictures, their budgets cut."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import write_picture
from tests.replay import Cut, cut, drawn_mnist, replay

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "README.md").read_text()
SMALL = "--model.hidden_units 8 --model.residual_units 8 --training.batch_size 8 --model.quantizer.init_vectors 4096"
SMALL_PRIOR = (
    "--prior.network.hidden_units 8 --prior.network.residual_blocks 4 --prior.training.evaluation_images 50 "
    "--prior.training.batch_size 8"
)
CUTS: tuple[Cut, ...] = (
    (r"--max-(minutes|steps) [^\0]+", "--max-steps 2"),
    (r"^(hrvqvae train (?!.*--(?:resume|start-from)).*)", rf"\1 {SMALL}"),
    (r"^(hrvqvae train .*--init-from.*)", r"\1 --training.batch_size 2 --training.evaluation_images 2"),
    ("--class bird -n 16", "--class bird -n 2"),
    (r"^(hrvqvae train-prior (?!.*--resume)[^\0]+ ).*", rf"\1--max-steps 2 {SMALL_PRIOR}"),
    (r"^(hrvqvae compare .*)", rf"\1 {SMALL} --data.size 64"),
)  # fmt: skip
FEWER = ("sample mnist -n 64", "sample mnist -n 4")  # as the page's output is read, too
ELSEWHERE = {"hrvqvae export --onnx mnist": "export/test_graphs.py"}  # that test runs it as it stands, and looks closer


def commands() -> list[tuple[str, str]]:
    """(command, what the page shows below it) of the page's console blocks."""
    blocks = "".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL))
    return re.findall(r"^\$ (.*)\n((?:[^$].*\n|\n)*)", blocks, re.MULTILINE)


def shows(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed; a line of three dots stands for any lines."""
    pattern = re.escape(shown).replace(re.escape("...\n"), "(?:.*\n)*")
    return re.fullmatch(pattern, printed) is not None


def test_every_command_and_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(12):
        write_picture(tmp_path / "my-photos" / f"{index:02d}.jpg", index, (300, 280))
    write_picture(tmp_path / "x.png", 1, (28, 28), "L")
    write_picture(tmp_path / "photo.jpg", 1, (120, 90))
    drawn_mnist(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    compared, left = 0, dict(ELSEWHERE)
    for command, shown in commands():
        words = shlex.split(command)
        if command in left:
            assert f"main({words[1:]})".replace("'", '"') in (ROOT / "tests" / left.pop(command)).read_text()
            continue
        if words[0] == "make":
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, check=True)
            continue
        replay(cut(words, (*CUTS, FEWER)))
        printed = capsys.readouterr().out
        if shown and cut(words, CUTS) == words and not command.startswith("hrvqvae evaluate"):
            assert shows(shown.replace("64 samples", "4 samples"), printed), f"{command}\n{printed}"
            compared += 1
        for word in words:
            assert not word.endswith((".png", ".svg")) or (tmp_path / word).is_file(), command
    assert compared == 3, "presets and samples print what the page shows"
    assert not left
    run_code()


def run_code() -> None:
    """The page's Python, in the folder where its commands have run."""
    layer, model = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(layer, names)
    assert names["quantized"].shape == names["coarse"].shape == (1, 1024, 256)
    assert names["indices"].shape == (1, 1024, 3)
    names = {"images": torch.zeros(2, 1, 28, 28)}
    exec(model, names)
    assert names["coarse"].shape == (2, 1, 28, 28)
    assert names["digits"].shape == (16, 1, 28, 28)
    assert names["digits"].mean() > 0.02, "digits are drawn"
