"""Loggers receive the records of metrics.jsonl."""

import sys
from unittest.mock import Mock, create_autospec

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hrvqvae.config.entries import Logger
from hrvqvae.config.registry import LOGGERS
from hrvqvae.training.loggers import (
    MetricsLog,
    WandbSink,
    find_loggers,
    flatten_record,
    read_records,
)
from tests.conftest import approx, check_refusals, input_error, with_training, write_file
from tests.trained_run import train_autoencoder


@pytest.fixture
def short(tiny):
    return with_training(tiny, max_steps=6, log_every=2, checkpoint_every=100)


def expected(folder):
    return {
        (name, record["step"]): value
        for record in read_records(folder / "metrics.jsonl")
        for name, value in flatten_record(record).items()
    }


def shown(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        (tag, event.step): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }


def test_tensorboard_shows_what_the_log_holds_after_a_resumption_too(short, tmp_path):
    config = with_training(short, loggers="tensorboard")
    for steps, name in ((6, "evaluation/usage/level-2"), (8, "train/loss")):
        train_autoencoder(with_training(config, max_steps=steps), tmp_path, resume=steps > 6)
        assert shown(tmp_path) == approx(expected(tmp_path), rel=1e-6)
        assert (name, steps) in shown(tmp_path)


def test_damaged_records_are_dropped_and_what_was_not_measured_is_left_out(tmp_path):
    record = {"kind": "evaluation", "step": 1, "mse": 0.5, "ssim": None, "level_mse": [None, 0.5]}
    assert flatten_record(record) == {"evaluation/mse": 0.5, "evaluation/level_mse/level-2": 0.5}
    good = b'{"kind": "train", "step": 1}\n'
    bad = b"\xff\n[1]\n" + b"[" * 2000 + b'\n{"kind": "train", "step": "1"}\n'
    (tmp_path / "x.jsonl").write_bytes(bad + good + good[:9])
    assert read_records(tmp_path / "x.jsonl") == [{"kind": "train", "step": 1}]
    # by a coarse clock
    log = MetricsLog(tmp_path / "y.jsonl", 0, window=[{"loss": 2.0, "step_seconds": 0.0}])
    assert log.write_means(1, 16)["loss"] == 2


def test_weights_and_biases_has_one_run(short, tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "init", init := create_autospec(wandb.init))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    run = tmp_path / "run"
    for steps in (6, 8):
        config = with_training(short, loggers="wandb", max_steps=steps)
        train_autoencoder(config, run, resume=steps > 6)
    assert [
        ((name, call.kwargs["step"]), value)
        for call in init.return_value.log.call_args_list
        for name, value in call.args[0].items()
    ] == [*expected(run).items()]
    assert init.return_value.finish.call_count == 2
    first, second = (call.kwargs for call in init.call_args_list)
    assert first["id"] == second["id"]  # both are parts of one run
    WandbSink(run, 0)
    assert init.call_args.kwargs["id"] != first["id"]
    assert first.items() >= {"project": "hrvqvae", "name": "run", "resume": "allow"}.items()
    assert first["config"]["training"]["max_steps"] == 6
    assert first["config"]["data"]["root"] is None  # paths stay here


FULL = Mock()
FULL.return_value.write.side_effect = OSError(28, "No space left on device")


def test_sinks_are_closed_where_one_fails(short, tmp_path, monkeypatch):
    full = Logger(name="full", sink=f"{__name__}:FULL", needs="json")
    monkeypatch.setitem(LOGGERS._entries, "full", full)
    with input_error("step 2 could not be logged .No space left"):
        train_autoencoder(with_training(short, loggers="full, full"), tmp_path)
    FULL.assert_called_with(tmp_path, 0)
    assert FULL.return_value.close.call_count == 2
    monkeypatch.setattr(FULL, "side_effect", ValueError("no key\nconfigured"))
    with input_error("the logger full can't begin: no key configured"):
        train_autoencoder(with_training(short, loggers="full"), tmp_path / "other")


def test_packages_are_asked_for_first(tiny, tmp_path, monkeypatch):
    with input_error(r"unknown logger 'tensorbord': did you mean tensorboard"):
        find_loggers("tensorbord")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    path = write_file(with_training(tiny, loggers="tensorboard"), tmp_path / "tiny.yaml")
    told = "this needs tensorboard: pip install 'hrvqvae[tensorboard]'"
    check_refusals(f"train {path} --out {tmp_path}/run | {told}")
    assert not (tmp_path / "run" / "config.yaml").exists()
