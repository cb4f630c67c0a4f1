"""Loggers receive the records of metrics.jsonl."""

import sys
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hrvqvae.config import Config
from hrvqvae.config.registry import LOGGERS, Logger
from hrvqvae.training.loggers import flatten_record, read_records, require_packages
from hrvqvae.utils.errors import InputError
from tests.conftest import refused, with_training, write_file
from tests.trained_run import train_autoencoder


def expected(folder: Path) -> dict[tuple[str, int], float]:
    """The values in metrics.jsonl by (name, step)."""
    records = read_records(folder / "metrics.jsonl")
    return {(name, record["step"]): value for record in records for name, value in flatten_record(record).items()}


def shown(folder: Path) -> dict[tuple[str, int], float]:
    """The values in TensorBoard's event files by (name, step)."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}


def test_tensorboard_shows_what_the_log_holds_after_a_resumption_too(tiny: Config, tmp_path: Path) -> None:
    config = with_training(tiny, loggers="tensorboard", max_steps=6, log_every=2, checkpoint_every=100)
    train_autoencoder(config, tmp_path)
    assert shown(tmp_path) == pytest.approx(expected(tmp_path), rel=1e-6)
    assert ("evaluation/usage/level-2", 6) in shown(tmp_path)
    train_autoencoder(with_training(config, max_steps=8), tmp_path, resume=True)
    assert shown(tmp_path) == pytest.approx(expected(tmp_path), rel=1e-6)
    assert ("train/loss", 8) in shown(tmp_path)


def test_what_a_system_can_not_measure_is_left_out() -> None:
    record = {"kind": "evaluation", "step": 1, "mse": 0.5, "ssim": None, "level_mse": [None, 0.5]}
    assert flatten_record(record) == {"evaluation/mse": 0.5, "evaluation/level_mse/level-2": 0.5}


def test_damaged_records_are_dropped(tmp_path: Path) -> None:
    good = b'{"kind": "train", "step": 1}\n'
    (tmp_path / "x.jsonl").write_bytes(
        b"\xff\n[1]\n" + b"[" * 2000 + b'\n{"kind": "train", "step": "1"}\n' + good + good[:9]
    )
    assert read_records(tmp_path / "x.jsonl") == [{"kind": "train", "step": 1}]


def test_weights_and_biases_has_what_the_log_holds_in_one_run(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, logged = list[dict[str, Any]](), list[tuple[tuple[str, int], float]]()

    class Run:
        def log(self, data: dict[str, float], step: int) -> None:
            logged.extend(((name, step), value) for name, value in data.items())

        def finish(self) -> None:
            begun[-1]["finished"] = True

    def init(**options: Any) -> Run:
        begun.append(signature(usual).bind(**options).arguments)
        return Run()

    usual = wandb.init
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    config = with_training(tiny, loggers="wandb", max_steps=6, log_every=2, checkpoint_every=100)
    train_autoencoder(config, tmp_path / "run")
    train_autoencoder(with_training(config, max_steps=8), tmp_path / "run", resume=True)
    assert logged == [*expected(tmp_path / "run").items()], "each once"
    first, second = begun
    assert first["id"] == second["id"], "both are parts of one run"
    about = {"project": "hrvqvae", "name": "run", "resume": "allow", "finished": True}
    assert all(options | about == options for options in begun)
    assert (first["config"]["training"]["max_steps"], first["config"]["model"]["system"]) == (6, "hrvqvae")
    assert first["config"]["data"]["root"] is None, "paths stay here"


class Full:
    closed = 0

    def __init__(self, run: Path, first_step: int) -> None:
        assert (run.is_dir(), first_step) == (True, 0)

    def write(self, record: Mapping[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        Full.closed += 1


def test_sinks_are_closed_where_one_fails(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGERS._entries, "full", Logger(name="full", sink=f"{__name__}:Full", needs="json"))
    with pytest.raises(InputError, match="step 2 could not be logged .No space left"):
        train_autoencoder(with_training(tiny, loggers="full, full", max_steps=4, log_every=2), tmp_path)
    assert Full.closed == 2


def test_names_and_packages_are_asked_for_before_anything_is_written(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"unknown logger 'tensorbord': did you mean tensorboard"):
        require_packages("tensorbord")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    path = write_file(with_training(tiny, loggers="tensorboard"), tmp_path / "tiny.yaml")
    said = refused(["train", path, "--out", tmp_path / "run"])
    assert said == "hrvqvae: this needs tensorboard: pip install 'hrvqvae[tensorboard]'\n"
    assert not (tmp_path / "run" / "config.yaml").exists()
