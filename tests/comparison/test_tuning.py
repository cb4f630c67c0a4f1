"""The search for settings: what is tried next, stopped, shared and diverged searches, and what a
comparison takes.
"""

import json
import signal
from contextlib import ExitStack
from math import log2
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import tuned
from benchmarks.tuning import LADDERS, Search, Settings, open_trials
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.comparison.report import compare_pairs, welch
from hrvqvae.comparison.systems import Comparison, codewords_searched
from hrvqvae.config import Config
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.utils.errors import InputError, NonFiniteError
from tests.kills import in_another_process

RATE, DECAY, BETA = LADDERS
START: Settings = (("training.optimizer", "adam"), (RATE, "0.003"), (DECAY, "0.99"), (BETA, "0.25"))
TUNE = [
    "mnist",
    "--systems",
    "fsq,wide=vqvae",
    "--wide.model.quantizer.codewords",
    "5",
    "--wide.training.optimizer",
    "adam",
    "--max-steps",
]


def compare_tuned(arguments: list[str]) -> int:
    try:
        tuned.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def refused(arguments: list[str]) -> str:
    with pytest.raises(InputError) as error:
        tuned.main(arguments)
    return str(error.value)


def searched(start: Settings, error: Any, most: int = 99) -> dict[Settings, float]:
    tried: dict[Settings, float] = {}
    while wave := open_trials(start, tried, most):
        assert not tried.keys() & set(wave)
        tried |= {trial: error(dict(trial)) for trial in wave}
    return tried


@settings(deadline=None)
@given(seed=st.integers(0, 10**9))
def test_a_search_ends_at_the_best_of_each_line(seed: int) -> None:
    def error(fields: dict[str, str]) -> int:
        return hash((seed, *fields.values()))

    tried = searched(START, error)
    best = dict(min(tried, key=tried.__getitem__))
    assert len(tried) <= 2 * 6 + 5 + 5
    assert list(searched(START, error, 9)) == list(tried)[:9]
    for name, ladder in LADDERS.items():
        place = ladder.index(best[name])
        line = [{**best, name: value} for value in ladder[max(0, place - 1) : place + 2]]
        neighbours = [fields for fields in line if tuple(fields.items()) in tried]
        assert min(neighbours, key=error) == best
        assert name != BETA or neighbours == line, "the neighbours on the last ladder were tried"
    for optimizer in ("adam", "muon"):
        rates = {
            dict(trial)[RATE] for trial in tried if dict(trial)["training.optimizer"] == optimizer
        }
        assert rates >= {"0.001", "0.003", "0.01"}


def test_a_search_goes_on_beyond_an_end() -> None:
    tried = searched(
        START, lambda fields: -float(fields[RATE]) - float(fields[DECAY]) + float(fields[BETA])
    )
    assert dict(min(tried, key=tried.__getitem__)) == dict(START) | {
        RATE: "0.1",
        DECAY: "0.995",
        BETA: "0.06",
    }
    only = searched(
        ((RATE, "0.003"),),
        lambda fields: float("inf") if fields[RATE] == "0.01" else float(fields[RATE]),
    )
    assert [dict(trial)[RATE] for trial in only] == ["0.001", "0.003", "0.01", "0.0003"]


@pytest.mark.usefixtures("systems")
def test_a_stopped_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = AutoencoderTask.step
    steps = [0]

    def step(self: Any, state: Any, batch: Any) -> Any:
        steps[0] += 1
        if (self.training.optimizer, self.training.learning_rate) == ("muon", 0.003):
            raise NonFiniteError("diverged")
        if steps[0] % 11 == 0 and self.run.path.is_relative_to(tmp_path / "tuned"):
            signal.raise_signal(signal.SIGTERM)
        return original(self, state, batch)

    monkeypatch.setattr(AutoencoderTask, "step", step)
    folder = tmp_path / "tuned"
    stops = 0
    while compare_tuned([*TUNE, "3", "--tune", "5", "--out", str(folder)]) == 128 + signal.SIGTERM:
        stops += 1
        assert not (folder / "results.md").exists()
    assert stops > 2
    tried = [
        json.loads(path.read_text()) for path in sorted((folder / "tuning" / "rows").glob("*.json"))
    ]
    assert [sum(row["system"] == name for row in tried) for name in ("wide", "fsq")] == [5, 5]
    diverged = [row for row in tried if row["validation_mse"] is None]
    assert [(row["system"], row["optimizer"], row["learning_rate"]) for row in diverged] == [
        ("fsq", "muon", "0.003")
    ]

    def config_of(folder: str, system: str) -> Config:
        return RunFolder(tmp_path / folder / "runs" / f"{system}-0").read_config()

    for system in ("wide", "fsq"):
        measured = [row for row in tried if row["system"] == system and row not in diverged]
        best = min(measured, key=lambda row: row["validation_mse"])
        config = config_of("tuned", system)
        assert config.training.optimizer == best.get("optimizer", "adam")
        assert str(config.training.learning_rate) == best["learning_rate"]
        assert config.data.validation == 0
    other = [*TUNE, "4", "--tuned-in", str(folder), "--out", str(tmp_path / "other")]
    assert compare_tuned([*other, "--prior.training.batch_size", "5"]) == 0
    for system in ("wide", "fsq"):
        here = config_of("tuned", system)
        there = config_of("other", system)
        assert (here.training.learning_rate, here.model) == (
            there.training.learning_rate,
            there.model,
        )
    assert "searched with fields" in refused([*other, "--training.batch_size", "5"])
    other[2] = "fsq,vqvae,wide=vqvae"
    assert "the search for vqvae has not ended" in refused([*other, "--out", str(tmp_path / "new")])
    other[2:5] = ["wide=vqvae", "--wide.model.quantizer.codewords", "6"]
    assert "trials of wide are of another configuration" in refused(
        [*other, "--out", str(tmp_path / "new")]
    )


