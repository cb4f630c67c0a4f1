"""Models and priors from disk, and what is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hrvqvae
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.checkpoints.loading import has_priors, load_priors, load_with_config, load_with_digest
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.conftest import with_quantizer, with_training
from tests.tiny_priors import train_levels


def test_loading_from_anywhere(run: Path) -> None:
    model = hrvqvae.load(run)
    file = hrvqvae.load(run / "model.safetensors")
    images = torch.rand(2, 1, 12, 12)
    assert not model.autoencoder.training
    assert torch.equal(model.decode(model.encode(images), levels=1), file.decode(file.encode(images), levels=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such run folder"),
        (lambda path: path.mkdir(), "is not a run folder"),
        (lambda path: (path.mkdir(), (path / "config.yaml").write_text("")), "has no model.safetensors yet"),
        (lambda path: path.write_text("text"), "is damaged"),
        (lambda path: storage.write(path, {}, {}), "not a model of hrvqvae"),
    ],
)
def test_runs_that_are_none(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        hrvqvae.load(tmp_path / "run")


def test_the_name_of_a_preset_is_no_model() -> None:
    train = "is a preset, not a trained model; train one: hrvqvae train"
    with pytest.raises(
        InputError, match=f"^hrvqvae/mnist {train} hrvqvae/mnist --out runs/hrvqvae-mnist, or take mnist"
    ):
        hrvqvae.load("hrvqvae/mnist")
    with pytest.raises(InputError, match=f"^vqvae/mnist {train} vqvae/mnist --out runs/vqvae-mnist$"):
        hrvqvae.load("vqvae/mnist")


def test_what_trains_the_priors_that_are_missing(run: Path) -> None:
    with pytest.raises(InputError, match=f"{run} has no priors; train them: hrvqvae train-prior {run}$"):
        load_priors(run)
    train_levels(run, 1)
    with pytest.raises(InputError, match=f"no prior of level 2; train it: hrvqvae train-prior {run} --level 2$"):
        load_priors(run)


def test_a_configuration_that_was_edited_is_refused(run: Path) -> None:
    folder = RunFolder(run)
    before = folder.read_config()
    folder.write_config(with_training(before, max_steps=7, device="cpu"))  # what a run that goes on may change
    assert load_with_config(run)[1].model == before.model
    folder.write_config(with_quantizer(before, beta=0.5))
    with pytest.raises(InputError, match=r"run/config.yaml describes another model than model.safetensors"):
        hrvqvae.load(run)
    (run / "config.yaml").unlink()
    assert load_with_config(run)[1] == before, "the weights know their configuration"


def test_a_configuration_that_is_damaged_is_named(run: Path) -> None:
    (run / "config.yaml").write_text("model: [")
    with pytest.raises(DamagedFileError, match=r"config.yaml is damaged: not YAML"):
        hrvqvae.load(run)


def test_weights_of_another_model(run: Path) -> None:
    path = run / "model.safetensors"
    tensors, meta = storage.read(path)
    meta["config"]["model"]["hidden_units"] = 16
    storage.write(path, tensors, meta)
    (run / "config.yaml").unlink()
    with pytest.raises(DamagedFileError, match="do not fit their configuration"):
        hrvqvae.load(path)


def test_priors_of_another_autoencoder_are_refused(run: Path) -> None:
    train_levels(run)
    tensors, meta = storage.read(RunFolder(run).model)
    name = "decoder.0.bias"
    storage.write(RunFolder(run).model, tensors | {name: tensors[name] + 1}, meta)
    with pytest.raises(InputError, match=r"level-1.*hrvqvae refresh"):
        load_priors(run)


def test_what_can_not_be_loaded(run: Path) -> None:
    with pytest.raises(InputError, match=r"has no priors; train them: hrvqvae train-prior"):
        load_priors(run)
    train_levels(run)
    path = prior_folder(run, 1).model
    tensors, meta = storage.read(path)
    storage.write(path, tensors, {**meta, "kind": "autoencoder"})
    with pytest.raises(DamagedFileError, match="is not a prior"):
        load_priors(run)
    network = {**meta["config"]["prior"]["network"], "residual_blocks": 3}
    config = {**meta["config"], "prior": {**meta["config"]["prior"], "network": network}}
    storage.write(path, tensors, {**meta, "config": config})
    with pytest.raises(InputError, match=r"level-2/config.yaml describes another model than model.safetensors"):
        load_priors(run)
    prior_folder(run, 1).config.unlink()
    with pytest.raises(DamagedFileError, match="do not fit"):
        load_priors(run)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedFileError, match="is damaged"):
        load_priors(run)


def test_whether_there_are_priors_is_known_without_reading_weights(run: Path) -> None:
    assert not has_priors(run)
    train_levels(run)
    for path in (RunFolder(run).model, *(prior_folder(run, level).model for level in range(2))):
        content = path.read_bytes()
        path.write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])  # a header without any tensor
    assert has_priors(run)
    prior_folder(run, 1).model.unlink()
    assert not has_priors(run)


def test_a_digest_is_of_the_weights_that_were_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another process writes the file anew at once."""
    path, read = RunFolder(run).model, Path.read_bytes
    before = storage.digest(path)

    def read_and_replace(self: Path) -> bytes:
        content = read(self)
        if self == path:
            tensors = {name: torch.zeros_like(tensor) for name, tensor in storage.load_tensors(content).items()}
            storage.write(path, tensors, storage.read_meta(path))
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_replace)
    model, _, digest = load_with_digest(run)
    monkeypatch.undo()
    assert any(bool(parameter.any()) for parameter in model.parameters())
    assert digest == before != storage.digest(path)


@pytest.mark.parametrize(("device", "message"), [("cuda:99", "there are [0-9]+ GPUs here"), ("gpu", "must be auto")])
def test_a_device_that_is_none(run: Path, device: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        hrvqvae.load(run, device=device)


def test_the_device_may_be_left_to_the_machine(run: Path) -> None:
    assert hrvqvae.load(run, device="auto").encode(torch.rand(1, 1, 12, 12))
