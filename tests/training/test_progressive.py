"""Training a progressive decoder; stale networks are refused and renewed."""

import copy
import shutil
import signal
from functools import partialmethod
from pathlib import Path

import pytest
import torch

from hrvqvae import load
from hrvqvae.checkpoints.folder import PROGRESSIVE, RunFolder, decoder_folder
from hrvqvae.checkpoints.run import EntropyModelArtifact, Run
from hrvqvae.data.batches import Batch
from hrvqvae.training.prior import PriorTask
from hrvqvae.training.progressive import ProgressiveTask
from hrvqvae.training.stages import refresh
from hrvqvae.training.state import TrainState
from tests.conftest import (
    approx,
    check_refusals,
    do,
    drawn_digits,
    input_error,
    parametrize,
    same,
    with_training,
)
from tests.kills import stop_at_step
from tests.trained_run import silent, tiny_systems, train_autoencoder, train_levels
from tests.training.tasks import Case, untrained_run


@pytest.fixture
def case(run, tiny):
    return Case("progressive", run, tiny)


@pytest.fixture
def images():
    pixels, _ = drawn_digits(16, seed=3)
    return torch.from_numpy(pixels)[:, None] / 255


def error(model, images, levels):
    decoded = model.decode(model.encode(images), levels=levels, size=(12, 12))
    return float((decoded - images).square().mean())


def test_it_betters_prefixes_and_leaves_everything_else_to_the_bit(case, images):
    before = load(case.path)
    file = RunFolder(case.path).model
    content = file.read_bytes()
    case.train(max_steps=100, learning_rate=0.01, evaluate_every=50)
    after = load(case.path)
    assert file.read_bytes() == content
    codes = before.encode(images)
    files = before.compress(images[:1])
    assert after.compress(images[:1]) == files
    for levels in (None, 2):
        assert same(before.decode(codes, levels), after.decode(codes, levels))
    assert before.autoencoder.state_dict().keys() == after.autoencoder.state_dict().keys()
    assert error(after, images, 1) < 0.9 * error(before, images, 1)
    # codes of the first level alone are that prefix
    coarse = after.decompress(files, levels=1)[0]
    alone = after.decode((codes[0][:1],), size=(12, 12))
    assert torch.allclose(coarse, alone[0], atol=1e-6)
    first, last = (record["level_mse"] for record in case.records("evaluation"))
    assert first[-1] == last[-1]
    # the form that a graph holds, also of a copy
    for autoencoder in (after.autoencoder, copy.deepcopy(after.autoencoder)):
        for levels in (1, 2):
            result = autoencoder.decode_prefix(codes, torch.tensor(levels))
            assert torch.allclose(after.decode(codes, levels), result, atol=1e-6)
    # the decoder goes where its model goes
    decoder = after.autoencoder.double().progressive_decoder
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float64}


@parametrize("system", ["hrvqvae", "rqvae"])
def test_each_image_is_cut_to_a_prefix_in_turn(system, mnist_root, tmp_path, images):
    case = untrained_run("progressive", tiny_systems(mnist_root)[system], tmp_path)
    task = ProgressiveTask(case.path, case.config())
    state = TrainState.start(task.build(), task.training)
    pixels = (images * 255).round().byte()
    model = Run(case.path).load()[0]
    codes = model.encode(pixels)

    def step(count):
        return task.step(state, Batch(pixels[:count], torch.zeros(count).long()))

    result = step(15)
    # nothing is learned yet; decoded images are clamped, those that are learned from are not
    for levels in (1, 2):
        with torch.no_grad():
            errors = (model.decode(codes, levels, (12, 12)) - images).square()
        expected = 4 * float(errors[levels - 1 : 15 : 2].mean())
        assert result[f"reconstruction_{levels}"] == approx(expected, rel=0.05)
    assert result["gradient_norm"] > 0

    # a batch smaller than the number of prefixes has some of them
    state.step = 1
    result = step(1)
    assert "reconstruction_2" in result
    assert "reconstruction_1" not in result


def test_an_untrained_decoder_changes_nothing_and_a_damaged_file_is_written_anew(case, images):
    before = load(case.path)
    case.train(max_steps=1, learning_rate=1e-30)
    codes = before.encode(images)
    case.folder.model.write_bytes(case.folder.model.read_bytes()[:-9])
    case.resume(max_steps=2, learning_rate=1e-30)
    after = load(case.path)
    for levels in (1, 2):
        assert torch.allclose(before.decode(codes, levels), after.decode(codes, levels), atol=1e-6)


