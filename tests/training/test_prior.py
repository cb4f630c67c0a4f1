"""Priors trained on the codes of a run: killed, damaged and resumed to the same weights; the best state is kept."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hrvqvae.config import Config, PriorConfig, PriorTrainingConfig
from hrvqvae.errors import DamagedFileError, InputError
from hrvqvae.priors.base import code_loss
from hrvqvae.priors.pixelsnail.config import PixelSNAILConfig
from hrvqvae.runs import codemaps, storage
from hrvqvae.runs.export import export
from hrvqvae.runs.folder import RunFolder, prior_folder
from hrvqvae.runs.loading import has_priors, load_priors, load_with_config
from hrvqvae.stages import resolve_priors, train_autoencoder, train_priors
from hrvqvae.training import loop
from hrvqvae.training.hooks import MetricsLog
from hrvqvae.training.prior import LevelBatch, LevelCodes, PriorStep, held_out_split
from hrvqvae.training.state import TrainState
from tests.conftest import with_training
from tests.runs.other_process import in_another_process

GIVEN = {
    "prior.network.hidden_units": "8", "prior.network.residual_units": "8", "prior.network.residual_blocks": "2",
    "prior.network.attention_layers": "1", "prior.network.attention_heads": "2", "prior.training.batch_size": "16",
    "prior.training.max_steps": "12", "prior.training.precision": "fp32", "prior.training.device": "cpu",
    "prior.training.evaluate_every": "4", "prior.training.checkpoint_every": "3", "prior.training.log_every": "4",
    "prior.training.warmup_steps": "2", "prior.training.polyak_decay": "0.5",
}  # fmt: skip


def silent(_: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Path:
    """A run folder with a trained autoencoder and no prior."""
    from tests.conftest import tiny

    config: Config = tiny.__wrapped__(mnist_root)
    path = tmp_path_factory.mktemp("trained") / "run"
    train_autoencoder(with_training(config, max_steps=60), RunFolder(path), resume=False, say=silent)
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def train_levels(path: Path, level: int | None = None, resume: bool = False, **changes: str) -> None:
    given = GIVEN | {f"prior.{name.replace('__', '.')}": value for name, value in changes.items()}
    train_priors(path, resolve_priors(str(path), level, given, resume=resume), resume=resume, say=silent)


def weights(path: Path, level: int) -> dict[str, Tensor]:
    folder = prior_folder(path, level)
    kept = storage.read(folder.model)[0]
    return storage.read(folder.saved()[0])[0] | {f"file.{name}": tensor for name, tensor in kept.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def records(path: Path, level: int, kind: str) -> list[dict[str, float]]:
    lines = prior_folder(path, level).metrics.read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_every_level_learns_and_can_be_loaded(run: Path) -> None:
    train_levels(run, training__max_steps="60", training__learning_rate="0.01", training__evaluate_every="20")
    for level in range(2):
        found = records(run, level, "evaluation")
        assert [record["step"] for record in found] == [20, 40, 60]
        assert found[-1]["bits_per_code"] < np.log2(3) - 0.1
        assert found[0]["bits_per_image"] == pytest.approx(found[0]["bits_per_code"] * 49)
        assert (prior_folder(run, level).pictures / "curves.png").is_file()
    priors = load_priors(run)
    assert [len(prior.level.coarser) for prior in priors.levels] == [0, 1]
    assert priors.classes == tuple("0123456789")
    assert sum(priors.class_counts) == 96
    assert not any(prior.training for prior in priors.levels)


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
    batch = LevelCodes(maps, model, 1).read(held_out)
    with torch.inference_mode():
        nats = float(code_loss(load_priors(run).levels[1], batch.codes, batch.coarser, batch.label))
    assert nats / np.log(2) == pytest.approx(best["bits_per_code"], rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopping_and_resuming_changes_nothing(precision: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "parts")
    common = {"training__precision": precision, "training__schedule": "constant"}
    train_levels(run, 2, **common)
    for steps in ("5", "7", "12"):
        train_levels(tmp_path / "parts", 2, resume=steps != "5", **{**common, "training__max_steps": steps})
    assert same(weights(run, 1), weights(tmp_path / "parts", 1))


class Killed(BaseException):
    """Stands for the end of the process."""


def test_twenty_random_kills(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, tmp_path / "whole")
    train_levels(tmp_path / "whole", 2)
    draw, countdown = random.Random(3), [0]

    def mortal(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **options: object) -> object:
            for moment in ("before", "after"):
                countdown[0] -= 1
                if countdown[0] == 0:
                    raise Killed
                if moment == "before":
                    result = call(*arguments, **options)
            return result

        return wrapped

    for owner, name in (
        (PriorStep, "__call__"), (os, "fsync"), (Path, "replace"), (Path, "unlink"), (MetricsLog, "write"),
        (torch.optim.Adam, "step"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))
    kills = 0
    while kills < 20:
        countdown[0] = draw.randint(1, 40)
        try:
            train_levels(run, 2, resume=True)
        except Killed:
            kills += 1
    countdown[0] = 0
    train_levels(run, 2, resume=True)
    assert same(weights(run, 1), weights(tmp_path / "whole", 1))
    assert records(run, 1, "evaluation") == records(tmp_path / "whole", 1, "evaluation")


def test_codes_are_small_memory_mapped_and_those_of_the_model(run: Path) -> None:
    train_levels(run, 1)
    model, config = load_with_config(run)
    folder, digest = RunFolder(run).codes, storage.digest(RunFolder(run).model)
    maps = codemaps.stored(folder, digest, config, "train")
    assert maps is not None
    assert all(level.dtype == np.uint8 and isinstance(level, np.memmap) for level in maps.levels)
    fresh = codemaps.extract(model, config, "train")
    codes, labels = maps.read(np.arange(96))
    again, expected = fresh.read(np.arange(96))
    assert all(torch.equal(one, other) for one, other in zip(codes, again, strict=True))
    assert torch.equal(labels, expected)
    assert codemaps.stored(folder, "another model", config, "train") is None


@pytest.mark.parametrize("damage", ["cut", "gone", "text"])
def test_damaged_codes_are_made_again(damage: str, run: Path) -> None:
    train_levels(run, 1)
    folder = RunFolder(run).codes
    before = (folder / "train-level-2.npy").read_bytes()
    if damage == "gone":
        (folder / "train-labels.npy").unlink()
    else:
        (folder / "train-level-2.npy").write_bytes(before[:100] if damage == "cut" else b"no array")
    train_levels(run, 2)
    assert (folder / "train-level-2.npy").read_bytes() == before


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


def test_priors_of_another_autoencoder_are_refused(run: Path) -> None:
    train_levels(run)
    tensors, meta = storage.read(RunFolder(run).model)
    name = "decoder.0.bias"
    storage.write(RunFolder(run).model, tensors | {name: tensors[name] + 1}, meta)
    with pytest.raises(InputError, match=r"another state of the autoencoder; delete .*level-1 .*hrvqvae train-prior"):
        load_priors(run)


def test_what_can_not_be_loaded(run: Path) -> None:
    with pytest.raises(InputError, match=r"no prior of level 1; train it: hrvqvae train-prior .* --level 1"):
        load_priors(run)
    train_levels(run)
    path = prior_folder(run, 1).model
    tensors, meta = storage.read(path)
    storage.write(path, tensors, {**meta, "kind": "autoencoder"})
    with pytest.raises(DamagedFileError, match="is not a prior"):
        load_priors(run)
    network = {**meta["config"]["prior"]["network"], "residual_blocks": 3}
    config = {**meta["config"], "prior": {**meta["config"]["prior"], "network": network}}
    storage.write(path, tensors, {**meta, "config": config})
    with pytest.raises(InputError, match=r"level-2/config.yaml describes another model than model.safetensors"):
        load_priors(run)
    prior_folder(run, 1).config.unlink()
    with pytest.raises(DamagedFileError, match="do not fit"):
        load_priors(run)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedFileError, match="is damaged"):
        load_priors(run)


def test_whether_there_are_priors_is_known_without_reading_weights(run: Path) -> None:
    assert not has_priors(run)
    train_levels(run)
    for path in (RunFolder(run).model, *(prior_folder(run, level).model for level in range(2))):
        content = path.read_bytes()
        path.write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])  # a header without any tensor
    assert has_priors(run)
    prior_folder(run, 1).model.unlink()
    assert not has_priors(run)


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


def test_an_exported_run_is_small_knows_no_paths_and_says_the_same(run: Path, tmp_path: Path) -> None:
    train_levels(run)
    files = export(run, tmp_path / "out")
    assert sorted(files) == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in files) < 0.7 * sum(
        path.stat().st_size for path in (RunFolder(run).model, *(prior_folder(run, level).model for level in range(2)))
    )
    assert not any(str(run).encode() in path.read_bytes() for path in files)
    for one, other in zip(load_priors(tmp_path / "out").levels, load_priors(run).levels, strict=True):
        for name, tensor in one.state_dict().items():
            torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match="exists already"):
        export(run, tmp_path / "out")


def test_priors_of_another_autoencoder_are_not_exported(run: Path, tmp_path: Path) -> None:
    train_levels(run)
    tensors, meta = storage.read(RunFolder(run).model)
    storage.write(RunFolder(run).model, tensors | {"decoder.0.bias": tensors["decoder.0.bias"] + 1}, meta)
    with pytest.raises(InputError, match="another state of the autoencoder"):
        export(run, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.name != "run"], "nothing is half written"
    with pytest.raises(InputError, match="holds a prior of another state of the autoencoder; delete that folder"):
        train_levels(run, 1, resume=True, training__max_steps="13")


def test_a_full_disk_leaves_no_export(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_levels(run)
    original = storage.write

    def full(path: Path, tensors: dict[str, Tensor], meta: dict[str, object]) -> None:
        if "level-2" in str(path):
            raise OSError(28, "No space left on device")
        original(path, tensors, meta)

    monkeypatch.setattr(storage, "write", full)
    with pytest.raises(InputError, match="can't be written"):
        export(run, tmp_path / "out")
    monkeypatch.undo()
    assert len(export(run, tmp_path / "out")) == 3


def test_what_was_asked_for_holds_for_levels_that_a_signal_kept_from_beginning(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PriorStep.__call__

    def step(self: PriorStep, state: TrainState, batch: LevelBatch) -> loop.Metrics:
        if state.step == 3:
            signal.raise_signal(signal.SIGINT)
        return original(self, state, batch)

    monkeypatch.setattr(PriorStep, "__call__", step)
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
