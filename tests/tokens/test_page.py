"""What docs/tokens.md shows runs: its commands and its Python, on drawn pictures."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from hrvqvae.config import Config
from tests.conftest import write_picture
from tests.replay import cut, replay
from tests.tiny_priors import GIVEN, trained_copy

PAGE = (Path(__file__).parents[2] / "docs" / "tokens.md").read_text()
SMALLER = (
    (r"--max-minutes [^\0]+", "--max-steps 1"),
    (r"^(hrvqvae train-prior .*)", r"\1 " + " ".join(f"--{name} {value}" for name, value in GIVEN.items() if "max_steps" not in name)),
    (r"^(hrvqvae tokenize .*)", r"\1 --workers 0"),
)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of datasets
def test_its_commands_and_its_code(
    tiny: Config, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for number in range(8):
        write_picture(tmp_path / "my-photos" / ("cats", "dogs")[number % 2] / f"{number}.jpg", number)
    trained_copy(tiny, tmp_path_factory, tmp_path / "runs" / "photos")
    names: dict[str, Any] = {}
    for language, block in re.findall(r"```(console|python)\n(.*?)```", PAGE, re.DOTALL):
        if language == "python":
            exec(block, names)
            continue
        for line in block.splitlines():
            words = shlex.split(line.removeprefix("$ "))
            if "ray" not in words:  # it has a test of its own
                replay(cut(words, SMALLER))
    assert names["first"].shape == (16, 16)
    assert set(names["counts"]["label"]) == {"cats", "dogs"}
    assert int(names["counts"]["times"].sum()) == 8 * 256
    assert names["images"].shape == (4, 3, 32, 32)
    assert len(list((tmp_path / "decoded").rglob("*.png"))) == 8
    assert len(list((tmp_path / "noise").rglob("*.png"))) == 5
    assert (tmp_path / "runs" / "photos" / "priors" / "level-2" / "model.safetensors").is_file()
    assert torch.equal(names["batch"]["codes_1"][0].view(16, 16), torch.from_numpy(names["first"].astype("int64")))
