"""Training a progressive decoder."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hrvqvae import load
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, progressive_folder
from hrvqvae.checkpoints.run import save_model
from hrvqvae.config import Config
from hrvqvae.data.batches import Batch
from hrvqvae.model import Model
from hrvqvae.models.build import build
from hrvqvae.training.progressive import ProgressiveTask
from hrvqvae.training.state import TrainState
from tests.conftest import refused, same
from tests.trained_run import tiny_systems
from tests.training.tasks import Case


@pytest.fixture
def case(run: Path, tiny: Config) -> Case:
    return Case("progressive", run, tiny)


@pytest.fixture
def images() -> Tensor:
    drawn = torch.zeros(16, 1, 12, 12)
    for index in range(16):
        drawn[index, :, 2:10, 2 + index % 8] = 1
        drawn[index, :, 2 + index // 2, 2:-2] = 0.7
    return drawn


def error(model: Model, images: Tensor, levels: int) -> float:
    decoded = model.decode(model.encode(images), levels=levels, size=(12, 12))
    return float((decoded - images).square().mean())


def test_it_betters_prefixes_and_leaves_everything_else_to_the_bit(case: Case, images: Tensor) -> None:
    run = case.path
    before, digest = load(run), storage.digest(RunFolder(run).model)
    file = before.compress(images[:1])[0]
    case.train(max_steps=100, learning_rate=0.01, evaluate_every=50)
    after = load(run)
    codes = before.encode(images)
    assert same(codes, after.encode(images))
    whole = len(codes)
    for levels in (None, whole):
        assert torch.equal(before.decode(codes, levels), after.decode(codes, levels))
    assert storage.digest(RunFolder(run).model) == digest
    assert before.autoencoder.state_dict().keys() == after.autoencoder.state_dict().keys()
    assert file == after.compress(images[:1])[0]
    for levels in range(1, whole):
        assert error(after, images, levels) < 0.9 * error(before, images, levels)
        coarse = after.decompress([file], levels=levels)[0]
        alone = after.decode(tuple(code[:1] for code in codes[:levels]), size=(12, 12))
        assert torch.allclose(coarse, alone[0], atol=1e-6), "codes of the first levels alone are that prefix"
    evaluated = [record["level_mse"] for record in case.records("evaluation")]
    assert len(evaluated) == 2
    assert evaluated[1][-1] == evaluated[0][-1]
    for levels in range(1, whole + 1):
        for one in (after.autoencoder, copy.deepcopy(after.autoencoder)):  # the form that a graph holds, and copies
            result = one.decode_prefix(codes, torch.tensor(levels))
            assert torch.allclose(after.decode(codes, levels), result, atol=1e-6)
    decoder = after.autoencoder.double().progressive_decoder
    assert {one.dtype for one in decoder.parameters()} == {torch.float64}, "it goes where its model goes"


@pytest.mark.parametrize("system", ["hrvqvae", "rqvae"])
def test_each_image_of_a_batch_is_cut_to_a_prefix_in_turn(
    system: str, mnist_root: Path, tmp_path: Path, images: Tensor
) -> None:
    config, run = tiny_systems(mnist_root)[system], RunFolder(tmp_path / "run")
    model = build(config)
    model.initialize(images, torch.Generator().manual_seed(0))
    run.prepare(config)
    save_model(run.model, config, model.state_dict(), 0)
    task = ProgressiveTask(run.path, Case("progressive", run.path, config).config())
    state = TrainState.start(task.build(), task.training)
    pixels = (images * 255).round().to(torch.uint8)
    codes = model.eval().encode(pixels)
    with torch.no_grad():
        plain = [model.decode(codes, levels, (12, 12)) - pixels / 255 for levels in (1, 2)]
    result = task.step(state, Batch(pixels[:15], torch.zeros(15, dtype=torch.long)))
    for index in (1, 2):  # nothing is learned yet; decoded images are clamped, those that are learned from are not
        cut = plain[index - 1][index - 1 : 15 : 2]
        assert result[f"reconstruction_{index}"] == pytest.approx(4 * float(cut.square().mean()), rel=0.05)
    assert result["gradient_norm"] > 0
    state.step = 1
    one = task.step(state, Batch(pixels[:1], torch.zeros(1, dtype=torch.long)))
    assert "reconstruction_2" in one
    assert "reconstruction_1" not in one, "a batch smaller than the number of prefixes has some of them"


def test_an_untrained_decoder_changes_nothing_and_a_damaged_file_is_written_anew(case: Case, images: Tensor) -> None:
    before = load(case.path)
    case.train(max_steps=1, learning_rate=1e-30)
    codes = before.encode(images)
    case.folder.model.write_bytes(case.folder.model.read_bytes()[:-9])
    case.train(max_steps=2, learning_rate=1e-30, resume=True)
    after = load(case.path)
    for levels in range(1, len(codes) + 1):
        assert torch.allclose(before.decode(codes, levels), after.decode(codes, levels), atol=1e-6)


def test_it_goes_with_the_model(case: Case, tmp_path: Path, images: Tensor) -> None:
    case.train(learning_rate=0.01)
    model = load(case.path)
    model.save_pretrained(tmp_path / "exported")
    assert "12 steps" in RunFolder(tmp_path / "exported").card.read_text()
    codes = model.encode(images)
    assert torch.equal(model.decode(codes, 1), load(tmp_path / "exported").decode(codes, 1))


@pytest.mark.parametrize("system", ["vqvae", "vqvae2"])
def test_other_systems_are_refused(system: str, mnist_root: Path, tmp_path: Path) -> None:
    config, run = tiny_systems(mnist_root)[system], RunFolder(tmp_path / "run")
    run.prepare(config)
    save_model(run.model, config, build(config).state_dict(), 0)
    assert "has no progressive decoder" in refused(["train-progressive", run.path])
    assert not progressive_folder(run.path).path.exists()
