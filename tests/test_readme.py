"""Every command of the README, run in the order of the page on real MNIST and a folder of pictures, its budgets cut."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_picture

ROOT = Path(__file__).parent.parent
SMALL = "--model.hidden_units 8 --model.residual_units 8 --training.batch_size 8 --model.quantizer.init_vectors 4096"
SMALL_PRIOR = (
    "--prior.network.hidden_units 8 --prior.network.residual_blocks 4 --prior.training.evaluation_images 50 "
    "--prior.training.batch_size 8"
)
CUTS = (
    (re.compile(r"--max-minutes \S+"), "--max-steps 2"),
    (re.compile(r"^hrvqvae train (?!.*--resume)(.*)"), rf"hrvqvae train \1 {SMALL}"),
    (
        re.compile(r"^hrvqvae train-prior (\S+) (?!.*--resume).*"),
        rf"hrvqvae train-prior \1 --max-steps 2 {SMALL_PRIOR}",
    ),
    (re.compile(r"^hrvqvae bench train"), f"hrvqvae bench train --rounds 1 {SMALL}"),
    (re.compile(r"^hrvqvae bench prior"), f"hrvqvae bench prior --rounds 1 {SMALL_PRIOR}"),
    (re.compile(r"^hrvqvae evaluate (.*)"), r"hrvqvae evaluate \1 --images 60"),
    (re.compile(r"^hrvqvae bench sample"), "hrvqvae bench sample --rounds 1"),
    (re.compile(r"^(hrvqvae compare .*) --max-steps \S+(.*)"), rf"\1 --max-steps 2 \2 {SMALL}"),
)


def commands(page: str) -> list[str]:
    """Lines after a dollar sign in the page's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def run(command: str, folder: Path, **environment: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "2", **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_command_of_the_readme(tmp_path: Path) -> None:
    for index in range(12):
        write_picture(tmp_path / "my-photos" / f"{index:02d}.jpg", index, (300, 280))
    write_picture(tmp_path / "x.png", 1, (28, 28), "L")
    found = commands("README.md")
    assert len(found) > 10
    for command in found:
        if command.startswith(("make ", "git ", "cd ")):
            continue
        for pattern, replacement in CUTS:
            command = pattern.sub(replacement, command)
        run(command, tmp_path, HRVQVAE_DATA=str(tmp_path / "data"))
        for word in shlex.split(command):
            if word.endswith((".png", ".svg")):
                assert (tmp_path / word).is_file(), word


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_of_the_makefile(target: str) -> None:
    assert f"make {target}" in commands("README.md")
    planned = run(f"make --dry-run --always-make {target}", ROOT)
    assert ("hrvqvae demo" if target == "demo" else "/pytest") in planned


def test_continuous_integration_runs_the_tests() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
