"""One run, killed, damaged, stopped and resumed: always the weights of the run that nothing happened to."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.config import Config, to_dict
from hrvqvae.data.batches import Batch
from hrvqvae.data.loading import load_images
from hrvqvae.models.build import build
from hrvqvae.models.objective import Metrics
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.loggers import MetricsLog
from hrvqvae.training.optimizers import learning_rate
from hrvqvae.training.state import Budget, TrainState
from hrvqvae.training.trainer import Outcome
from hrvqvae.utils.errors import DamagedFileError, InputError, NonFiniteError
from tests.conftest import with_data, with_quantizer, with_training
from tests.trained_run import train_autoencoder


def silent(_: str) -> None:
    """Say nothing."""


def run_to(config: Config, folder: Path, resume: bool = False) -> Outcome:
    return train_autoencoder(config, RunFolder(folder), resume=resume, say=silent)


def weights(folder: Path) -> dict[str, Tensor]:
    """Everything that the last checkpoint and the model hold."""
    run = RunFolder(folder)
    tensors = storage.read(run.saved()[0])[0]
    return tensors | {f"file.{name}": tensor for name, tensor in storage.read(run.model)[0].items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def undisturbed(tiny: Config, tmp_path: Path) -> dict[str, Tensor]:
    run_to(tiny, tmp_path / "undisturbed")
    return weights(tmp_path / "undisturbed")


@pytest.mark.usefixtures("drawn")
def test_training_lowers_the_loss_and_fills_the_run_folder(tiny: Config, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    outcome = run_to(with_training(tiny, max_steps=150, evaluate_every=50), run.path)
    assert (outcome.step, outcome.signal) == (150, None)
    assert outcome.peak_bytes > 10**7
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    losses = [record["reconstruction"] for record in records if record["kind"] == "train"]
    assert losses[-1] < 0.3 * losses[0]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    assert [record["step"] for record in evaluations] == [50, 100, 150]
    assert evaluations[-1]["mse"] < evaluations[0]["mse"]
    assert run.read_config() == with_training(tiny, max_steps=150, evaluate_every=50)
    assert [path.name for path in run.saved()] == ["step-000000150.safetensors", "step-000000147.safetensors"]
    assert {path.name for path in run.pictures.iterdir()} == {"reconstructions.png", "curves.png", "usage.png"}
    assert load_with_config(run.path)[1] == run.read_config()
    assert not list(run.path.rglob(f"{storage.TEMPORARY}*"))


def test_the_model_is_the_average_of_the_weights(tiny: Config, tmp_path: Path) -> None:
    run_to(with_training(tiny, polyak_decay=0.5), tmp_path / "run")
    tensors = weights(tmp_path / "run")
    for name in ("decoder.0.weight", "quantizer.codebooks.1.codewords"):
        assert torch.equal(tensors[f"file.{name}"], tensors[f"averaged.module.{name}"])
        assert not torch.equal(tensors[f"file.{name}"], tensors[f"model.{name}"])


def test_polyak_averaging_is_the_printed_recursion(tiny: Config) -> None:
    model = build(tiny)
    state = TrainState.start(model, dataclasses.replace(tiny.training, polyak_decay=0.9))
    parameter, expected = next(model.parameters()), None
    for value in (1.0, 2.0, 4.0):
        parameter.data.fill_(value)
        state.averaged.update_parameters(model)
        expected = value if expected is None else 0.9 * expected + 0.1 * value
    torch.testing.assert_close(next(state.averaged.module.parameters())[0, 0, 0, 0], torch.tensor(expected))


@pytest.mark.parametrize(
    ("fields", "seed"), [({}, 0), ({"update": "gradient"}, 1), ({"levels": 3, "codewords": 2}, 2)], ids=str
)
def test_same_seed_same_weights(fields: dict[str, object], seed: int, tiny: Config, tmp_path: Path) -> None:
    config = with_training(with_quantizer(tiny, **fields), seed=seed, max_steps=9, memory_format="channels_last")
    run_to(config, tmp_path / "one")
    run_to(config, tmp_path / "two")
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    run_to(with_training(config, seed=seed + 1), tmp_path / "other")
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "other"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_stopping_and_resuming_changes_nothing(
    precision: str, memory_format: str, update: str, tiny: Config, tmp_path: Path
) -> None:
    config = with_training(with_quantizer(tiny, update=update), precision=precision, memory_format=memory_format)
    config = with_training(config, schedule="constant", max_steps=14)
    run_to(config, tmp_path / "whole")
    run_to(with_training(config, max_steps=5), tmp_path / "parts")
    run_to(with_training(config, max_steps=11), tmp_path / "parts", resume=True)
    run_to(config, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_folder_decoded_by_workers_resumes_as_well(tiny: Config, picture_folder: Path, tmp_path: Path) -> None:
    config = with_data(
        tiny, dataset="pictures", root=str(picture_folder), channels=3, crop="random", flip=True, workers=2
    )
    config = with_training(config, max_steps=8, schedule="constant")
    run_to(config, tmp_path / "whole")
    run_to(with_training(config, max_steps=4), tmp_path / "parts")
    run_to(config, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert multiprocessing.active_children() == [], "the workers have ended"


class Killed(BaseException):
    """Stands for the end of the process, at a place that a real kill could hit."""


def test_twenty_random_kills_in_process(
    tiny: Config, undisturbed: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(11)
    countdown = [0]

    def mortal(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **options: object) -> object:
            countdown[0] -= 1
            if countdown[0] == 0:
                raise Killed
            result = call(*arguments, **options)
            countdown[0] -= 1
            if countdown[0] == 0:
                raise Killed
            return result

        return wrapped

    for owner, name in (
        (AutoencoderTask, "step"), (os, "fsync"), (Path, "replace"), (Path, "unlink"),
        (MetricsLog, "write"), (torch.optim.Adam, "step"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))
    folder, kills = tmp_path / "killed", 0
    while kills < 20:
        countdown[0] = draw.randint(1, 45)
        try:
            run_to(tiny, folder, resume=True)
        except Killed:
            kills += 1
    countdown[0] = 0
    run_to(tiny, folder, resume=True)
    assert same(weights(folder), undisturbed)
    steps = [json.loads(line)["step"] for line in RunFolder(folder).metrics.read_text().splitlines()]
    assert steps == sorted(steps)


def test_twenty_random_kills_of_the_process(tiny: Config, undisturbed: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(tiny)))
    folder = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.killed_runs", tmp_path / "config.yaml", folder, "20", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stderr == ""
    folders = [Path(line) for line in done.stdout.splitlines() if line.startswith("/")]
    assert folders
    for ended in folders:
        assert same(weights(ended), undisturbed)
        assert not list(ended.rglob(f"{storage.TEMPORARY}*"))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "header", "text"])
def test_a_damaged_checkpoint_is_noticed(damage: str, tiny: Config, tmp_path: Path) -> None:
    folder, said = tmp_path / "run", list[str]()
    run_to(with_training(tiny, max_steps=13), folder)
    run = RunFolder(folder)
    newest, older = run.saved()
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[-100] ^= 1
    if damage == "header":
        content[10] ^= 255
    content = {"cut": content[: len(content) // 2], "empty": bytearray(), "text": bytearray(b"no checkpoint")}.get(
        damage, content
    )
    newest.write_bytes(content)
    train_autoencoder(tiny, run, resume=True, say=said.append)
    assert newest.name in said[0]
    assert "is damaged" in said[0]
    assert said[1].startswith(f"{older.name}, the one before")
    assert f"at step {int(older.stem.removeprefix('step-'))}" in said[2]
    assert len(run.saved()) == 2
    assert all(storage.read(path) for path in run.saved())


def test_damage_does_not_change_the_end(tiny: Config, tmp_path: Path) -> None:
    config = with_training(tiny, schedule="constant")
    run_to(config, tmp_path / "whole")
    run_to(with_training(config, max_steps=13), tmp_path / "run")
    newest = RunFolder(tmp_path / "run").saved()[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    run_to(config, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_when_every_checkpoint_is_damaged(tiny: Config, tmp_path: Path) -> None:
    run_to(tiny, tmp_path / "run")
    for path in RunFolder(tmp_path / "run").saved():
        path.write_bytes(b"")
    with pytest.raises(DamagedFileError, match=r"every checkpoint in .* is damaged; train anew with another --out"):
        run_to(tiny, tmp_path / "run", resume=True)
    assert len(RunFolder(tmp_path / "run").saved()) == 2, "nothing is renamed or lost"


@pytest.mark.parametrize("write", [1, 2])
def test_a_kill_at_the_last_save(
    write: int, tiny: Config, undisturbed: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two files of the last save: neither may stay behind the other."""
    run, original, last = RunFolder(tmp_path / "run"), storage.write, [0]

    def mortal(path: Path, tensors: dict[str, Tensor], meta: dict[str, object]) -> None:
        if meta["step"] == 24:
            last[0] += 1
            if last[0] == write:
                raise Killed
        original(path, tensors, meta)

    monkeypatch.setattr(storage, "write", mortal)
    with pytest.raises(Killed):
        run_to(tiny, run.path)
    monkeypatch.undo()
    run_to(tiny, run.path, resume=True)
    assert same(weights(run.path), undisturbed)
    assert storage.read(run.model)[1]["step"] == 24
    kinds = [json.loads(line)["kind"] for line in run.metrics.read_text().splitlines()]
    assert kinds.count("evaluation") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_write_a_checkpoint(
    number: int, tiny: Config, undisturbed: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, handler = AutoencoderTask.step, signal.getsignal(number)

    def step(self: AutoencoderTask, state: TrainState, batch: Batch) -> Metrics:
        if state.step == 7:
            signal.raise_signal(number)
        return original(self, state, batch)

    monkeypatch.setattr(AutoencoderTask, "step", step)
    outcome = run_to(tiny, tmp_path / "run")
    assert (outcome.step, outcome.signal) == (8, number)
    monkeypatch.undo()
    assert signal.getsignal(number) == handler, "as it was before"
    run_to(tiny, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize("where", ["loss", "gradient", "latents"])
def test_what_is_not_finite_stops_before_the_update(
    where: str, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    original = AutoencoderTask.step

    def step(self: AutoencoderTask, state: TrainState, batch: Batch) -> Metrics:
        if state.step == 7:
            if where == "loss":
                list(state.model.parameters())[-1].data.fill_(float("inf"))
            elif where == "latents":
                next(state.model.parameters()).data.fill_(float("nan"))
            else:
                list(state.model.parameters())[-1].register_hook(lambda gradient: gradient * float("nan"))
            seen.append({name: tensor.clone() for name, tensor in state.tensors().items()})
            try:
                return original(self, state, batch)
            finally:
                seen.append({name: tensor.clone() for name, tensor in state.tensors().items()})
        return original(self, state, batch)

    monkeypatch.setattr(AutoencoderTask, "step", step)
    with pytest.raises(NonFiniteError, match=rf"{where}.*last good checkpoint is .*step-000000006") as caught:
        run_to(tiny, tmp_path / "run")
    assert "step 7" in str(caught.value)
    before, after = seen
    trained = [name for name in before if "codebooks" not in name]
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in trained)
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())


def test_a_full_disk_while_saving(
    tiny: Config, undisturbed: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = [0]
    original = storage.write_atomic

    def full(path: Path, content: bytes) -> None:
        if path.name.startswith("step-"):
            saves[0] += 1
            if saves[0] == 4:
                monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        original(path, content)

    monkeypatch.setattr(storage, "write_atomic", full)
    with pytest.raises(InputError, match=r"step 12 could not be saved \(No space left.*step-000000009.*--resume"):
        run_to(tiny, tmp_path / "run")
    monkeypatch.undo()
    assert [path.stem for path in RunFolder(tmp_path / "run").saved()] == ["step-000000009", "step-000000006"]
    run_to(tiny, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), undisturbed)


def test_a_run_is_not_overwritten(tiny: Config, tmp_path: Path) -> None:
    run_to(with_training(tiny, max_steps=3), tmp_path / "run")
    with pytest.raises(InputError, match="holds a run already: continue it with --resume"):
        run_to(tiny, tmp_path / "run")


def test_a_finished_run_stays_as_it_is(tiny: Config, undisturbed: dict[str, Tensor], tmp_path: Path) -> None:
    run_to(tiny, tmp_path / "undisturbed", resume=True)
    assert same(weights(tmp_path / "undisturbed"), undisturbed)


def test_a_folder_that_can_not_be_written(tiny: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        run_to(tiny, tmp_path / "file" / "run")


def test_skipped_images_are_counted_in_the_log(tiny: Config, picture_folder: Path, tmp_path: Path) -> None:
    config = with_data(
        tiny, dataset="pictures", root=str(picture_folder), channels=3, crop="random", on_error="skip", workers=2
    )
    for path in sorted(picture_folder.rglob("*"))[5:8]:
        if path.is_file():
            path.write_bytes(b"broken")
    run_to(with_training(config, max_steps=8), tmp_path / "run")
    records = [json.loads(line) for line in RunFolder(tmp_path / "run").metrics.read_text().splitlines()]
    assert max(record.get("broken_images", 0) for record in records) == 3


def test_skipping_broken_images_keeps_the_order(tiny: Config, picture_folder: Path, tmp_path: Path) -> None:
    """A batch of broken images alone must not move the data against the steps."""
    config = with_data(tiny, dataset="pictures", root=str(picture_folder), channels=3, crop="random", on_error="skip")
    config = with_training(config, batch_size=1, max_steps=40, schedule="constant", checkpoint_every=7)
    for path in sorted(picture_folder.rglob("*.png"))[:3]:
        path.write_bytes(b"broken")
    run_to(config, tmp_path / "whole")
    run_to(with_training(config, max_steps=23), tmp_path / "parts")
    run_to(config, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_run_that_never_began_may_begin_again(tiny: Config, picture_folder: Path, tmp_path: Path) -> None:
    config = with_data(tiny, dataset="pictures", root=str(picture_folder), channels=3, crop="random")
    for path in sorted(picture_folder.rglob("*.png")):
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match="--data.on_error skip"):
        run_to(config, tmp_path / "run")
    run_to(with_training(with_data(config, on_error="skip"), max_steps=3), tmp_path / "run")


def test_no_test_image_that_can_be_read(tiny: Config, picture_folder: Path, tmp_path: Path) -> None:
    config = with_data(
        tiny, dataset="pictures", root=str(picture_folder), channels=3, on_error="skip", crop="random", memory_mb=0
    )
    images = load_images(config.data, "test")
    for index in range(len(images)):
        Path(images.where(index)).write_bytes(b"broken")
    with pytest.raises(InputError, match="no image of the test split could be read"):
        run_to(with_training(config, max_steps=3), tmp_path / "run")


def test_revived_parameters_leave_no_moments_behind(tiny: Config, tmp_path: Path) -> None:
    config = with_quantizer(tiny, update="gradient", restart_every=4, restart_below=1.0)
    run_to(with_training(config, max_steps=4, checkpoint_every=4), tmp_path / "run")
    tensors = weights(tmp_path / "run")
    model = build(config)
    index = [name for name, _ in model.named_parameters()].index("quantizer.codebooks.0.codewords")
    fresh = (tensors[f"optimizer.{index}.exp_avg"] == 0).all(-1) & (tensors[f"optimizer.{index}.exp_avg_sq"] == 0).all(
        -1
    )
    name = "quantizer.codebooks.0.codewords"
    assert fresh.any()
    assert torch.equal(tensors[f"averaged.module.{name}"][fresh], tensors[f"model.{name}"][fresh])


def test_revivals_are_counted_in_the_log(tiny: Config, tmp_path: Path) -> None:
    config = with_quantizer(tiny, restart_every=2, restart_below=1.0)
    run_to(config, tmp_path / "run")
    records = [json.loads(line) for line in RunFolder(tmp_path / "run").metrics.read_text().splitlines()]
    assert sum(record.get("restarted", 0) for record in records) > 0


@pytest.mark.parametrize(
    ("fields", "steps", "seconds"),
    [
        ({"max_steps": 10}, 10, None),
        ({"max_steps": 0, "epochs": 3}, 18, None),
        ({"max_steps": 20, "epochs": 3}, 18, None),
        ({"max_steps": 0, "max_minutes": 0.5}, None, 30.0),
    ],
)
def test_budgets(fields: dict[str, object], steps: int | None, seconds: float | None, tiny: Config) -> None:
    budget = Budget.of(with_training(tiny, **fields).training, 96)
    assert (budget.steps, budget.seconds) == (steps, seconds)


def test_a_budget_in_minutes_ends(tiny: Config, tmp_path: Path) -> None:
    outcome = run_to(with_training(tiny, max_steps=0, max_minutes=1 / 60), tmp_path / "run")
    assert outcome.step > 3
    assert outcome.seconds >= 1


def test_learning_rates(tiny: Config) -> None:
    cosine = dataclasses.replace(tiny.training, learning_rate=1.0, warmup_steps=10, schedule="cosine")
    assert learning_rate(cosine, 4, 0.0) == pytest.approx(0.5)
    assert learning_rate(cosine, 50, 0.5) == pytest.approx(0.5)
    assert learning_rate(cosine, 99, 1.0) == pytest.approx(0.0)
    constant = dataclasses.replace(cosine, schedule="constant")
    assert learning_rate(constant, 0, 0.9) == 1.0
