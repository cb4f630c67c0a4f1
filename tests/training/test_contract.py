"""Every task after kills, signals, damage, full disks and refusals."""

import errno
import math
import os
import shutil
import signal
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.run import Run
from hrvqvae.config.parsing import override
from hrvqvae.training.loggers import MetricsLog
from hrvqvae.training.state import TrainState
from hrvqvae.training.trainer import ProcessSync
from hrvqvae.utils.errors import DamagedFileError, InputError, NonFiniteError, explain_write_errors
from hrvqvae.utils.locks import InUseError
from hrvqvae.utils.outputs import TEMPORARY
from hrvqvae.utils.progress import say
from tests.conftest import input_error, same
from tests.kills import Killed, Kills, at_step, in_another_process
from tests.training.tasks import Case

of_the_trainer = pytest.mark.parametrize(
    "case", ["autoencoder"], indirect=True
)  # no task has a part in it


@pytest.mark.parametrize(
    "form",
    [
        {"precision": "fp32", "optimizer": "adam"},
        {"precision": "bf16", "memory_format": "channels_last", "optimizer": "muon"},
    ],
)
def test_stopping_and_resuming_changes_nothing(
    case: Case, other: Case, form: dict[str, str]
) -> None:
    form = {**form, "schedule": "constant"}
    case.train(**form)
    for steps in (5, 8, 12):
        torch.manual_seed(steps)  # another process has drawn other numbers
        assert other.train(resume=steps > 5, max_steps=steps, **form).step == steps
    assert same(case.state(), other.state())
    evaluated = [one["step"] for one in other.records("evaluation")]
    assert evaluated == [4, 5, 8, 12], "each once, and at each end"


