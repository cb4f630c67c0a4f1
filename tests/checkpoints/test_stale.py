"""What lies beside a model and was made for another state of it is named, with the command that renews it."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folder, progressive_folder
from hrvqvae.checkpoints.stale import StalePart, stale_notice, stale_parts
from hrvqvae.cli import main
from hrvqvae.compression.entropy_model import EntropyModel, geometry_of
from hrvqvae.models.objective import Metrics
from hrvqvae.training.autoencoder import AutoencoderTask
from tests.trained_run import tiny_run_with_priors
from tests.undrawn import undrawn


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
    tables = EntropyModel("tiny", own, geometry_of(config.latent_grids), symbols, (None,) * len(symbols))
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
    original = AutoencoderTask.step

    def step(self: AutoencoderTask, state: object, batch: object) -> Metrics:
        signal.raise_signal(signal.SIGTERM)
        return original(self, state, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(AutoencoderTask, "step", step)
    parts = "priors/level-1, priors/level-2, priors/level-3, prefixes, tables.hrvt"
    told = [f"{parts}: made for another state of the model; renew with: hrvqvae refresh run"]
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


def priors(run: Path, *levels: int) -> list[StalePart]:
    return [StalePart("prior", prior_folder(run, level).path, range(level, level + 1)) for level in levels]


def test_only_what_is_of_another_state_is_stale(run: Path, changed: Path) -> None:
    folder, decoder = RunFolder(run), progressive_folder(run)
    all_parts = [
        *priors(run, 0, 1, 2), StalePart("progressive decoder", decoder.path), StalePart("entropy model", folder.tables)
    ]  # fmt: skip
    assert stale_parts(run) == all_parts
    weights, about = storage.read(prior_folder(run, 0).model)
    storage.write(prior_folder(run, 0).model, weights, {**about, "autoencoder": storage.digest(folder.model)})
    prior_folder(run, 1).model.unlink()  # it has begun, and no more
    folder.tables.unlink()
    decoder.model.unlink()
    assert stale_parts(run) == priors(run, 1, 2)


def test_nothing_is_stale_at_first(run: Path) -> None:
    assert stale_parts(run) == [] == stale_notice(run)


def test_what_can_not_be_read_raises_nothing(changed: Path) -> None:
    run, decoder = changed, progressive_folder(changed).model
    decoder.write_bytes(decoder.read_bytes()[:20])
    RunFolder(run).tables.unlink()
    RunFolder(run).tables.mkdir()
    shutil.rmtree(prior_folder(run, 2).path)
    assert stale_parts(run) == priors(run, 0, 1)
    save_file({"any": torch.zeros(1)}, decoder, {"format": "pt", "meta": json.dumps([]), "digest": ""})
    assert stale_parts(run) == priors(run, 0, 1)
    RunFolder(run).model.unlink()
    assert stale_parts(run) == []
