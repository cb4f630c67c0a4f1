"""What is told of priors, prefixes and tables where training goes on past the state that they were made for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from hrvqvae.cli import main
from hrvqvae.codec.geometry import geometry_of
from hrvqvae.codec.tables import Tables
from hrvqvae.runs import storage
from hrvqvae.runs.folder import RunFolder, prefix_folder
from hrvqvae.runs.outdated import outdated
from tests.trained_run import tiny_run_with_priors


def test_training_that_goes_on_tells_it(
    mnist_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = tiny_run_with_priors(mnist_root)
    monkeypatch.chdir(tmp_path)
    run = Path("run")
    shutil.copytree(trained, run)
    folder = RunFolder(run)
    weights, _, digest = storage.read_with_digest(folder.model)
    config = folder.read_config().model
    prefix_folder(run).path.mkdir()
    storage.write(prefix_folder(run).model, {"any": torch.zeros(1)}, {"kind": "prefixes", "autoencoder": digest})
    symbols, own = config.num_symbols, storage.weights_digest(weights)
    tables = Tables("tiny", own, geometry_of(config.latent_grids), symbols, (None,) * len(symbols))
    folder.tables.write_bytes(tables.content)
    going_on = ["train", str(trained.parent / "tiny.yaml"), "--out", "run", "--resume", "--max-steps"]
    capsys.readouterr()
    for steps, expected in (
        ("60", []),
        ("61", [
            "run/priors is of an earlier state of the model: delete it, and hrvqvae train-prior run",
            "run/prefixes is of an earlier state of the model: hrvqvae train-prefixes run",
            "run/tables.hrvt is of an earlier state of the model: hrvqvae tables run",
        ]),
    ):  # fmt: skip
        assert main([*going_on, steps]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[printed.index("pictures in run/pictures") + 1 :] == expected
    for path in (folder.tables, prefix_folder(run).model):
        path.write_bytes(path.read_bytes()[:20])
    assert len(outdated(run)) == 1, "a damaged file is told by what reads it"