@pytest.mark.usefixtures("systems")
def test_two_processes_share_a_search(tmp_path: Path) -> None:
    """A trial that another process holds is waited for, and made here where it is given up."""
    command = [
        "mnist",
        "--systems",
        "fsq",
        "--max-steps",
        "2",
        "--tune",
        "6",
        "--out",
        str(tmp_path),
    ]
    original = AutoencoderTask.step
    made = list[str]()

    def step(self: Any, state: Any, batch: Any) -> Any:
        made.append(self.run.path.name)
        if self.run.path.name == "fsq-muon-0.01":
            held.close()
        return original(self, state, batch)

    with ExitStack() as held, patch.object(AutoencoderTask, "step", step):
        held.enter_context(in_another_process(tmp_path / "tuning" / "runs" / "fsq-adam-0.003"))
        assert compare_tuned(command) == 0
    trials = list(dict.fromkeys(name for name in made if name != "fsq-0"))
    assert len(trials) == 6
    assert trials[-1] == "fsq-adam-0.003"


def test_variants_have_names_and_fields_of_their_own() -> None:
    fields = {
        "wide.model.quantizer.codewords": "7",
        "wide.training.learning_rate": "0.5",
        "training.batch_size": "3",
    }
    common: dict[str, Any] = {"dataset": "mnist", "variants": {"wide": "vqvae"}, "max_steps": 1}
    both = Comparison(systems=("vqvae", "wide"), fields=fields, **common)
    plain, wide = (both.config(name, 0) for name in both.systems)
    assert (plain.model.num_symbols, wide.model.num_symbols) == ((64,), (7,))
    assert (plain.training.learning_rate, wide.training.learning_rate) == (0.003, 0.5)
    assert [case.labels["system"] for case in both.cases()] == ["vqvae", "wide"]
    assert (plain.data, plain.training.batch_size, plain.training.seed) == (
        wide.data,
        3,
        wide.training.seed,
    )
    for changed, message in (
        ({"variants": {"wide": "vqae"}}, "--systems names vqae"),
        ({"variants": {"wide": "vqvae", "fsq": "vqvae"}}, "names a variant 'fsq'"),
        ({"fields": {"wide.training.max_steps": "3"}}, "--max-steps"),
        ({"fields": {"wide.data.size": "3"}}, "model or training"),
    ):
        with pytest.raises(InputError, match=message):
            Comparison(**{**common, "systems": ("wide",), **changed})


def test_p_values() -> None:
    assert welch([1, 2, 3, 4, 5], [2, 4, 6, 8, 10]) == pytest.approx(0.1075312, abs=1e-6)
    assert welch([3.0, 3.1, 2.9], [5.0, 5.1, 4.9]) == pytest.approx(1.64831e-5, rel=1e-4)
    assert welch([1.0, 1.0], [1.0, 1.0]) == 1
    assert welch([1.0, 1.0], [2.0, 2.0]) == 0
    values = {"a": (1, 2, 3, 4, 5), "b": (2, 4, 6, 8, 10), "c": (1, 2, 3, 4, 5), "d": (9,)}
    table = compare_pairs(
        [{"system": name, "mse": value} for name, errors in values.items() for value in errors]
    )
    assert table.splitlines()[2:] == [
        "| a | b | 5, 5 | -50.0% | 0.108 | 0.323 |",
        "| b | c | 5, 5 | +100.0% | 0.108 | 0.323 |",
        "| a | c | 5, 5 | +0.0% | 1.000 | 1.000 |",
    ]


def test_variants_of_few_positions_search_rate_and_decay() -> None:
    options = tuned.arguments("cifar10", "lean12,rq3x4096")
    fields = {
        name.removeprefix("--"): value
        for name, value in zip(options[2::2], options[3::2], strict=True)
    }
    variants = dict(pair.split("=") for pair in options[1].split(","))
    comparison = Comparison(
        dataset="cifar10",
        systems=tuple(variants),
        variants=variants,
        max_steps=1,
        fields=fields,
    )
    for name, searched, bits in (("lean12", 360, 36), ("rq3x4096", 12_288, 36)):
        assert [field for field, _ in Search(comparison, 5, name, {}).start] == [RATE, DECAY]
        model = comparison.config(name, 0).model
        assert (codewords_searched(model), sum(map(log2, model.num_symbols))) == (searched, bits)