def test_torchs_generator_depends_on_the_step(
    case: Case, other: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list[tuple[int, float]]()
    for step in range(4):
        at_step(
            monkeypatch,
            case.kind,
            step,
            lambda state: drawn.append((state.step, float(torch.rand(())))),
        )
    case.train(max_steps=4)
    for steps in (2, 4):
        other.train(resume=steps > 2, max_steps=steps)
    assert drawn[:4] == drawn[4:]
    assert len(set(drawn)) == 4


@of_the_trainer
def test_torchs_generator_goes_on_after_a_training(case: Case) -> None:
    torch.manual_seed(5)
    case.train(max_steps=2)
    Run(case.path).load()
    after = torch.rand(())
    torch.manual_seed(5)
    assert torch.rand(()) == after


@pytest.mark.parametrize("case", ["prior", "progressive"], indirect=True)
def test_nothing_is_trained_for_an_autoencoder_that_still_trains(case: Case) -> None:
    with (
        in_another_process(case.path),
        pytest.raises(InUseError, match="in use by another process, which may change its"),
    ):
        case.train()
    assert not case.folder.begun()


def test_the_seed_decides(case: Case, other: Case, whole: Case) -> None:
    case.train()
    other.train(seed=1)
    assert same(case.state(), whole.state())
    assert case.records() == whole.records()
    assert not same(other.state(), whole.state())


def test_random_kills(case: Case, whole: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = Kills(3)
    killer.watch(
        monkeypatch,
        (
            (case.kind, "step"),
            (case.kind, "evaluate"),
            (case.kind, "save"),
            (os, "fsync"),
            (Path, "replace"),
            (Path, "unlink"),
            (MetricsLog, "write"),
            (TrainState, "minimize"),
        ),
    )
    kills = 0
    while kills < 8:
        killer.arm(60)
        try:
            case.train(resume=True)
        except Killed:
            kills += 1
    killer.left = 0
    case.train(resume=True)
    assert same(case.state(), whole.state())
    assert case.records("evaluation") == whole.records("evaluation")
    steps = [record["step"] for record in case.records()]
    assert steps == sorted(steps)
    assert not list(case.folder.path.rglob(f"{TEMPORARY}*"))


@of_the_trainer
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_after_the_step(
    case: Case,
    whole: Case,
    signum: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """An inherited handler does not matter; a background job of a script inherits an ignored
    SIGINT.
    """
    handler = signal.SIG_IGN if signum == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(signum, handler)
    request.addfinalizer(lambda: signal.signal(signum, before))
    at_step(monkeypatch, case.kind, 6, lambda _: signal.raise_signal(signum))
    outcome = case.train()
    assert (outcome.step, outcome.signal) == (7, signum)
    assert signal.getsignal(signum) == handler, "as it was before"
    assert case.folder.saved()[0].stem == "step-000000007"
    monkeypatch.undo()
    assert case.train(resume=True).signal is None
    assert same(case.state(), whole.state())


@of_the_trainer
def test_a_signal_that_nohup_ignores_is_ignored(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, case.kind, 1, lambda _: signal.raise_signal(signal.SIGHUP))
        assert case.train(max_steps=3).signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


@of_the_trainer
def test_a_terminal_that_is_closed_ends_no_training(
    case: Case, whole: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Mock(side_effect=OSError(errno.EIO, "closed"))
    monkeypatch.setattr(sys, "stdout", Mock(isatty=lambda: False, write=write))
    case.train(say=say)
    assert same(case.state(), whole.state())


@of_the_trainer
def test_a_signal_in_the_last_evaluation_is_told(case: Case) -> None:
    outcome = case.train(
        callbacks=(lambda *_: signal.raise_signal(signal.SIGTERM),), evaluate_every=100
    )
    assert (outcome.step, outcome.signal) == (12, signal.SIGTERM)


def test_an_evaluation_that_fails_loses_no_step(
    case: Case, whole: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EACCES, "a picture")

    with input_error(r"step 4 could not be evaluated \(Permission.*step-000000004.*--resume"):
        case.train(callbacks=(fails,))
    assert [path.stem for path in case.folder.saved()] == ["step-000000004", "step-000000003"]
    monkeypatch.setattr(case.kind, "evaluate", fails)
    with pytest.raises(InputError):
        case.train(resume=True)
    monkeypatch.undo()
    drawn = list[int]()
    case.train(resume=True, callbacks=(lambda _, records, __: drawn.append(records[-1]["step"]),))
    assert drawn == [4, 8, 12]
    assert same(case.state(), whole.state())
    assert case.records("evaluation") == whole.records("evaluation")


@pytest.mark.parametrize("where", ["loss", "gradient", "weight"])
def test_what_is_not_finite_stops_before_the_update(
    case: Case, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    take_gradient = TrainState.take_gradient

    def keep(state: TrainState) -> None:
        seen.append({name: tensor.clone() for name, tensor in state.tensors().items()})

    def spoiled(self: TrainState, losses: dict[str, Tensor], of: str = "model") -> dict[str, float]:
        if self.step == 7 and where == "loss":
            losses = {name: tensor * math.inf for name, tensor in losses.items()}
        if self.step == 7 and where == "gradient":
            next(self.model.parameters()).register_hook(lambda gradient: gradient * math.nan)
        try:
            return take_gradient(self, losses, of)
        finally:
            if self.step == 7:
                keep(self)

    def spoil(state: TrainState) -> None:
        if where == "weight":
            next(state.model.parameters()).data.fill_(math.nan)
        keep(state)

    monkeypatch.setattr(TrainState, "take_gradient", spoiled)
    at_step(monkeypatch, case.kind, 7, spoil)
    with pytest.raises(NonFiniteError, match=r"step 7: .*last good checkpoint is .*step-000000006"):
        case.train()
    trained = [name for name in seen[0] if "codebooks" not in name]
    assert all(
        torch.equal(seen[0][name].nan_to_num(), seen[-1][name].nan_to_num()) for name in trained
    )
    kept = storage.read(case.folder.saved()[0])[0]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())


@pytest.mark.parametrize("full", ["step-000000009", "model"])
def test_a_full_disk(case: Case, whole: Case, full: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = storage.write

    def write(path: Path, tensors: object, meta: object) -> None:
        if path.stem == full:
            raise OSError(errno.ENOSPC, "full")
        original(path, tensors, meta)

    monkeypatch.setattr(storage, "write", write)
    kept = "step-000000008" if full != "model" else "step-00000000[34]"
    with input_error(rf"could not be saved \(No space left.*{kept}.*--resume"):
        case.train()
    monkeypatch.undo()
    case.train(resume=True)
    assert same(case.state(), whole.state())


@of_the_trainer
def test_a_full_disk_while_it_is_drawn_or_logged(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        with explain_write_errors("x.png"):
            raise OSError(errno.ENOSPC, "full")

    told = (
        r"step 4 could not be {} \(.*full.*step-000000004.*: make room and continue with --resume"
    )
    with input_error(told.format("evaluated")):
        case.train(callbacks=(fails,))
    monkeypatch.setattr("hrvqvae.training.loggers.write_atomic", fails)
    with input_error(told.format("logged")):
        case.train(resume=True)


@of_the_trainer
def test_a_finished_run_stays_as_it_is(case: Case) -> None:
    case.train(log_every=5)
    files = {path: path.stat().st_mtime_ns for path in case.folder.path.rglob("*.safetensors")}
    records = case.records()
    case.train(resume=True, log_every=5)
    with input_error(r"holds a run already: .*--resume"):
        case.train()
    assert {
        path: path.stat().st_mtime_ns for path in case.folder.path.rglob("*.safetensors")
    } == files
    assert case.records() == records
    for optimizer in {"adam", "muon"} - {
        case.config().training.optimizer
    }:  # as if config.yaml had been edited
        with pytest.raises(
            DamagedFileError, match="the checkpoint does not fit the run's configuration"
        ):
            case.train(resume=True, optimizer=optimizer)
    shutil.rmtree(case.folder.checkpoints)
    model = case.folder.model.read_bytes()
    log = case.folder.metrics.read_bytes()
    with input_error("no checkpoint to go on from.*--init-from"):
        case.train(resume=True, max_steps=4)
    assert (case.folder.model.read_bytes(), case.folder.metrics.read_bytes()) == (model, log)


@of_the_trainer
def test_a_rate_that_rises_again_is_told(case: Case) -> None:
    told = list[bool]()
    for steps in (2, 5, 5):
        said = list[str]()
        case.train(resume=steps > 2, max_steps=steps, schedule="cosine", say=said.append)
        told.append(any("had come down to 0" in line for line in said))
    assert told == [False, True, False]


@of_the_trainer
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "header"])
def test_a_damaged_checkpoint_is_passed_over(case: Case, damage: str) -> None:
    said = list[str]()
    case.train(max_steps=8, schedule="constant")
    newest, older = case.folder.saved()
    content = bytearray(newest.read_bytes())
    content[{"flip": -100, "header": 10}.get(damage, -1)] ^= 255
    newest.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    case.train(resume=True, schedule="constant", say=said.append)
    assert f"{newest.name} is damaged" in said[0]
    assert older.name in said[1]
    assert len(case.folder.saved()) == 2
    assert all(storage.read(path) for path in case.folder.saved())
    for path in case.folder.saved():
        path.write_bytes(b"")
    with pytest.raises(DamagedFileError, match=r"every checkpoint in .* is damaged"):
        case.train(resume=True)
    assert len(case.folder.saved()) == 2, "nothing is renamed or lost"


@pytest.mark.parametrize("write", [1, 2])
def test_a_kill_before_the_model_file(
    case: Case, whole: Case, write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run brings the model to the step of the checkpoint."""
    original = storage.write
    last = [0]

    def mortal(path: Path, tensors: dict[str, Tensor], meta: dict[str, object]) -> None:
        last[0] += meta["step"] == 12
        if last[0] == write and meta["step"] == 12:
            raise Killed
        original(path, tensors, meta)

    monkeypatch.setattr(storage, "write", mortal)
    with pytest.raises(Killed):
        case.train()
    monkeypatch.undo()
    case.train(resume=True)
    assert same(case.state(), whole.state())
    assert case.records("evaluation") == whole.records("evaluation")


@of_the_trainer
def test_another_process_that_trains_there_is_named(case: Case) -> None:
    told = r"in use by another process \(pid \d+\)"
    with in_another_process(case.folder.path), pytest.raises(InUseError, match=told):
        case.train()
    assert not case.folder.begun()


def test_it_begins_with_the_weights_of_another_run(case: Case, other: Case, whole: Case) -> None:
    """With a tiny learning rate, a step leaves the weights as they were copied."""
    source = whole.path
    said = list[str]()
    case.train(init_from=source, max_steps=1, learning_rate=1e-12, say=said.append)
    assert any(line.startswith("beginning with") and str(source) in line for line in said)
    first, second = (storage.read(each.folder.model)[0] for each in (whole, case))
    for name in first:
        if name.rsplit(".", 1)[-1] not in ("codewords", "count", "total"):  # which averages lead
            torch.testing.assert_close(second[name], first[name], msg=name, atol=1e-5, rtol=1e-4)
    shutil.copytree(source, other.path.parent / "gone")
    other.train(init_from=other.path.parent / "gone", max_steps=3)
    shutil.rmtree(other.path.parent / "gone")
    assert other.train(init_from=other.path.parent / "gone", resume=True, max_steps=5).step == 5
    shutil.rmtree(other.folder.path)
    with input_error("there is no such run folder"):
        other.train(init_from=other.path.parent / "gone")
    narrow = {
        "autoencoder": "model",
        "prior": "prior.network",
        "progressive": "progressive.network",
    }[case.name]
    config = override(other.config(init_from=source), {f"{narrow}.hidden_units": "4"})
    with input_error(r"does not fit: .* there, .* here"):
        other.train(config=config)
    assert not other.folder.begun()


@of_the_trainer
def test_a_budget_ends_and_names_its_limit(case: Case) -> None:
    """An epoch has 6 steps; more of any limit goes on."""
    assert case.train(max_steps=0, epochs=1).limit == "1 epoch"
    said = list[str]()
    case.train(resume=True, max_steps=0, epochs=1, say=said.append)
    assert any("budget is spent, 1 epoch in all" in line for line in said)
    assert case.train(resume=True, max_steps=8).limit == "8 steps"
    outcome = case.train(resume=True, max_steps=0, max_minutes=3 / 60)
    assert outcome.limit == "0.05 minutes"
    assert outcome.step > 8
    assert outcome.seconds >= 3
    assert outcome.peak_bytes > 10**7


@of_the_trainer
def test_a_run_whose_time_ends_in_an_evaluation_is_finished(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProcessSync, "sync", lambda _: 30.0)  # a step, and then its evaluation
    for resume in (False, True):
        outcome = case.train(resume=resume, max_steps=0, epochs=0, max_minutes=1, evaluate_every=1)
        assert outcome.step == 1
