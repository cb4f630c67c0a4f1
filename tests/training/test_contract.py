"""Every task after kills, signals, damage, full disks and refusals."""

import errno
import math
import os
import shutil
import signal
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
from torch.testing import assert_close

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config.parsing import override
from hrvqvae.training.loggers import MetricsLog
from hrvqvae.training.state import TrainState
from hrvqvae.training.trainer import ProcessSync
from hrvqvae.utils.outputs import TEMPORARY
from tests.checkpoints.test_damage import DAMAGES
from tests.conftest import (
    damage_error,
    in_use_error,
    input_error,
    nonfinite_error,
    parametrize,
    same,
)
from tests.kills import Killed, Kills, at_step, in_another_process, stop_at_step

# what no task has a part in
of_the_trainer = parametrize("case", ["autoencoder"], indirect=True)


def finish(case, unstopped):
    """Go on to the end, which is that of a training that nothing stopped."""
    case.resume()
    assert same(case.state(), unstopped.state())
    assert case.records("evaluation") == unstopped.records("evaluation")


@parametrize(
    "form",
    [
        {"precision": "fp32", "optimizer": "adam"},
        {"precision": "bf16", "memory_format": "channels_last", "optimizer": "muon"},
    ],
)
def test_stopping_and_resuming_changes_nothing(case, twin, form):
    case.train(**form, schedule="constant")
    for steps in (5, 8, 12):
        torch.manual_seed(steps)  # another process has drawn other numbers
        twin.train(resume=steps > 5, max_steps=steps, **form, schedule="constant")
        assert twin.last_step == steps
    assert same(case.state(), twin.state())
    # each once, and at each end
    assert [record["step"] for record in twin.records("evaluation")] == [4, 5, 8, 12]


def test_nothing_is_trained_for_an_autoencoder_that_still_trains(case):
    """Nor the autoencoder itself."""
    with in_another_process(case.path), in_use_error("in use by another process; wait"):
        case.train()
    assert not case.folder.begun()


def test_random_kills(case, unstopped, monkeypatch):
    killer = Kills(3)
    calls = [(case.kind, name) for name in ("step", "evaluate", "save")]
    calls += [(Path, "replace"), (Path, "unlink"), (os, "fsync")]
    killer.watch(monkeypatch, [*calls, (MetricsLog, "write"), (TrainState, "minimize")])
    kills = 0
    while kills < 8:
        killer.arm(60)
        try:
            case.resume()
        except Killed:
            kills += 1
    killer.left = 0
    finish(case, unstopped)
    steps = [record["step"] for record in case.records()]
    assert steps == sorted(steps)
    assert not list(case.folder.path.rglob(f"{TEMPORARY}*"))


@of_the_trainer
@parametrize(
    "signum, handler",
    [
        (signal.SIGINT, signal.SIG_IGN),  # a background job of a script inherits this
        (signal.SIGTERM, signal.SIG_DFL),
    ],
)
def test_signals_end_it_after_the_step(case, unstopped, signum, handler, monkeypatch, request):
    """An inherited handler does not matter."""
    before = signal.signal(signum, handler)
    request.addfinalizer(lambda: signal.signal(signum, before))
    stop_at_step(monkeypatch, case.kind, 6, signum)
    outcome = case.train()
    assert signal.getsignal(signum) == handler
    assert outcome.signal == signum
    assert case.last_step == 7
    monkeypatch.undo()
    assert case.resume().signal is None
    assert same(case.state(), unstopped.state())


def test_a_signal_before_the_first_step_leaves_a_checkpoint(case, unstopped, monkeypatch):
    batches = case.kind.batches

    def stopped(task, first_step):
        signal.raise_signal(signal.SIGTERM)
        yield from batches(task, first_step)

    monkeypatch.setattr(case.kind, "batches", stopped)
    assert case.train().signal == signal.SIGTERM
    assert case.last_step == 0
    monkeypatch.undo()
    finish(case, unstopped)


@parametrize("where", ["loss", "gradient", "weight"])
def test_what_is_not_finite_stops_before_the_update(case, where, monkeypatch):
    minimize = TrainState.minimize
    before = []

    def tensors_of(state):
        tensors = state.tensors().items()
        return {name: tensor.nan_to_num() for name, tensor in tensors if "books" not in name}

    def spoiled(state, losses):
        if before and where == "loss":
            terms = losses["model"].items()
            losses = losses | {"model": {name: tensor * math.inf for name, tensor in terms}}
        return minimize(state, losses)

    def spoil(state):
        parameter = next(state.model.parameters())
        if where == "weight":
            parameter.data.fill_(math.nan)
        if where == "gradient":
            parameter.register_hook(lambda gradient: gradient * math.nan)
        before.extend([state, tensors_of(state)])

    monkeypatch.setattr(TrainState, "minimize", spoiled)
    at_step(monkeypatch, case.kind, 7, spoil)
    with nonfinite_error("step 7: |infinite"):
        case.train()
    state, tensors = before
    assert same(tensors_of(state), tensors)
    kept = storage.read(case.folder.saved()[0])[0]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())


