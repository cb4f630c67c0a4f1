"""Training a progressive decoder; stale networks are refused and renewed."""

import copy
import shutil
import signal
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hrvqvae import load
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import PROGRESSIVE, RunFolder, decoder_folder, prior_folder
from hrvqvae.checkpoints.run import EntropyModelArtifact, Run, save_model
from hrvqvae.config import Config
from hrvqvae.data.batches import Batch
from hrvqvae.model import Model
from hrvqvae.models.build import build
from hrvqvae.training.prior import PriorTask
from hrvqvae.training.progressive import ProgressiveTask
from hrvqvae.training.stages import refresh
from hrvqvae.training.state import TrainState
from hrvqvae.utils.errors import InputError
from tests.conftest import do, input_error, refused, same, with_training
from tests.kills import at_step
from tests.trained_run import silent, tiny_systems, train_autoencoder, train_levels
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


def test_it_betters_prefixes_and_leaves_everything_else_to_the_bit(
    case: Case, images: Tensor
) -> None:
    run = case.path
    before = load(run)
    digest = storage.digest(RunFolder(run).model)
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
        assert torch.allclose(coarse, alone[0], atol=1e-6), (
            "codes of the first levels alone are that prefix"
        )
    evaluated = [record["level_mse"] for record in case.records("evaluation")]
    assert len(evaluated) == 2
    assert evaluated[1][-1] == evaluated[0][-1]
    for levels in range(1, whole + 1):
        for one in (
            after.autoencoder,
            copy.deepcopy(after.autoencoder),
        ):  # the form that a graph holds, and copies
            result = one.decode_prefix(codes, torch.tensor(levels))
            assert torch.allclose(after.decode(codes, levels), result, atol=1e-6)
    decoder = after.autoencoder.double().progressive_decoder
    assert {one.dtype for one in decoder.parameters()} == {torch.float64}, (
        "it goes where its model goes"
    )


@pytest.mark.parametrize("system", ["hrvqvae", "rqvae"])
def test_each_image_is_cut_to_a_prefix_in_turn(
    system: str, mnist_root: Path, tmp_path: Path, images: Tensor
) -> None:
    config = tiny_systems(mnist_root)[system]
    run = RunFolder(tmp_path / "run")
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
    for index in (
        1,
        2,
    ):  # nothing is learned yet; decoded images are clamped, those that are learned from are not
        cut = plain[index - 1][index - 1 : 15 : 2]
        assert result[f"reconstruction_{index}"] == pytest.approx(
            4 * float(cut.square().mean()), rel=0.05
        )
    assert result["gradient_norm"] > 0
    state.step = 1
    one = task.step(state, Batch(pixels[:1], torch.zeros(1, dtype=torch.long)))
    assert "reconstruction_2" in one
    assert "reconstruction_1" not in one, (
        "a batch smaller than the number of prefixes has some of them"
    )


def test_an_untrained_decoder_changes_nothing_and_a_damaged_file_is_written_anew(
    case: Case, images: Tensor
) -> None:
    before = load(case.path)
    case.train(max_steps=1, learning_rate=1e-30)
    codes = before.encode(images)
    case.folder.model.write_bytes(case.folder.model.read_bytes()[:-9])
    case.train(max_steps=2, learning_rate=1e-30, resume=True)
    after = load(case.path)
    for levels in range(1, len(codes) + 1):
        assert torch.allclose(before.decode(codes, levels), after.decode(codes, levels), atol=1e-6)


@pytest.mark.parametrize("system", ["vqvae", "vqvae2"])
def test_other_systems_are_refused(system: str, mnist_root: Path, tmp_path: Path) -> None:
    config = tiny_systems(mnist_root)[system]
    run = RunFolder(tmp_path / "run")
    run.prepare(config)
    save_model(run.model, config, build(config).state_dict(), 0)
    assert "has no progressive decoder" in refused(["train-progressive", run.path])
    assert not decoder_folder(run.path, PROGRESSIVE).path.exists()


@pytest.fixture
def stale(run: Path, tiny: Config, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose autoencoder was trained further after its priors, progressive decoder and entropy
    model.
    """
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr(
        EntropyModelArtifact, "fit", partialmethod(EntropyModelArtifact.fit, effort=0.05)
    )
    with input_error("nowhere"):
        refresh("nowhere", say=silent)
    assert refresh("run", say=silent) is None, "nothing is to be done"
    Case("progressive", run, tiny).train()
    train_levels(run)
    Run(run).entropy_model.fit(effort=0.05, say=silent)
    train_autoencoder(with_training(tiny, max_steps=62), run, resume=True)
    stale = ["priors/level-1", "priors/level-2", "prefixes", "tables.hrvt"]
    assert [str(artifact) for artifact in Run(run).stale_artifacts()] == stale
    return Path("run")


def test_what_is_stale_is_neither_used_nor_deleted_and_is_renewed(
    stale: Path, tiny: Config, tmp_path: Path
) -> None:
    cases = [Case(name, stale, tiny) for name in ("prior", "progressive")]
    for case in cases:
        kept = case.state()
        for resume in (False, True):
            with input_error(r"another state of the model; renew with: hrvqvae refresh run"):
                case.train(resume=resume)
        with pytest.raises(InputError):
            case.train(renew=True, init_from="nowhere")
        assert same(case.state(), kept), "it makes way when the next one begins, and not before"
    anew = shutil.copytree(
        stale, tmp_path / "anew", ignore=shutil.ignore_patterns("priors", "prefixes", "tables*")
    )
    assert do("refresh", "run").splitlines()[-1].startswith("everything in run")
    assert Run(stale).stale_artifacts() == []
    model = load(stale)
    model.compress(model.sample(1))
    train_levels(anew)
    for case in cases:
        if case.name == "progressive":
            case.at(anew).train()
        assert same(case.state(), case.at(anew).state()), (
            "with the fields of before, and nothing that was learned"
        )
        assert (case.folder.pictures / "curves.png").is_file()


def test_it_goes_on_where_it_was_stopped(stale: Path, tiny: Config, tmp_path: Path) -> None:
    whole = shutil.copytree(stale, tmp_path / "whole")
    assert refresh(whole, say=silent) is None
    said = list[str]()
    for task in (PriorTask, ProgressiveTask):
        with pytest.MonkeyPatch.context() as patched:
            at_step(patched, task, 5, lambda _: signal.raise_signal(signal.SIGTERM))
            assert refresh(stale, say=said.append) == signal.SIGTERM
    assert refresh(stale, say=said.append) is None
    assert sum("resuming" in line for line in said) == 2
    assert Run(stale).stale_artifacts() == []
    for name in ("prior", "progressive"):
        assert same(Case(name, stale, tiny).state(), Case(name, whole, tiny).state())


def test_what_was_exported_is_renewed_by_what_its_weights_say(
    run: Path, tiny: Config, tmp_path: Path
) -> None:
    Case("progressive", run, tiny).train()
    train_levels(run)
    load(run).save_pretrained(tmp_path / "exported")
    train_autoencoder(with_training(tiny, max_steps=62), run, resume=True)
    shutil.copy2(RunFolder(run).model, RunFolder(tmp_path / "exported").model)
    assert refresh(tmp_path / "exported", str(tiny.data.root), say=silent) is None
    assert Run(tmp_path / "exported").stale_artifacts() == []
    for folder in (
        prior_folder(tmp_path / "exported", 1),
        decoder_folder(tmp_path / "exported", PROGRESSIVE),
    ):
        assert folder.saved()[0].stem == "step-000000012"
    load(tmp_path / "exported").sample(1)
