"""What others need of a run: small, without paths, whole or not at all."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hrvqvae import TrainedModel
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.checkpoints.loading import load_priors
from hrvqvae.cli import main
from hrvqvae.utils.errors import InputError
from tests.conftest import write_picture
from tests.tiny_priors import train_levels


def test_an_exported_run_is_small_knows_no_paths_and_says_the_same(run: Path, tmp_path: Path) -> None:
    train_levels(run)
    files = export(run, tmp_path / "out")
    assert sorted(files) == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") < 0.7 * sum(
        path.stat().st_size for path in (RunFolder(run).model, *(prior_folder(run, level).model for level in range(2)))
    )
    assert not any(str(run).encode() in path.read_bytes() for path in files)
    for one, other in zip(load_priors(tmp_path / "out").networks, load_priors(run).networks, strict=True):
        for name, tensor in one.state_dict().items():
            torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match="exists already"):
        export(run, tmp_path / "out")


def test_the_card_shows_commands_that_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run, tmp_path / "my model")
    card = (tmp_path / "my model" / "README.md").read_text()
    (line,) = re.findall(r"^\$ hrvqvae (.*)$", card, re.MULTILINE)
    write_picture(tmp_path / "x.png", 1, (12, 12), "L")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 0
    assert 'from_pretrained("my model")' in card
    assert TrainedModel.from_pretrained("my model").config.data.size == 12
    assert set(re.findall(r"(\d+x\d+) pixels", card)) == {"12x12"}
    assert "28x28" not in card, "of the published set, not of this training"


def test_what_is_stale_is_left_out_with_a_line(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_levels(run)
    tensors, meta = storage.read(RunFolder(run).model)
    storage.write(RunFolder(run).model, tensors | {"decoder.0.bias": tensors["decoder.0.bias"] + 1}, meta)
    files = export(run, tmp_path / "out")
    assert [path.name for path in files] == ["README.md", "config.json", "model.safetensors"]
    assert f"left out of {tmp_path / 'out'}: priors/level-1, priors/level-2" in capfd.readouterr().err
    for _ in range(2):
        with pytest.raises(InputError, match="level-1 was made for another state"):
            train_levels(run, 1, resume=True, training__max_steps="13")
        prior_folder(run, 0).source.unlink(missing_ok=True)  # as `export` writes it: the weights say whose it is


def test_a_full_disk_leaves_no_export(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_levels(run)
    original = storage.write

    def full(path: Path, tensors: dict[str, Tensor], meta: dict[str, object]) -> None:
        if "level-2" in str(path):
            raise OSError(28, "No space left on device")
        original(path, tensors, meta)

    monkeypatch.setattr(storage, "write", full)
    with pytest.raises(InputError, match="can't be written"):
        export(run, tmp_path / "out")
    monkeypatch.undo()
    assert len(export(run, tmp_path / "out")) == 5