@parametrize("full", ["step-000000009", "model"])
def test_a_full_disk(case, unstopped, full, monkeypatch):
    original = storage.write

    def write(path, tensors, meta):
        if path.stem == full:
            raise OSError(errno.ENOSPC, "full")
        original(path, tensors, meta)

    monkeypatch.setattr(storage, "write", write)
    with input_error("full.*--resume"):
        case.train()
    monkeypatch.undo()
    finish(case, unstopped)


@of_the_trainer
def test_a_finished_run_stays_as_it_is(case):
    def written():
        files = [*case.folder.path.rglob("*.safetensors"), case.folder.metrics, case.folder.config]
        return {path: path.read_bytes() for path in files}

    case.train(log_every=5)
    before = written()
    case.resume(log_every=5)
    with input_error("holds a run already: .*--resume"):
        case.train()
    assert written() == before
    shutil.rmtree(case.folder.checkpoints)
    before = written()
    with input_error("no checkpoint to go on from.*--init-from"):
        case.resume(max_steps=4)
    assert written() == before


@of_the_trainer
def test_each_checkpoint_is_written_once(case):
    """Also the last, at an evaluation."""
    with patch.object(RunFolder, "save", autospec=True, side_effect=RunFolder.save) as save:
        case.train()
    assert [call.args[1] for call in save.call_args_list] == [3, 4, 6, 8, 9, 12]


@of_the_trainer
@parametrize("damage", ["cut", "bit"])
def test_a_damaged_checkpoint_is_passed_over(case, damage, capsys):
    case.train(max_steps=8, schedule="constant")
    newest, _ = case.folder.saved()
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    case.resume(schedule="constant")
    assert f"{newest.name} is damaged" in capsys.readouterr().out
    for path in case.folder.saved():
        assert storage.read(path)
        path.write_bytes(b"")
    with damage_error(r"every checkpoint in .* is damaged"):
        case.resume()
    assert len(case.folder.saved()) == 2  # nothing is renamed or lost


@parametrize("write", [1, 2])
def test_a_kill_before_the_model_file(case, unstopped, write, monkeypatch):
    """A resumed run brings the model to the step of the checkpoint."""
    original = storage.write
    last = []

    def mortal(path, tensors, meta):
        if meta["step"] == 12:
            last.append(path)
            if len(last) == write:
                raise Killed
        original(path, tensors, meta)

    monkeypatch.setattr(storage, "write", mortal)
    with pytest.raises(Killed):
        case.train()
    monkeypatch.undo()
    finish(case, unstopped)


@of_the_trainer
def test_a_kill_while_it_draws(case, monkeypatch):
    """A resumed run draws the pictures of its last evaluation."""
    draw = Mock(side_effect=[None, None, Killed])
    monkeypatch.setattr(case.kind, "draw", draw)
    with pytest.raises(Killed):
        case.train()
    draw.side_effect = None
    case.resume()
    assert draw.call_args.args[1][-1]["step"] == 12
    assert draw.call_count == 4


def test_it_begins_with_the_weights_of_another_run(case, twin, unstopped):
    """With a tiny learning rate, a step leaves the weights as they were copied."""
    source = unstopped.path
    case.train(init_from=source, max_steps=1, learning_rate=1e-12)
    first, second = (storage.read(run.folder.model)[0] for run in (unstopped, case))
    for name in first:
        if name.endswith(".count"):  # one step adds what the batch holds
            assert (second[name] >= first[name] * case.base.model.quantizer.decay - 1e-3).all()
        elif not name.endswith((".codewords", ".total")):  # which averages lead
            assert_close(second[name], first[name], msg=name, atol=1e-5, rtol=1e-4)
    with input_error("there is no such run folder"):
        twin.train(init_from=source.with_name("gone"))
    section = "model" if case.name == "autoencoder" else f"{case.name}.network"
    narrow = override(twin.config(init_from=source), {f"{section}.hidden_units": "4"})
    with input_error("does not fit: .* there, .* here"):
        twin.train(config=narrow)
    assert not twin.folder.begun()


@of_the_trainer
def test_a_budget_ends_the_training(case, monkeypatch):
    """An epoch has 6 steps; more of any limit goes on."""
    monkeypatch.setattr(ProcessSync, "sync", lambda _: 0.1)  # a step, and what follows it
    assert case.train(max_steps=20, epochs=2).step == 12
    assert case.resume(max_steps=0, epochs=2).step == 12
    assert case.resume(max_steps=14).step == 14
    outcome = case.resume(max_steps=0, max_minutes=0.1)
    assert outcome.step > 14
    assert outcome.seconds >= 6
