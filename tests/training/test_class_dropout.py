"""Priors that are trained without the class of some images: which, resumed to the bit, begun from others; learned."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import prior_folder
from hrvqvae.checkpoints.loading import load_priors
from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.cli import main
from hrvqvae.config import PriorTrainingConfig
from hrvqvae.distributed import Part
from hrvqvae.evaluation import classifier
from hrvqvae.evaluation.classifier import train_classifier
from hrvqvae.priors.base import Level
from hrvqvae.priors.configs import TransformerConfig
from hrvqvae.priors.transformer import Transformer
from hrvqvae.training.prior import CodeBatch, PriorTask, resolve_priors, train_priors, withheld
from hrvqvae.training.state import TrainState
from hrvqvae.utils.device import Compute
from hrvqvae.utils.errors import InputError
from tests.cli.helpers import refused
from tests.tiny_priors import GIVEN, silent, train_levels

_LEVEL = Level(grid=(1, 1), symbols=3, classes=4, unconditional=True)


def test_which_classes_are_withheld_depends_on_seed_and_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    label = torch.arange(64) % 4
    drawn = [withheld(label, _LEVEL, 0.25, seed=3, step=step) for step in range(200)]
    gone = torch.stack([one == 4 for one in drawn if one is not None])
    assert float(gone.double().mean()) == pytest.approx(0.25, abs=0.02)
    assert all(torch.equal(one[~of], label[~of]) for one, of in zip(drawn, gone, strict=True) if one is not None)
    assert len({tuple(row) for row in gone.tolist()}) == 200, "other images at every step"
    again = withheld(label, _LEVEL, 0.25, seed=3, step=7)
    assert again is not None
    assert torch.equal(again == 4, gone[7])
    halves = []
    for number in range(2):
        monkeypatch.setattr("hrvqvae.distributed.part", lambda number=number: Part(number, 2))
        halves.append(withheld(label[number * 32 : number * 32 + 32], _LEVEL, 0.25, seed=3, step=7))
    assert torch.equal(torch.cat([half for half in halves if half is not None]), again), "two processes, one batch"


def test_classes_that_are_not_there_are_not_withheld() -> None:
    assert withheld(None, _LEVEL, 0.5, 0, 0) is None


def test_without_a_class_the_marginal_is_learned() -> None:
    torch.manual_seed(0)
    prior = Transformer(TransformerConfig(hidden_units=8, layers=1, heads=1, dropout=0), _LEVEL, 0)
    training = PriorTrainingConfig(
        epochs=1, learning_rate=0.02, warmup_steps=1, schedule="constant", polyak_decay=0.95, precision="fp32",
        device="cpu", batch_size=(256,),
    ).of_level(0)  # fmt: skip
    compute = Compute.of(training)
    state = TrainState.start(compute.place_model(prior), training)
    step = PriorTask(prior, 0, compute, class_dropout=0.5)
    generator = torch.Generator().manual_seed(1)
    for number in range(150):
        label = torch.multinomial(torch.tensor([0.1, 0.2, 0.3, 0.4]), 256, replacement=True, generator=generator)
        codes = torch.where(label == 3, 2, label % 2)[:, None, None]  # the class says it: 0, 1, 0, 2
        state.step = number
        step(state, CodeBatch((codes,), (), label))
    learned = state.averaged.module.eval()
    found = learned.logits(torch.zeros(5, 1, 1, dtype=torch.long), [], torch.arange(5)).softmax(1)[:, :, 0, 0]
    for label, code in enumerate((0, 1, 0, 2)):
        assert found[label, code] > 0.95
    assert found[4].tolist() == pytest.approx([0.4, 0.2, 0.4], abs=0.05)


@pytest.fixture
def guided(run: Path, tmp_path: Path) -> Path:
    """A run with priors that were trained with class dropout."""
    path = shutil.copytree(run, tmp_path / "guided")
    train_levels(path, class_dropout="0.3")
    return path


def states(path: Path) -> list[dict[str, Tensor]]:
    folders = [prior_folder(path, level) for level in range(2)]
    return [storage.read(file)[0] for folder in folders for file in (folder.saved()[0], folder.model)]


def test_training_with_class_dropout_resumes_to_the_bit(
    run: Path, guided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, steps = PriorTask.step, [0]

    def killed(self: PriorTask, state: TrainState, batch: CodeBatch) -> object:
        steps[0] += 1
        if steps[0] in (5, 11, 18):
            raise KeyboardInterrupt
        return original(self, state, batch)

    monkeypatch.setattr(PriorTask, "step", killed)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            train_levels(run, resume=True, class_dropout="0.3")
    train_levels(run, resume=True, class_dropout="0.3")
    for one, other in zip(states(run), states(guided), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_trained_run_is_guided_and_one_without_class_dropout_is_refused(
    run: Path, guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [tuple(prior.state_dict()["classes.weight"].shape) for prior in load_priors(guided).networks] == [
        (11, 8)
    ] * 2
    model = TrainedModel(guided)
    weak, strong = (model.sample(6, class_name="7", seed=3, guidance=guidance) for guidance in (1.0, 4.0))
    assert not torch.equal(weak, strong)
    out = tmp_path / "sheet.png"
    assert main(["sample", str(guided), "-n", "2", "--guidance", "1.5", "-o", str(out)]) == 0
    monkeypatch.setattr(classifier, "train_classifier", lambda config, say: train_classifier(config, epochs=2, say=say))
    capsys.readouterr()
    told = ["evaluate", str(guided), "--samples", "20", "--guidance", "1", "3", "--device", "cpu"]
    assert main([*told, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["guidance"] for one in report["by_guidance"]] == [1, 3]
    assert report["by_guidance"][0]["frechet"] == report["distances"]["samples"]["frechet"]
    assert report["by_guidance"][0]["frechet"] != report["by_guidance"][1]["frechet"]
    assert "--samples N" in refused(["evaluate", guided, "--guidance", "3"], capsys)
    train_levels(run)
    for command in (["sample", run, "-o", tmp_path / "none.png"], ["evaluate", run, "--samples", "2"]):
        line = refused([*command, "--guidance", "1.5"], capsys)
        assert "prior of level 1 was trained without class dropout: train it with --prior.class_dropout 0.1" in line
        assert "guidance is -1; it must be from 0 to 1000" in refused([*command, "--guidance", "-1"], capsys)
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(("before", "after"), [("0", "0.3"), ("0.3", "0")])
def test_a_prior_begins_with_one_that_knows_no_class_or_without(
    run: Path, tmp_path: Path, before: str, after: str
) -> None:
    train_levels(run, 1, class_dropout=before)
    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("priors"))
    still = {
        "prior.training.learning_rate": "1e-12", "prior.training.max_steps": "1",
        "prior.training.init_from": str(run), "prior.class_dropout": after,
    }  # fmt: skip
    train_priors(other, resolve_priors(other, 1, GIVEN | still, resume=False), resume=False, say=silent)
    first, second = (storage.read(prior_folder(path, 0).model)[0] for path in (run, other))
    rows = first.pop("classes.weight")
    found = second.pop("classes.weight")
    torch.testing.assert_close(found[:10], rows[:10], atol=1e-4, rtol=1e-4)
    assert len(found) == (11 if after != "0" else 10)
    if after != "0":
        torch.testing.assert_close(found[10], rows.mean(0), atol=1e-4, rtol=1e-4)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-4, rtol=1e-4)


def test_a_share_out_of_range() -> None:
    from hrvqvae.config import presets

    prior = presets.get("hrvqvae/mnist").config.prior
    assert prior.class_dropout == 0, "as the paper's"
    with pytest.raises(InputError, match="prior.class_dropout is 1"):
        dataclasses.replace(prior, class_dropout=1.0)
