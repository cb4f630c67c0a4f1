"""Loggers receive the records of metrics.jsonl."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hrvqvae.training.loggers import MetricsLog, read_records
from tests.conftest import approx, with_training
from tests.trained_run import train_autoencoder


@pytest.fixture
def short(tiny):
    return with_training(tiny, max_steps=6, log_every=2, checkpoint_every=100)


def expected(folder):
    values = {}
    for record in read_records(folder / "metrics.jsonl"):
        for name, value in record.items():
            titles = {name: value}
            if isinstance(value, list):
                titles = {f"{name}/level-{level}": entry for level, entry in enumerate(value, 1)}
            for title, entry in titles.items():
                if name not in ("kind", "step") and entry is not None:
                    values[f"{record['kind']}/{title}", record["step"]] = entry
    return values


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


def test_damaged_records_are_dropped(tmp_path):
    good = b'{"kind": "train", "step": 1}\n'
    (tmp_path / "x.jsonl").write_bytes(b"\xff\n" + good + good[:9])
    assert read_records(tmp_path / "x.jsonl") == [{"kind": "train", "step": 1}]
    # by a coarse clock
    log = MetricsLog(tmp_path / "y.jsonl", 0)
    assert log.write_means(1, [{"loss": 2.0, "step_seconds": 0.0}], 16)["loss"] == 2
