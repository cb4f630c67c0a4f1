"""What is told of priors, prefixes and tables where training goes on past the state that they were made for."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folder, progressive_folder
from hrvqvae.checkpoints.outdated import outdated
from hrvqvae.cli import main
from hrvqvae.compression.geometry import geometry_of
from hrvqvae.compression.tables import Tables
from hrvqvae.training import loop
from hrvqvae.training.autoencoder import AutoencoderStep
from tests.trained_run import tiny_run_with_priors
from tests.undrawn import undrawn

TOLD = "is of an earlier state of the model"


def anew(level: int) -> str:
    """What is told of the prior of a level, counted from 1."""
    folder = f"run/priors/level-{level}"
    return f"{folder} {TOLD}: delete {folder} and train it anew: hrvqvae train-prior run --level {level}"


@pytest.fixture
def run(mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, "run" in the working folder, of a run with priors, a progressive decoder and tables."""
    monkeypatch.chdir(tmp_path)
    run = Path("run")
    shutil.copytree(tiny_run_with_priors(mnist_root), run)
    folder = RunFolder(run)
    weights, _, digest = storage.read_with_digest(folder.model)
    config = folder.read_config().model
    progressive_folder(run).path.mkdir()
    storage.write(progressive_folder(run).model, {"any": torch.zeros(1)}, {"kind": "prefixes", "autoencoder": digest})
    symbols, own = config.num_symbols, storage.weights_digest(weights)
    tables = Tables("tiny", own, geometry_of(config.latent_grids), symbols, (None,) * len(symbols))
    folder.tables.write_bytes(tables.content)
    return run


@pytest.fixture
def changed(run: Path) -> Path:
    """The same whose model is another one now."""
    weights, meta = storage.read(RunFolder(run).model)
    storage.write(RunFolder(run).model, {**weights, "decoder.0.bias": weights["decoder.0.bias"] + 1}, meta)
    return run


def test_training_that_goes_on_tells_it(
    run: Path, mnist_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny_run_with_priors(mnist_root).parent / "tiny.yaml"
    going_on = ["train", str(file), "--out", "run", "--resume", "--max-steps"]
    original = AutoencoderStep.__call__

    def step(self: AutoencoderStep, state: object, batch: object) -> loop.Metrics:
        signal.raise_signal(signal.SIGTERM)
        return original(self, state, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(AutoencoderStep, "__call__", step)
    told = [
        f"run/prefixes {TOLD}: hrvqvae train-progressive run", f"run/tables.hrvt {TOLD}: hrvqvae tables run",
        anew(1), anew(2), anew(3),
    ]  # fmt: skip
    capsys.readouterr()
    for steps, code, last, expected in (
        ("60", 0, "pictures in run/pictures", []),
        ("62", 128 + signal.SIGTERM, "stopped at step 61, saved", told),
        ("61", 0, "pictures in run/pictures", told),
    ):
        with undrawn():
            assert main([*going_on, steps]) == code
        printed = capsys.readouterr().out.splitlines()
        (place,) = (number for number, line in enumerate(printed) if line.startswith(last))
        assert printed[place + 1 :] == expected


def test_only_what_is_of_another_state_is_named_with_the_command_that_trains_its_like(changed: Path) -> None:
    run = changed
    first, second, third = (prior_folder(run, level) for level in range(3))
    first.source.write_text(storage.digest(RunFolder(run).model))
    second.model.unlink()  # it has begun, and no more
    config = third.read_config()
    network = dataclasses.replace(config.prior.network, dropout=(0.5, 0.0, 0.2))  # type: ignore[call-arg]
    prior = dataclasses.replace(config.prior, class_dropout=0.1, network=network)
    third.write_config(dataclasses.replace(config, prior=prior))
    for folder in (RunFolder(run).tables, progressive_folder(run).model):
        folder.unlink()
    assert outdated(run) == [
        anew(2), f"{anew(3)} --prior.network.dropout '[0.5, 0.0, 0.2]' --prior.class_dropout 0.1"
    ]  # fmt: skip


def test_what_can_not_be_read_raises_nothing(changed: Path) -> None:
    run, prefixes = changed, progressive_folder(changed).model
    prefixes.write_bytes(prefixes.read_bytes()[:20])
    RunFolder(run).tables.unlink()
    RunFolder(run).tables.mkdir()
    shutil.rmtree(prior_folder(run, 2).path)
    assert outdated(run) == [anew(1), anew(2)]
    save_file({"any": torch.zeros(1)}, prefixes, {"format": "pt", "meta": json.dumps([]), "digest": ""})
    prior_folder(run, 0).source.write_bytes(b"\xff")
    prior_folder(run, 1).config.unlink()
    assert outdated(run) == [anew(1)]
    RunFolder(run).model.unlink()
    assert outdated(run) == []
