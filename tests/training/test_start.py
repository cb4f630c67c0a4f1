"""Training that begins with the weights of a trained model, and what does not fit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.cli import main
from hrvqvae.config import Config
from hrvqvae.training.prior import resolve_priors, train_priors
from hrvqvae.utils.errors import InputError
from tests.cli.helpers import write_file
from tests.conftest import with_training, write_mnist
from tests.tiny_priors import GIVEN, silent, train_levels
from tests.tiny_systems import tiny_systems
from tests.trained_run import train_autoencoder

_STILL = {"learning_rate": 1e-12, "max_steps": 1}  # so that the weights are those that it began with


def weights(path: Path) -> dict[str, Tensor]:
    return storage.read(path)[0]


@pytest.mark.parametrize("system", ["hrvqvae", "treevq", "vqvae", "vqvae2", "vqgan", "rqvae", "fsq", "vqpytorch"])
def test_every_system_begins_with_the_weights_of_another_run(mnist_root: Path, tmp_path: Path, system: str) -> None:
    config = with_training(tiny_systems(mnist_root)[system], max_steps=5)
    train_autoencoder(config, RunFolder(tmp_path / "first"), resume=False, say=silent)
    told: list[str] = []
    still = with_training(config, **_STILL, init_from=str(tmp_path / "first"), seed=7)
    train_autoencoder(still, RunFolder(tmp_path / "second"), resume=False, say=told.append)
    assert f"beginning with the weights of {tmp_path / 'first'}, trained on mnist" in told
    first, second = (weights(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    for name, tensor in first.items():
        moves = name.rsplit(".", 1)[-1] in ("codewords", "count", "total", "embed", "embed_avg", "cluster_size")
        if not moves:  # moving averages take their step whatever the learning rate
            torch.testing.assert_close(second[name], tensor, msg=name)


def test_codebooks_keep_their_counts(run: Path, tiny: Config, tmp_path: Path) -> None:
    config = with_training(tiny, **_STILL, init_from=str(run))
    decay = config.model.quantizer.decay  # type: ignore[attr-defined]
    train_autoencoder(config, RunFolder(tmp_path / "second"), resume=False, say=silent)
    first, second = (weights(path / "model.safetensors") for path in (run, tmp_path / "second"))
    counts = [name for name in first if name.endswith(".count")]
    assert counts
    for name in counts:
        floor = first[name] * decay  # one step adds what the batch holds
        assert (second[name] >= floor - 1e-3).all()


def test_an_exported_model_and_other_data_will_do(run: Path, tiny: Config, tmp_path: Path) -> None:
    export(run, tmp_path / "export")
    write_mnist(tmp_path / "other" / "mnist", train=40, test=20)
    data = dataclasses.replace(tiny.data, root=str(tmp_path / "other"))
    begun = with_training(dataclasses.replace(tiny, data=data), max_steps=2, init_from=str(tmp_path / "export"))
    train_autoencoder(begun, RunFolder(tmp_path / "second"), resume=False, say=silent)
    fresh = with_training(begun, init_from="")
    train_autoencoder(fresh, RunFolder(tmp_path / "fresh"), resume=False, say=silent)
    errors = {}
    for name in ("second", "fresh"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        errors[name] = float(lines[-1].split('"mse": ')[1].split(",")[0])
    assert errors["second"] < 0.7 * errors["fresh"]


def test_a_run_resumes_though_its_start_is_gone(run: Path, tiny: Config, tmp_path: Path) -> None:
    start = shutil.copytree(run, tmp_path / "start")
    config = with_training(tiny, max_steps=3, init_from=str(start))
    train_autoencoder(config, RunFolder(tmp_path / "second"), resume=False, say=silent)
    shutil.rmtree(start)
    longer = with_training(config, max_steps=5)
    assert train_autoencoder(longer, RunFolder(tmp_path / "second"), resume=True, say=silent).step == 5


def test_what_does_not_fit_is_named_and_nothing_is_written(
    run: Path, tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_file(tiny, tmp_path / "tiny.yaml")
    out = tmp_path / "second"
    for init_from, field, line in (
        (run, ["--model.hidden_units", "6"], r"does not fit: "),
        (run, ["--model.quantizer.codewords", "4"], r"does not fit: quantizer.codebooks.0."),
        (tmp_path / "none", [], "there is no such run folder"),
    ):
        code = main(["train", str(file), "--init-from", str(init_from), "--out", str(out), *field])
        told = capsys.readouterr().err
        assert code == 2
        assert line in told
        assert told.count("\n") == 1
        assert not RunFolder(out).begun()


def test_priors_begin_with_those_of_another_run(run: Path, tmp_path: Path) -> None:
    train_levels(run)
    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("priors"))
    given = {f"prior.training.{name}": str(value) for name, value in _STILL.items()}
    told: list[str] = []
    configs = resolve_priors(other, None, GIVEN | given | {"prior.training.init_from": str(run)}, resume=False)
    train_priors(other, configs, resume=False, say=told.append)
    assert f"beginning with the prior of level 2 of {run}" in told
    for level in range(2):
        first, second = (weights(prior_folder(path, level).model) for path in (run, other))
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, msg=name, atol=1e-4, rtol=1e-4)


def test_a_prior_keeps_its_trunk_where_the_classes_differ(run: Path, tmp_path: Path) -> None:
    train_levels(run)
    for level in range(2):  # as if there had been one more class
        path = prior_folder(run, level).model
        tensors, about = storage.read(path)
        tensors["classes.weight"] = torch.cat([tensors["classes.weight"], torch.zeros(1, 8)])
        storage.write(path, tensors, about | {"classes": [*about["classes"], "more"]})
    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("priors"))
    given = {f"prior.training.{name}": str(value) for name, value in _STILL.items()}
    told: list[str] = []
    configs = resolve_priors(other, None, GIVEN | given | {"prior.training.init_from": str(run)}, resume=False)
    train_priors(other, configs, resume=False, say=told.append)
    assert f"beginning with the prior of level 1 of {run}, classes.weight anew: other classes" in told
    first, second = (weights(prior_folder(path, 0).model) for path in (run, other))
    assert second["classes.weight"].shape == (10, 8)
    for name in first.keys() - {"classes.weight"}:
        torch.testing.assert_close(second[name], first[name], msg=name, atol=1e-4, rtol=1e-4)


def test_a_prior_of_other_shapes_is_refused(run: Path, tmp_path: Path) -> None:
    train_levels(run)
    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("priors"))
    given = GIVEN | {"prior.network.hidden_units": "4", "prior.training.init_from": str(run)}
    with pytest.raises(InputError, match=r"level 1, does not fit: .* is \[.*\] there, \[.*\] here"):
        train_priors(other, resolve_priors(other, None, given, resume=False), resume=False, say=silent)
    assert not prior_folder(other, 0).model.exists()
