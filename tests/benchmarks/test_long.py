"""The long comparison with tiny budgets: its trials, its choice, its depth study, and that it goes
on where it stopped.
"""

import json
import signal
from functools import partial

import pytest

from benchmarks import long
from benchmarks.common import fields
from hrvqvae.training.autoencoder import AutoencoderTask
from tests.conftest import read_json
from tests.kills import stop_at_step

quantizer = partial(fields, "model.quantizer")


def rows(folder):
    return [read_json(path) for path in sorted((folder / "rows").glob("*.json"))]


@pytest.mark.usefixtures("systems")
def test_a_queue_that_stops_and_goes_on(mnist_root, tmp_path, monkeypatch):
    small = fields("data", f"root={mnist_root} size=12 workers=0")
    for name, value in {
        "DATASET": "mnist",
        "STEPS": 2,
        "DEPTH_STEPS": 2,
        "LONGEST_STEPS": 3,
        "SEEDS": 1,
        "COMMON": small | {"training.evaluate_every": "1"},
        "IMAGES": 20,
        "GROUPS": (
            {"vqvae": ("vqvae", "vqvae", {}), "printed": ("hrvqvae", "", {})},
            {"vqvae": ("vqvae", "vqvae", {})},
        ),
        "LONGEST": ("vqvae",),
        "TREES": ("printed",),
        "LEAVES": ("printed", "vqvae"),
        "DEPTH": {"groups2": quantizer("linked=2"), "rq": quantizer("linked=1 beam=1")},
        "SEARCHED_DEPTH": ("groups2", "rq"),
        "WIDE_DEPTH": ("groups2",),
        "SEARCHES": {
            "by group, beam 1": quantizer("beam=1 joint_beam=false"),
            "joint, beam 16": quantizer("beam=4 joint_beam=true"),
            "every leaf of a group": quantizer("beam=64 joint_beam=false"),
        },
    }.items():
        monkeypatch.setattr(long, name, value)
    stop_at_step(monkeypatch, AutoencoderTask, 2)
    words = ["--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        long.main(words)
    assert not rows(tmp_path / "longest")  # stopped in the longest training
    lines = (tmp_path / "depth" / "beams.jsonl").read_text()
    long.main(words)
    assert (tmp_path / "depth" / "beams.jsonl").read_text() == lines  # nothing is made again

    trials = rows(tmp_path / "trials")
    settings = {(row["learning_rate"], row["decay"]) for row in trials}
    assert settings == {("0.003", "0.8"), ("0.0015", "0.8")}
    best = min(trials, key=lambda row: row["validation_mse"])
    (printed, vqvae) = rows(tmp_path)
    assert [step for step, _ in vqvae["test_errors"]] == [1, 2]
    config = (tmp_path / "runs" / "vqvae-0" / "config.yaml").read_text()
    assert f"learning_rate: {best['learning_rate']}" in config
    assert f"decay: {best['decay']}" in config
    assert printed["system"] == "printed"
    assert [row["system"] for row in rows(tmp_path / "depth")] == ["groups2", "rq"]
    assert len(rows(tmp_path / "longest")[0]["test_errors"]) == 3
    assert (tmp_path / "steps.png").is_file()

    # a flat search of all leaves is the search of the only level of VQVAE
    leaves = {}
    for line in (tmp_path / "leaves.jsonl").read_text().splitlines():
        row = json.loads(line)
        leaves[row["system"], row["passes"]] = row["mse"]
    assert len(leaves) == 4
    run = tmp_path / "runs" / "vqvae-0"
    assert leaves["vqvae", 0] == pytest.approx(long.encode_error(run, {})["mse"], rel=1e-4)

    # group after group, the nearest leaf is that of a beam of all leaves
    errors = {}
    for row in map(json.loads, lines.splitlines()):
        errors[row["system"], row["search"], row["coarse_weight"]] = row["mse"]
    assert len(errors) == 2 * 3 + 2 * 2
    for line in (tmp_path / "depth" / "leaves.jsonl").read_text().splitlines():
        row = json.loads(line)
        if (row["system"], row["passes"]) == ("groups2", 0):
            expected = errors["groups2", "every leaf of a group", "0"]
            assert row["mse"] == pytest.approx(expected, rel=1e-4)

    searches = (tmp_path / "beams.jsonl").read_text().splitlines()
    assert {json.loads(line)["search"] for line in searches} == {
        "by group, beam 1",
        "every leaf of a group",
    }
