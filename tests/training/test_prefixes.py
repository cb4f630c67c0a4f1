"""The progressive decoder: what it changes and what not, its training killed and resumed, where it goes."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hrvqvae import load
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, progressive_folder
from hrvqvae.checkpoints.loading import save_model
from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.cli import main
from hrvqvae.config import Config
from hrvqvae.data.batches import Batch
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import build, build_progressive_decoder, several_levels
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.training.loggers import MetricsLog
from hrvqvae.training.optimizers import Muon
from hrvqvae.training.progressive import ProgressiveTask, resolve_progressive
from hrvqvae.training.state import TrainState
from hrvqvae.training.trainer import Say, Trainer
from hrvqvae.utils.device import Compute
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.conftest import with_training
from tests.kills import Killed, Kills
from tests.tiny_priors import silent
from tests.tiny_systems import tiny_systems
from tests.trained_run import train_autoencoder

GIVEN = {
    "progressive.network.hidden_units": "8", "progressive.network.residual_blocks": "2", "progressive.training.device": "cpu",
    "progressive.training.max_steps": "12", "progressive.training.precision": "fp32", "progressive.training.warmup_steps": "2",
    "progressive.training.evaluate_every": "99", "progressive.training.checkpoint_every": "3",
    "progressive.training.log_every": "4", "progressive.training.polyak_decay": "0.5",
}  # fmt: skip


def train_progressive(path: Path, config: Config, *, resume: bool, say: Say, renew: bool = False) -> None:
    Trainer(ProgressiveTask(path, config), resume=resume, renew=renew, say=say).train()


def refine(path: Path, resume: bool = False, **changes: str) -> None:
    """Train the progressive decoder of a run with `max_steps="9"` and the like changed."""
    given = GIVEN | {f"progressive.training.{name}": value for name, value in changes.items()}
    train_progressive(path, resolve_progressive(path, given, resume=resume), resume=resume, say=silent)


def state(path: Path) -> dict[str, Tensor]:
    folder = progressive_folder(path)
    kept = storage.read(folder.model)[0]
    return storage.read(folder.saved()[0])[0] | {f"file.{name}": tensor for name, tensor in kept.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def error(model: TrainedModel, images: Tensor, levels: int) -> float:
    decoded = model.decode(model.encode(images), levels=levels, size=(12, 12))
    return float((decoded - images).square().mean())


@pytest.fixture
def images() -> Tensor:
    """Bars such as the training images have."""
    drawn = torch.zeros(16, 1, 12, 12)
    for number in range(16):
        drawn[number, :, 2:10, 2 + number % 8] = 1
        drawn[number, :, 2 + number // 2, 2:-2] = 0.7
    return drawn


def test_it_betters_prefixes_and_leaves_everything_else_to_the_bit(run: Path, images: Tensor) -> None:
    before, digest = load(run), storage.digest(RunFolder(run).model)
    file = before.compress(images[:1])[0]
    refine(run, max_steps="150", learning_rate="0.01", evaluate_every="75")
    after = load(run)
    codes = before.encode(images)
    assert all(torch.equal(one, other) for one, other in zip(codes, after.encode(images), strict=True))
    whole = len(codes)
    assert torch.equal(before.decode(codes), after.decode(codes))
    assert torch.equal(before.decode(codes, levels=whole), after.decode(codes, levels=whole))
    assert storage.digest(RunFolder(run).model) == digest
    assert before.autoencoder.state_dict().keys() == after.autoencoder.state_dict().keys()
    assert file == after.compress(images[:1])[0]
    for levels in range(1, whole):
        assert error(after, images, levels) < 0.9 * error(before, images, levels)
        coarse = after.decompress([file], levels=levels)[0]
        alone = after.decode(tuple(code[:1] for code in codes[:levels]), size=(12, 12))
        assert torch.allclose(coarse, alone[0], atol=1e-6), "codes of the first levels alone are that prefix"
    records = [json.loads(line) for line in progressive_folder(run).metrics.read_text().splitlines()]
    evaluated = [record["level_mse"] for record in records if record["kind"] == "evaluation"]
    assert len(evaluated) == 2
    assert evaluated[1][-1] == evaluated[0][-1]
    assert (progressive_folder(run).pictures / "reconstructions.png").is_file()


@pytest.mark.parametrize("system", ["hrvqvae", "rqvae"])
def test_each_image_of_a_batch_is_cut_to_a_prefix_in_turn(system: str, mnist_root: Path, images: Tensor) -> None:
    config = tiny_systems(mnist_root)[system]
    model = several_levels(build(config).requires_grad_(False), config)
    model.initialize(images, torch.Generator().manual_seed(0))
    model.eval()
    training = dataclasses.replace(config.progressive.training, precision="fp32", device="cpu").with_batch_size(16)
    state = TrainState.start(build_progressive_decoder(model, config), training)
    step = ProgressiveTask(model, 0, Compute.of(training))
    pixels = (images * 255).round().to(torch.uint8)
    codes = model.encode(pixels)
    plain = [(model.pixels(model.quantizer.lookup(codes[:n]), (12, 12)) + 1) / 2 - pixels / 255 for n in (1, 2)]
    found = step(state, Batch(pixels[:15], torch.zeros(15, dtype=torch.long)))
    for number in (1, 2):  # nothing is learned yet
        cut = plain[number - 1][number - 1 : 15 : 2]
        assert found[f"reconstruction_{number}"] == pytest.approx(4 * float(cut.square().mean()), rel=1e-4)
    assert found["gradient_norm"] > 0
    state.step = 1
    one = step(state, Batch(pixels[:1], torch.zeros(1, dtype=torch.long)))
    assert "reconstruction_2" in one
    assert "reconstruction_1" not in one, "a batch smaller than the number of prefixes has some of them"


def test_an_untrained_one_changes_nothing(run: Path, images: Tensor) -> None:
    before = load(run)
    refine(run, max_steps="1", learning_rate="1e-30")
    after = load(run)
    codes = before.encode(images)
    for levels in range(1, len(codes) + 1):
        assert torch.allclose(before.decode(codes, levels), after.decode(codes, levels), atol=1e-6)


def test_the_form_of_a_graph_and_copies_decode_the_same(run: Path, images: Tensor) -> None:
    refine(run, learning_rate="0.01")
    model = load(run).autoencoder
    codes = model.encode(images)
    for levels in range(1, len(codes) + 1):
        for one in (model, copy.deepcopy(model)):
            found = one.decode_prefix(codes, torch.tensor(levels))
            assert torch.allclose(model.decode(codes, levels), found, atol=1e-6)
    decoder = model.double().progressive_decoder if isinstance(model, SingleGridAutoencoder) else None
    assert decoder is not None
    assert {one.dtype for one in decoder.parameters()} == {torch.float64}, "it goes where its model goes"


def test_stopping_and_resuming_changes_nothing(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "parts")
    common = {"precision": "bf16", "schedule": "constant"}
    refine(run, **common)
    for steps in ("5", "12"):
        torch.manual_seed(int(steps))  # another process has drawn other numbers
        refine(tmp_path / "parts", resume=steps != "5", **{**common, "max_steps": steps})
    assert same(state(run), state(tmp_path / "parts"))


def test_random_kills(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, tmp_path / "whole")
    refine(tmp_path / "whole")
    killer = Kills(3)
    killer.watch(monkeypatch, (
        (ProgressiveTask, "__call__"), (os, "fsync"), (Path, "replace"), (Path, "unlink"), (MetricsLog, "write"),
        (Muon, "step"),
    ))  # fmt: skip
    kills = 0
    while kills < 8:
        killer.arm(60)
        try:
            refine(run, resume=True)
        except Killed:
            kills += 1
            killer.left = 0
            load(run)  # whatever there is, is whole
        else:
            shutil.rmtree(progressive_folder(run).path)
    killer.left = 0
    refine(run, resume=True)
    assert same(state(run), state(tmp_path / "whole"))


def test_one_of_another_state_is_left_out_and_told_and_makes_way(
    run: Path, tiny: Config, tmp_path: Path, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    refine(run, learning_rate="0.01")
    load(run).save_pretrained(tmp_path / "before")
    train_autoencoder(with_training(tiny, max_steps=61), RunFolder(run), resume=True, say=silent)
    shutil.copy2(RunFolder(run).model, RunFolder(tmp_path / "before").model)  # a folder without the training
    assert caplog.messages == []
    plain = shutil.copytree(run, tmp_path / "plain")
    shutil.rmtree(progressive_folder(plain).path)
    bare = load(plain)
    codes, whole = bare.encode(images), len(bare.config.model.num_symbols)
    for folder in (run, tmp_path / "before"):
        for _ in range(2):
            model = load(folder)
        (told,) = caplog.messages
        caplog.clear()
        assert f"{progressive_folder(folder).path} is left out: " in told
        assert f"(hrvqvae train-progressive {folder})" in told
        for levels in range(1, whole + 1):
            assert torch.equal(bare.decode(codes, levels), model.decode(codes, levels))
    load(run).save_pretrained(tmp_path / "exported")
    Autoencoder.from_pretrained(run).save_pretrained(tmp_path / "alone")
    for name in ("exported", "alone"):
        assert not progressive_folder(tmp_path / name).path.exists()
        assert "a decoder of their own" not in RunFolder(tmp_path / name).card.read_text()
    given = GIVEN | {"progressive.training.learning_rate": "0.01", "data.root": str(tiny.data.root)}
    kept = progressive_folder(run).model.read_bytes()
    for changes in ({"data.root": str(tmp_path / "nowhere")}, {"progressive.training.init_from": "mnist"}):
        with pytest.raises(InputError):
            train_progressive(run, resolve_progressive(run, given | changes, resume=False), resume=False, say=silent)
        assert progressive_folder(run).model.read_bytes() == kept, (
            "it makes way when the next one begins, and not before"
        )
        assert progressive_folder(run).saved()
    for folder, changes, resume in ((run, {}, True), (tmp_path / "before", given, False)):
        said = list[str]()
        train_progressive(folder, resolve_progressive(folder, changes, resume=resume), resume=resume, say=said.append)
        assert "was trained for another state of the model, and makes way" in said[0]
    assert same(state(run), state(tmp_path / "before")), "with the fields of before, and nothing that was learned"
    model = load(run)
    assert caplog.messages == []
    assert not torch.equal(bare.decode(codes, 1), model.decode(codes, 1))


def test_one_that_is_there_is_kept_and_a_damaged_one_is_told(run: Path) -> None:
    refine(run, max_steps="1")
    with pytest.raises(InputError, match="holds a run already"):
        refine(run)
    file = progressive_folder(run).model
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedFileError, match="damaged"):
        load(run)
    refine(run, resume=True, max_steps="2")  # writes it anew
    load(run)


def test_it_goes_with_the_model(run: Path, tmp_path: Path, mnist_root: Path, images: Tensor) -> None:
    refine(run, learning_rate="0.01")
    model = load(run)
    model.save_pretrained(tmp_path / "exported")
    assert "a decoder of their own, trained 12 steps" in RunFolder(tmp_path / "exported").card.read_text()
    alone = Autoencoder.from_pretrained(run)
    alone.save_pretrained(tmp_path / "alone")
    codes = model.encode(images)
    for folder in ("exported", "alone"):
        assert torch.equal(model.decode(codes, 1), load(tmp_path / folder).decode(codes, 1))
    kept = progressive_folder(tmp_path / "exported").model.read_bytes()
    config = resolve_progressive(tmp_path / "exported", {"data.root": str(mnist_root)}, resume=True)
    with pytest.raises(InputError, match="nothing of its training to go on from; delete that folder"):
        train_progressive(tmp_path / "exported", config, resume=True, say=silent)
    assert progressive_folder(tmp_path / "exported").model.read_bytes() == kept
    plain = Autoencoder.from_pretrained(tmp_path / "alone")
    assert isinstance(plain, SingleGridAutoencoder)
    shutil.rmtree(progressive_folder(tmp_path / "exported").path)
    bare = Autoencoder.from_pretrained(tmp_path / "exported")
    bare.save_pretrained(tmp_path / "alone")  # what lay there of the other is cleared
    assert torch.equal(bare.decode(codes, 1), load(tmp_path / "alone").decode(codes, 1))
    given = GIVEN | {"progressive.training.init_from": str(run), "progressive.training.learning_rate": "1e-30"}
    config = resolve_progressive(tmp_path / "exported", given | {"data.root": str(mnist_root)}, resume=False)
    train_progressive(tmp_path / "exported", config, resume=False, say=silent)
    assert torch.allclose(model.decode(codes, 1), load(tmp_path / "exported").decode(codes, 1), atol=1e-5)


@pytest.mark.parametrize("system", ["vqvae", "vqvae2"])
def test_other_systems_are_refused_in_one_line(
    system: str, mnist_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = tiny_systems(mnist_root)[system], RunFolder(tmp_path / "run")
    run.prepare(config)
    save_model(run.model, config, build(config).state_dict(), 0)
    assert main(["train-progressive", str(run.path)]) == 2
    told = capsys.readouterr().err
    assert "no prefixes for a decoder of their own" in told
    assert told.count("\n") == 1
    assert not progressive_folder(run.path).path.exists()


def test_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = [part for name, value in GIVEN.items() for part in (f"--{name}", value)]
    assert main(["train-progressive", "mnist", "--max-steps", "1"]) == 2
    assert "hrvqvae export mnist DIR" in capsys.readouterr().err
    assert main(["train-progressive", str(run), "--model.stride", "4"]) == 2
    assert "not a field of the prefixes" in capsys.readouterr().err
    assert main(["train-progressive", str(run), *fields, "--max-steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"step 2  test level 1: MSE [\d.e-]+, levels 1-2: MSE [\d.e-]+\n", printed)
    assert "trained 2 steps" in printed
    assert main(["train-progressive", str(run), *fields, "--max-steps", "3"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train-progressive", str(run), "--max-steps", "3", "--resume"]) == 0
    assert "resuming" in capsys.readouterr().out
