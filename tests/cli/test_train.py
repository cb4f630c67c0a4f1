"""Training by command: configurations, resumption, signals, the demo."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.config import presets
from hrvqvae.config.parsing import from_file
from hrvqvae.data import fetch
from hrvqvae.data.images import read_image
from tests.conftest import do, done, refused, write_file
from tests.trained_run import tiny_run


@pytest.fixture
def tiny_file(mnist_root: Path, tmp_path: Path) -> str:
    """A configuration file of a small model, in the folder of the test."""
    return str(write_file(tiny_run(mnist_root), tmp_path / "tiny.yaml"))


def test_print_config_is_a_file_that_trains(tmp_path: Path) -> None:
    fields = ["--model.quantizer.codewords", "8", "--prior.network.dropout", "0.3"]
    printed = do("train", "hrvqvae/mnist", *fields, "--max-steps", "5", "--print-config")
    (tmp_path / "printed.yaml").write_text(printed)
    config = from_file(tmp_path / "printed.yaml")
    assert (config.model.num_symbols, config.training.max_steps) == ((8, 8, 8), 5)
    assert yaml.safe_load(do("train", tmp_path / "printed.yaml", "--print-config")) == yaml.safe_load(
        (tmp_path / "printed.yaml").read_text()
    )


def test_resuming(tiny_file: str, tmp_path: Path) -> None:
    command = ["train", tiny_file, "--out", tmp_path / "run"]
    printed = do(*command, "--max-steps", "10") + do(*command, "--max-steps", "14", "--resume")
    assert "resuming" in printed
    assert printed.count("hint: 10 steps of training: little is learned beyond the start") == 1
    assert "hint: 14" not in printed
    printed = do("train", "--resume", tmp_path / "run", "--max-steps", "15")
    assert "trained 15 steps" in printed, "a run folder says itself what it is"
    printed = do("train", tiny_file, "--out", tmp_path / "short", "--max-minutes", "0.0001")
    assert re.search(r"hint: \d+ steps? fitted into the time: .* more minutes and --resume", printed)
    line = refused([*command, "--max-steps", "14", "--resume", "--model.quantizer.codewords", "5"])
    assert "--model.quantizer.codewords is 3 there, 5 here" in line
    line = refused(["train", "hrvqvae/mnist", "--out", tmp_path / "run", "--resume"])
    assert "holds a run of tiny, not of hrvqvae/mnist" in line


def test_the_prior_of_a_level(tiny_file: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    do("train", tiny_file, "--max-steps", "2", "--out", run)
    command = ["train-prior", "--prior.training.batch_size", "8,6,4", run, "--level", "3", "--max-steps", "2"]
    assert f"priors in {run}/priors" in do(*command)
    prior = prior_folder(run, 2).read_config().prior
    assert (prior.training_of(2).batch_size, prior.network.kind) == (4, "pixelsnail")
    line = refused([*command, "--resume", "--prior.network.kind", "gpt"])
    assert "--prior.network.kind is pixelsnail there, gpt here" in line
    line = refused(["train-prior", run, "--prior.training.batch_size", "8,6"])
    assert "prior.training.batch_size has 2 values; give one, or one for each of the 3 levels" in line
    assert "--training.seed is no field of the priors" in refused(["train-prior", run, "--training.seed", 1])
    assert "--level is 4; this model has levels 1 to 3" in refused(["train-prior", run, "--level", 4])


def test_a_signal_leaves_with_a_message(tiny_file: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hrvqvae", "train", tiny_file, "--out", "run", "--max-steps", "1000000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not RunFolder(tmp_path / "run").saved() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "continue with --resume" in out
    assert not [line for line in err.splitlines() if "compiling for this processor" not in line]
    assert RunFolder(tmp_path / "run").model.is_file()


def test_the_demo(mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "check", lambda dataset, folder: None)  # drawn digits are MNIST,
    preset = presets.Preset(config=tiny_run(mnist_root), sources={}, about="")
    monkeypatch.setattr(presets, "get", lambda name: preset)  # and the demo's preset is a small model
    out = tmp_path / "demo"
    command = ["demo", "--out", str(out), "--root", str(mnist_root), "--max-steps", "12"]
    for _ in range(2):  # the second time all is there already
        printed = do(*command)
        assert printed.count("$ hrvqvae ") == 6
        assert "mnist test: 40 images" in printed
        assert printed.count("trained 12 steps") == 4, "the autoencoder and three priors"
        assert "bits per code" in printed
    for name in ("reconstructions", "curves", "usage", "samples", "samples-of-the-shipped-model"):
        assert f"{name}.png" in printed.splitlines()[-1]
        assert read_image(out / "pictures" / f"{name}.png", 3).shape[2] > 100
    assert "--max-minutes is 0; it must be above 0" in refused(["demo", "--max-minutes", "0"])
    monkeypatch.undo()
    monkeypatch.setattr(fetch, "get", lambda name, root, say: root)
    code, _, told = done(*command)
    assert (code, "holds a run of tiny, not of treevq-deep/mnist" in told) == (2, True)
