"""Loggers get the records of metrics.jsonl, and are nothing that a training needs."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.compat.proto.event_pb2 import Event
from wandb.proto.wandb_internal_pb2 import Record

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import Config
from hrvqvae.config.registry import LOGGERS, Logger
from hrvqvae.training.loggers import require, values
from hrvqvae.utils.errors import InputError
from tests.cli.helpers import refused, write_file
from tests.conftest import with_training
from tests.trained_run import train_autoencoder


def run_to(config: Config, folder: Path, resume: bool = False) -> None:
    train_autoencoder(config, RunFolder(folder), resume=resume, say=lambda _: None)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def expected(folder: Path) -> dict[tuple[str, int], float]:
    """(name, step) -> value of every number in metrics.jsonl."""
    return {(name, one["step"]): value for one in records(folder) for name, value in values(one).items()}


def shown(folder: Path) -> dict[tuple[str, int], float]:
    """The same of TensorBoard's event files, read byte by byte in their order.

    A record is its length (8 bytes), a checksum of that (4), an event, and a checksum of that (4). What a session start
    with a step says is that events from that step on, written before, no longer count.
    """
    found: dict[tuple[str, int], float] = {}
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[12 + length + 4 :]
            if event.HasField("session_log"):
                found = {key: value for key, value in found.items() if key[1] < event.step}
            found |= {(one.tag, event.step): one.simple_value for one in event.summary.value}
    return found


def test_tensorboard_shows_what_the_log_holds_after_a_resumption_too(tiny: Config, tmp_path: Path) -> None:
    config = with_training(tiny, loggers="tensorboard", max_steps=6, log_every=2, checkpoint_every=100)
    run_to(config, tmp_path)
    assert shown(tmp_path) == pytest.approx(expected(tmp_path), rel=1e-6)
    assert ("evaluation/usage/level-2", 6) in shown(tmp_path)
    run_to(with_training(config, max_steps=8), tmp_path, resume=True)
    assert shown(tmp_path) == pytest.approx(expected(tmp_path), rel=1e-6)
    assert ("train/loss", 8) in shown(tmp_path)


def test_what_a_system_can_not_measure_is_left_out() -> None:
    """A prefix that VQ-VAE-2 does not decode, and the similarity of images below 11 pixels."""
    record = {"kind": "evaluation", "step": 1, "mse": 0.5, "ssim": None, "level_mse": [None, 0.5]}
    assert values(record) == {"evaluation/mse": 0.5, "evaluation/level_mse/level-2": 0.5}


class Door:
    """A proxy that lets nobody through and counts who knocks."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address, self.knocks = f"http://127.0.0.1:{self._socket.getsockname()[1]}", 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                self._socket.accept()[0].close()
                self.knocks += 1

    def close(self) -> None:
        self._socket.close()


def logged(path: Path) -> list[Record]:
    """The records of a run's file of Weights & Biases: blocks of 32 KiB of pieces, as LevelDB's log has them."""
    content, found, pieces = path.read_bytes(), list[Record](), b""
    assert content[:4] == b":W&B"
    place = 7
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        pieces += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole one, or the last piece of one
            found.append(Record.FromString(pieces))
            pieces = b""
    return found


def test_weights_and_biases_has_what_the_log_holds_in_one_run_and_asks_no_network(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = Door()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, door.address)
        monkeypatch.setenv(name.lower(), door.address)
    for name in ("NO_PROXY", "no_proxy", "WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = with_training(tiny, loggers="wandb", max_steps=6, log_every=2, checkpoint_every=100)
    try:
        run_to(config, tmp_path / "run")
        run_to(with_training(config, max_steps=8), tmp_path / "run", resume=True)
    finally:
        wandb.teardown()
        door.close()
    assert door.knocks == 0
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    everything = [record for path in files for record in logged(path)]
    runs = [record.run for record in everything if record.WhichOneof("record_type") == "run"]
    assert len({run.run_id for run in runs}) == 1, "both are parts of one run"
    assert {(run.project, run.display_name) for run in runs} == {("hrvqvae", "run")}
    about = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert (about["training"]["max_steps"], about["model"]["system"]) == (6, "hrvqvae")
    assert about["data"]["root"] is None, "paths stay here"
    found = dict[tuple[str, int], float]()
    for record in everything:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found |= {(key, record.history.step.num): value for key, value in items.items() if not key.startswith("_")}
    assert found == expected(tmp_path / "run")


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self, run: Path, first_step: int) -> None:
        self.path, self.first_step, self.got, self.closed = run, first_step, list[Mapping[str, Any]](), False
        SINKS.append(self)

    def write(self, record: Mapping[str, Any]) -> None:
        self.got.append(dict(record))

    def close(self) -> None:
        self.closed = True


class Failing(Kept):
    """A sink whose disk is full."""

    def write(self, record: Mapping[str, Any]) -> None:
        raise OSError(28, "No space left on device")


SINKS: list[Kept] = []


@pytest.fixture
def another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loggers "kept" and "failing", as another package registers them."""
    SINKS.clear()
    for sink in (Kept, Failing):
        logger = Logger(name=sink.__name__.lower(), sink=f"{__name__}:{sink.__name__}", needs="json")
        monkeypatch.setitem(LOGGERS._loaded, logger.name, logger)


@pytest.mark.usefixtures("another")
def test_a_sink_gets_every_record_once(tiny: Config, tmp_path: Path) -> None:
    config = with_training(tiny, loggers="kept", max_steps=4, log_every=2, checkpoint_every=100)
    run_to(config, tmp_path)
    run_to(with_training(config, max_steps=6), tmp_path, resume=True)
    first, second = SINKS
    assert [*first.got, *second.got] == records(tmp_path)
    assert (first.path, first.first_step, second.first_step) == (tmp_path, 0, 4)
    assert first.closed
    assert second.closed


@pytest.mark.usefixtures("another")
def test_sinks_are_closed_where_one_fails(tiny: Config, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        run_to(with_training(tiny, loggers="kept, failing", max_steps=4, log_every=2), tmp_path)
    assert [sink.closed for sink in SINKS] == [True, True]


def test_names_and_packages_are_asked_for_before_anything_is_written(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"unknown logger 'tensorbord': did you mean tensorboard"):
        require("tensorbord")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    path = write_file(with_training(tiny, loggers="tensorboard"), tmp_path / "tiny.yaml")
    said = refused(["train", path, "--out", tmp_path / "run"], capsys)
    assert said == "hrvqvae: this needs tensorboard: pip install 'hrvqvae[tensorboard]'\n"
    assert not (tmp_path / "run" / "config.yaml").exists()
