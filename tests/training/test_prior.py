"""Priors trained on the codes of a run: killed, damaged and resumed to the same weights; the best state is kept."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hrvqvae.checkpoints import codemaps, storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.checkpoints.loading import load_priors, load_with_config
from hrvqvae.config import PriorConfig, PriorTrainingConfig
from hrvqvae.models.objective import Metrics
from hrvqvae.priors.base import code_loss
from hrvqvae.priors.configs import PixelSNAILConfig
from hrvqvae.training.loggers import MetricsLog
from hrvqvae.training.prior import CodeBatch, PriorTask, held_out_split, read_codes, resolve_priors, train_priors
from hrvqvae.training.state import TrainState
from hrvqvae.utils.errors import InputError
from tests.checkpoints.other_process import in_another_process
from tests.kills import Killed, Kills
from tests.tiny_priors import GIVEN, silent, train_levels


def weights(path: Path, level: int) -> dict[str, Tensor]:
    folder = prior_folder(path, level)
    kept = storage.read(folder.model)[0]
    return storage.read(folder.saved()[0])[0] | {f"file.{name}": tensor for name, tensor in kept.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def records(path: Path, level: int, kind: str) -> list[dict[str, float]]:
    lines = prior_folder(path, level).metrics.read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.mark.usefixtures("drawn")
def test_every_level_learns_and_can_be_loaded(run: Path) -> None:
    train_levels(run, training__max_steps="60", training__learning_rate="0.01", training__evaluate_every="20")
    for level in range(2):
        found = records(run, level, "evaluation")
        assert [record["step"] for record in found] == [20, 40, 60]
        assert found[-1]["bits_per_code"] < np.log2(3) - 0.1
        assert found[0]["bits_per_image"] == pytest.approx(found[0]["bits_per_code"] * 49)
        assert (prior_folder(run, level).pictures / "curves.png").is_file()
    priors = load_priors(run)
    assert [len(prior.level.coarser) for prior in priors.networks] == [0, 1]
    assert priors.classes == tuple("0123456789")
    assert sum(priors.class_counts) == 96
    assert not any(prior.training for prior in priors.networks)


def test_the_best_held_out_state_is_what_is_loaded(run: Path) -> None:
    train_levels(run, 1)
    model, config = load_with_config(run)
    noise = np.random.default_rng(0).integers(0, 3, (96, 7, 7)).astype(np.uint8)
    np.save(RunFolder(run).codes / "train-level-2.npy", noise)  # what can only be learned by heart
    train_levels(run, 2, training__max_steps="90", training__learning_rate="0.02", network__dropout="0.0")
    found = records(run, 1, "evaluation")
    best = min(found, key=lambda record: record["bits_per_code"])
    assert best["step"] < 90, "this one overfits, or there is nothing to keep"
    _, meta = storage.read(prior_folder(run, 1).model)
    assert (meta["step"], meta["bits_per_code"]) == (best["step"], best["bits_per_code"])
    maps = codemaps.stored(RunFolder(run).codes, storage.digest(RunFolder(run).model), config, "train")
    assert maps is not None
    _, held_out = held_out_split(len(maps), 0.05, 0)
    batch = read_codes(maps, model, range(1, 2), held_out)
    with torch.inference_mode():
        nats = float(code_loss(load_priors(run).networks[1], batch.codes, batch.coarser, batch.label))
    assert nats / np.log(2) == pytest.approx(best["bits_per_code"], rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopping_and_resuming_changes_nothing(precision: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "parts")
    common = {"training__precision": precision, "training__schedule": "constant"}
    train_levels(run, 2, **common)
    for steps in ("5", "7", "12"):
        train_levels(tmp_path / "parts", 2, resume=steps != "5", **{**common, "training__max_steps": steps})
    assert same(weights(run, 1), weights(tmp_path / "parts", 1))


def test_twenty_random_kills(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, tmp_path / "whole")
    train_levels(tmp_path / "whole", 2)
    killer = Kills(3)
    killer.watch(monkeypatch, (
        (PriorTask, "step"), (os, "fsync"), (Path, "replace"), (Path, "unlink"), (MetricsLog, "write"),
        (torch.optim.Adam, "step"),
    ))  # fmt: skip
    kills = 0
    while kills < 20:
        killer.arm(40)
        try:
            train_levels(run, 2, resume=True)
        except Killed:
            kills += 1
    killer.left = 0
    train_levels(run, 2, resume=True)
    assert same(weights(run, 1), weights(tmp_path / "whole", 1))
    assert records(run, 1, "evaluation") == records(tmp_path / "whole", 1, "evaluation")


def test_a_prior_that_is_there_is_not_overwritten(run: Path) -> None:
    train_levels(run, 2)
    before = weights(run, 1)
    with pytest.raises(InputError, match=r"level-2 holds a run already: continue it with --resume, or delete"):
        train_levels(run)
    assert not prior_folder(run, 0).begun(), "nothing is begun that can't be finished"
    assert same(weights(run, 1), before)


def test_a_resumed_prior_stays_the_same_prior(run: Path) -> None:
    train_levels(run, 1)
    with pytest.raises(InputError, match=r"--prior.network.hidden_units is 8 there, 16 here"):
        train_levels(run, 1, resume=True, network__hidden_units="16")
    train_levels(run, 1, resume=True, training__max_steps="13")
    assert storage.read(prior_folder(run, 0).saved()[0])[1]["step"] == 13


def test_another_process_that_trains_a_level_is_named(run: Path) -> None:
    with in_another_process(prior_folder(run, 1).path) as pid:
        with pytest.raises(InputError, match=rf"level-2 is in use by another process \(pid {pid}\)"):
            train_levels(run)
        assert not prior_folder(run, 0).begun(), "nothing is begun that can't be finished"
        train_levels(run, 1)
    train_levels(run, 2)


def test_codes_that_another_process_extracts_are_waited_for(run: Path) -> None:
    said, folder = list[str](), RunFolder(run).codes
    configs = resolve_priors(run, 1, GIVEN | {"prior.training.max_steps": "1"}, resume=False)
    with ExitStack() as held:
        pid = held.enter_context(in_another_process(folder))

        def say(line: str) -> None:
            said.append(line)
            if "waiting" in line:
                held.close()

        train_priors(run, configs, resume=False, say=say)
    assert said[0] == f"{folder} is in use by another process (pid {pid}); waiting for it"
    assert prior_folder(run, 0).begun()


def test_what_was_asked_for_holds_for_levels_that_a_signal_kept_from_beginning(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PriorTask.step

    def step(self: PriorTask, state: TrainState, batch: CodeBatch) -> Metrics:
        if state.step == 3:
            signal.raise_signal(signal.SIGINT)
        return original(self, state, batch)

    monkeypatch.setattr(PriorTask, "step", step)
    train_levels(run, training__batch_size="7")
    assert storage.read(prior_folder(run, 0).saved()[0])[1]["step"] == 4
    monkeypatch.undo()
    train_priors(run, resolve_priors(str(run), None, {}, resume=True), resume=True, say=silent)
    for level in range(2):
        assert prior_folder(run, level).read_config().prior.training.batch_size == (7,)
        assert storage.read(prior_folder(run, level).saved()[0])[1]["step"] == 12


def test_a_full_disk_while_the_best_state_is_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hrvqvae.training.prior.save_prior", full)
    with pytest.raises(
        InputError, match=r"step 4 could not be saved \(No space.*last good checkpoint is .*step-000000003"
    ):
        train_levels(run, 1)


def test_held_out_images_are_never_trained_on() -> None:
    kept, held_out = held_out_split(97, 0.1, 5)
    assert len(held_out) == 10
    assert sorted([*kept, *held_out]) == list(range(97))
    assert not np.array_equal(held_out, held_out_split(97, 0.1, 6)[1])
    assert [len(part) for part in held_out_split(2, 0.01, 0)] == [1, 1]
    with pytest.raises(InputError, match="at least 2"):
        held_out_split(1, 0.1, 0)


def test_values_by_level() -> None:
    training = PriorTrainingConfig(batch_size=(8, 4))
    prior = PriorConfig(training=training, network=PixelSNAILConfig(dropout=(0.1, 0.2), attention_layers=(0, 2)))
    assert [prior.training_of(level).batch_size for level in range(2)] == [8, 4]
    with pytest.raises(InputError, match="has 2 values; level 3 needs one"):
        prior.training_of(2)
    assert dataclasses.replace(prior, training=PriorTrainingConfig()).training_of(5).batch_size == 32
    for fields in ({"attention_layers": (9, 1), "residual_blocks": 8}, {"hidden_units": 12, "attention_heads": 8}):
        with pytest.raises(InputError, match="prior.network"):
            PixelSNAILConfig(**fields)  # type: ignore[arg-type]