@parametrize("system", ["vqvae", "vqvae2"])
def test_other_systems_are_refused(system, mnist_root, tmp_path):
    run = untrained_run("progressive", tiny_systems(mnist_root)[system], tmp_path).path
    check_refusals(f"train-progressive {run} | has no progressive decoder")
    assert not decoder_folder(run, PROGRESSIVE).path.exists()


@pytest.fixture
def stale(run, tiny, monkeypatch):
    """A run whose autoencoder was trained further after its priors, progressive decoder and entropy
    model.
    """
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr(
        EntropyModelArtifact, "fit", partialmethod(EntropyModelArtifact.fit, effort=0.05)
    )
    with input_error("nowhere"):
        refresh("nowhere", say=silent)
    assert refresh("run", say=silent) is None  # there is nothing to do
    Case("progressive", run, tiny).train()
    train_levels(run)
    Run(run).entropy_model.fit(effort=0.05, say=silent)
    train_autoencoder(with_training(tiny, max_steps=62), run, resume=True)
    stale = ["priors/level-1", "priors/level-2", "prefixes", "tables.hrvt"]
    assert [str(artifact) for artifact in Run(run).stale_artifacts()] == stale
    return Path("run")


def test_what_is_stale_is_neither_used_nor_deleted_and_is_renewed(
    stale, tiny, tmp_path, monkeypatch
):
    cases = [Case(name, stale, tiny) for name in ("prior", "progressive")]
    told = "another state of the model; renew with: hrvqvae refresh run"
    for case in cases:
        kept = case.state()
        for resume in (False, True):
            with input_error(told):
                case.train(resume=resume)
        with input_error("nowhere"):
            case.train(renew=True, init_from="nowhere")
        assert same(case.state(), kept)
    ignored = shutil.ignore_patterns("priors", "prefixes", "tables*")
    anew = shutil.copytree(stale, tmp_path / "anew", ignore=ignored)
    check_refusals("refresh run --device tpu | device is 'tpu'")
    fit = EntropyModelArtifact.fit
    passed = []

    def watched_fit(artifact, *arguments, **options):
        passed.append(options["fields"])
        return fit(artifact, *arguments, **options)

    monkeypatch.setattr(EntropyModelArtifact, "fit", watched_fit)
    refreshed = do("refresh run --device cpu --data.on_error skip")
    assert passed == [{"data.on_error": "skip"}]
    assert refreshed.splitlines()[-1].startswith("everything in run")
    assert cases[0].folder.read_config().data.on_error == "skip"
    assert Run(stale).stale_artifacts() == []
    model = load(stale)
    model.compress(model.sample(1))
    # with the fields of before, and nothing that was learned
    train_levels(anew)
    Case("progressive", anew, tiny).train()
    for case in cases:
        assert same(case.state(), case.at(anew).state())
        assert (case.folder.pictures / "curves.png").is_file()


def test_it_goes_on_where_it_was_stopped(stale, tiny, tmp_path):
    unstopped = shutil.copytree(stale, tmp_path / "whole")
    assert refresh(unstopped, say=silent) is None
    said = []
    for task in (PriorTask, ProgressiveTask):
        with pytest.MonkeyPatch.context() as patched:
            stop_at_step(patched, task, 5)
            assert refresh(stale, say=said.append) == signal.SIGTERM
    assert refresh(stale, say=said.append) is None
    assert sum("resuming" in line for line in said) == 2
    assert Run(stale).stale_artifacts() == []
    for name in ("prior", "progressive"):
        assert same(Case(name, stale, tiny).state(), Case(name, unstopped, tiny).state())


def test_what_was_exported_is_renewed_by_what_its_weights_say(run, tiny, tmp_path):
    Case("progressive", run, tiny).train()
    train_levels(run)
    exported = tmp_path / "exported"
    load(run).save_pretrained(exported)
    train_autoencoder(with_training(tiny, max_steps=62), run, resume=True)
    shutil.copy2(RunFolder(run).model, RunFolder(exported).model)
    assert refresh(exported, str(tiny.data.root), say=silent) is None
    assert Run(exported).stale_artifacts() == []
    for name in ("prior", "progressive"):
        assert Case(name, exported, tiny).last_step == 12
    load(exported).sample(1)
