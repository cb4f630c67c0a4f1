"""The recipes in reduced form: from a folder of images to the sheet, and again where they were stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hrvqvae.data import read_image
from tests.conftest import write_picture

RECIPES = Path(__file__).parent.parent / "recipes"
SMALL = (
    "--model.hidden_units 8 --model.residual_units 8 --model.stride 8 --data.size 32 --training.batch_size 4 "
    "--data.workers 0 --model.quantizer.init_vectors 1000 --data.split hash --prior.network.hidden_units 8 "
    "--prior.training.batch_size 4"
)
ONLY = {
    "11": "--prior.network.residual_blocks 4", "12": "--prior.network.residual_blocks 4 --prior.batch_size [4]",
    "13": "--prior.network.layers 1 --model.discriminator_layers 1", "14": "--prior.network.residual_blocks 4",
}  # fmt: skip


def recipe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    fields = f"{SMALL} {ONLY.get(arguments[0], '')}" if arguments else ""
    return subprocess.run(
        [RECIPES / "figure", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HRVQVAE_FIELDS": fields},
    )  # fmt: skip


@pytest.mark.parametrize("number", ["11", "12", "13", "14"])
def test_a_figure_from_a_folder_of_images(number: str, tmp_path: Path) -> None:
    for index in range(24):
        write_picture(tmp_path / "images" / ("birds" if index % 2 else "cats") / f"{index}.png", index, (40, 36))
    arguments = [number, "images", *(["birds"] if number == "14" else []), "0.02"]
    for _ in range(2):  # the second time it goes on
        done = recipe(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
    folder = f"figure-{number}" + ("-images" if number == "14" else "")
    sheet = tmp_path / "runs" / folder / f"figure-{number}.png"
    assert str(sheet.relative_to(tmp_path)) in done.stdout
    assert read_image(sheet, 3).shape[2] > 4 * 60


@pytest.mark.parametrize("arguments", [(), ("10",), ("11",), ("14", "images"), ("14", "images", "birdd")])
def test_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = recipe(tmp_path, *arguments)
    assert done.returncode == 2
    assert ("there is no class birdd" if len(arguments) == 3 else "recipes/figure 11 DATA") in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_recipe_of_the_shipped_model_names_real_commands() -> None:
    lines = [line.split() for line in (RECIPES / "mnist").read_text().splitlines() if line.startswith("hrvqvae ")]
    assert [words[1] for words in lines] == ["data", "train", "train-prior", "export", "evaluate", "sample", "figure"]
    assert os.access(RECIPES / "mnist", os.X_OK)
