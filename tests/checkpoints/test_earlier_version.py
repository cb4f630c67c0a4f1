"""Runs and an archive of the version before, and the shipped MNIST model: they give what they gave."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hrvqvae
from hrvqvae.checkpoints.entropy_model import fit_entropy_model
from hrvqvae.checkpoints.stale import stale_parts
from hrvqvae.cli import main
from hrvqvae.compression.archive import open_archive
from hrvqvae.model import Model
from hrvqvae.training.loggers import read_records
from tests.conftest import do, done, drawn_digits, refused

GOLDEN = Path(__file__).parent.parent / "golden" / "runs"


@pytest.fixture
def runs(tmp_path: Path, mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of the golden runs; the data that they were trained on."""
    shutil.copytree(GOLDEN, tmp_path / "runs")
    monkeypatch.setenv("HRVQVAE_DATA", str(mnist_root))
    return tmp_path / "runs"


def test_an_archive_holds_the_codes_that_its_model_gives(runs: Path) -> None:
    model = hrvqvae.load(runs / "treevq")
    images = torch.from_numpy(drawn_digits(40, 2)[0][:5, None])
    archive = open_archive(runs / "treevq.hrva")
    stored = archive.read(range(5))
    for level, codes in enumerate(model.encode(images)):
        assert np.array_equal(codes.numpy().reshape(5, -1), np.stack([np.ravel(one.codes[level]) for one in stored]))


def test_progressive_decoder_and_entropy_model_are_used(runs: Path) -> None:
    model = hrvqvae.load(runs / "treevq")
    codes = model.encode(torch.from_numpy(drawn_digits(40, 2)[0][:2, None]))
    assert not torch.equal(model.decode(codes, levels=2), model.decode(codes))
    assert model.autoencoder.progressive_decoder is not None  # type: ignore[attr-defined]
    assert model.entropy_model.networks


def test_priors_of_a_network_that_was_removed_are_refused_and_the_rest_is_used(runs: Path, tmp_path: Path) -> None:
    run, sheet, removed = runs / "treevq", tmp_path / "sheet.png", "prior.network.kind 'depth' was removed: "
    for command in (
        ["sample", run, "-n", 2, "-o", sheet], ["train-prior", run], ["train-prior", run, "--resume"],
        ["train", run / "config.yaml", "--out", tmp_path / "new"],
        ["train", "treevq/mnist", "--prior.network.kind", "depth", "--out", tmp_path / "new"],
        ["train-prior", run, "--prior.network.head_units", 8],
    ):  # fmt: skip
        line = refused(command)
        assert removed in line or "prior.network.head_units" in line
    assert removed in json.loads(do("evaluate", run, "--images", 4, "--device", "cpu", "--json"))["no_priors"]
    do("export", run, tmp_path / "out")
    assert not (tmp_path / "out" / "priors").exists()
    images = torch.from_numpy(drawn_digits(40, 2)[0][:2, None])
    before, after = (hrvqvae.load(path).encode(images) for path in (run, tmp_path / "out"))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    shutil.rmtree(run / "priors" / "levels-1-3")
    gpt = ("--prior.network.kind", "gpt", "--prior.network.layers", 1)
    do("train-prior", run, *gpt, "--max-steps", 2, "--device", "cpu")
    assert hrvqvae.load(run).draw(2, class_name="3", seed=0).images.shape == (2, 1, 12, 12)


def test_a_run_whose_priors_were_removed_goes_on_and_the_rest_is_renewed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrvqvae.training.refresh.fit_entropy_model", partial(fit_entropy_model, effort=0.05))
    run, steps = runs / "treevq", ("--max-steps", 12)
    do("train", run, "--resume", *steps)
    assert [part.kind for part in stale_parts(run)] == ["prior", "progressive decoder", "entropy model"]
    code, _, told = done("refresh", run)
    assert (code, "priors/levels-1-3: prior.network.kind 'depth' was removed" in told) == (2, True)
    assert [part.kind for part in stale_parts(run)] == ["prior"]
    do("train", run / "config.yaml", "--prior.network.kind", "gpt", "--out", tmp_path / "new", *steps)


@pytest.mark.parametrize("name", ["treevq", "vqvae"])
def test_training_goes_on(runs: Path, name: str) -> None:
    before = read_records(runs / name / "metrics.jsonl")
    command = ["train", f"{name}/mnist", "--out", str(runs / name), "--resume", "--max-steps", "12"]
    assert main(command) == 0
    records = read_records(runs / name / "metrics.jsonl")
    assert records[: len(before)] == before
    assert records[-1]["step"] == 12
    last = [record["loss"] for record in records if record["kind"] == "train"]
    assert last[-1] < last[0]


# The shipped MNIST model


CODES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "mnist_codes.json").read_text())


@pytest.fixture(scope="module")
def model() -> Model:
    return hrvqvae.load("mnist")


def test_codes_of_images(model: Model) -> None:
    images = torch.from_numpy(drawn_digits(4, CODES["image_seed"], 28)[0]).unsqueeze(1)
    codes = model.encode(images)
    assert [code.tolist() for code in codes] == CODES["image_codes"]
    bytes_ = (model.decode(codes, size=(28, 28)) * 255).round()
    assert float((bytes_ - images).square().mean()) < 255**2 * 0.01, "and they decode to the images"


def test_codes_of_samples(model: Model) -> None:
    sampled = model.draw(2, seed=CODES["sample_seed"], class_name=str(CODES["class"]))
    assert [code.tolist() for code in sampled.codes] == CODES["sample_codes"]
    assert sampled.images.shape == (2, 1, 28, 28)
