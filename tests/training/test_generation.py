"""Training a decoder of samples."""

import pytest
import torch
from torch.testing import assert_close

import hrvqvae
from hrvqvae.checkpoints.folder import GENERATION, RunFolder, decoder_folder
from hrvqvae.checkpoints.run import Run
from hrvqvae.models.vqgan import compute_adaptive_weight
from hrvqvae.training.generation import GenerationTask
from tests.checkpoints.conftest import change
from tests.conftest import approx, do, input_error, refused, same
from tests.trained_run import tiny_systems, undrawn
from tests.training.tasks import Case, untrained_run


@pytest.fixture
def case(mnist_root, tmp_path):
    """A decoder of samples of two of three levels."""
    return untrained_run("generation", tiny_systems(mnist_root)["hrvqvae"], tmp_path)


def command(case, levels=2, options="--generation.perceptual none"):
    line = f"train-decoder {case.path} --max-steps 2 --device cpu --generation.levels {levels}"
    return f"{line} {options}"


def test_samples_of_its_levels_are_decoded_by_it_and_nothing_else_is(case):
    before = hrvqvae.load(case.path)
    codes = before.encode(torch.rand(3, 1, 12, 12))
    file = before.compress(torch.rand(1, 1, 12, 12))
    case.train(learning_rate=0.01)
    after = hrvqvae.load(case.path)
    size = (12, 12)
    decoded = after.load_generator(2).decode(codes, 2, size)
    assert not torch.equal(decoded, before.decode(codes, 2, size))
    for levels in (1, 3):
        assert after.load_generator(levels) is after.autoencoder
    assert after.load_generator(2, "progressive") is after.autoencoder
    for levels in (1, 2, 3):
        assert torch.equal(after.decode(codes, levels), before.decode(codes, levels))
    assert torch.equal(after.decompress(file, 2)[0], before.decompress(file, 2)[0])
    with input_error(r"decodes levels 1 to 2, not levels 1 to 3: give --lev"):
        after.load_generator(3, "generation")
    RunFolder(case.path).sampling.write_text('{"decoder": "progressive"}')
    assert hrvqvae.load(case.path).load_generator(2).progressive_decoder is None


def test_a_resumed_training_is_the_one_that_never_stopped(case, tmp_path):
    resumed = case.copied(tmp_path / "resumed")
    case.train(schedule="constant")
    for steps in (5, 12):
        resumed.train(max_steps=steps, resume=steps > 5, schedule="constant")
    assert same(resumed.state(), case.state())
    assert {name.split(".")[0] for name in case.state()} >= {"discriminator_model", "file"}


def test_it_begins_with_the_progressive_decoder_and_its_shape(case):
    Case("progressive", case.path, case.base).train()
    progressive = Run(case.path).decoders["prefixes"].read()[0]
    do(f"{command(case)} --generation.training.learning_rate 1e-30")
    trained, meta = Run(case.path).decoders[GENERATION].read()
    assert_close(trained, progressive)
    assert meta["config"]["generation"]["levels"] == 2


def test_the_discriminator_joins_with_its_own_rate(case, monkeypatch):
    weights = []
    rates = []
    step = GenerationTask.step

    def record(*arguments):
        weights.append(float(compute_adaptive_weight(*arguments)))
        return torch.tensor(weights[-1])

    def record_rates(task, state, batch):
        metrics = step(task, state, batch)
        networks = state.networks.values()
        rates.append(tuple(network.optimizer.param_groups[0]["lr"] for network in networks))
        return metrics

    monkeypatch.setattr("hrvqvae.models.vqgan.compute_adaptive_weight", record)
    monkeypatch.setattr(GenerationTask, "step", record_rates)
    case.train()
    assert len(weights) == 12 - 2
    assert all(second == approx(first / 2) for first, second in rates)


def test_a_share_of_the_last_codes_is_drawn_anew(case):
    config = case.config().replace(**{"generation.redraw": 0.25})
    task = GenerationTask(case.path, config)
    torch.manual_seed(0)
    codes = tuple(torch.full((100, 7, 7), code) for code in (1, 2))
    coarse, last = task.redraw(codes)
    assert torch.equal(coarse, codes[0])
    assert float((last != 2).double().mean()) == approx(0.25 * 2 / 3, abs=0.02)
    assert last.unique().tolist() == [0, 1, 2]


def test_a_stale_decoder_is_refused_and_renewed(case):
    case.train()
    change(case.path)
    with input_error("another state of the model; renew with: hrvqvae refresh"):
        case.resume()
    with undrawn():
        do(f"refresh {case.path}")
    assert Run(case.path).stale_artifacts() == []
    assert case.last_step == 12


def test_a_missing_network_is_one_line_that_says_how_to_go_on(case, monkeypatch):
    monkeypatch.setattr("hrvqvae.models.perceptual.has_efficientnet", lambda: False)
    monkeypatch.setenv("TORCH_HOME", str(case.path))
    line = refused(command(case, options=""))
    assert "or train without: --generation.perceptual none" in line
    assert not decoder_folder(case.path, GENERATION).path.exists()
    do(command(case))
    assert case.folder.model.is_file()


def test_levels_that_it_cant_decode_are_refused(case):
    assert "give --generation.levels 1 to 2" in refused(command(case, 3))
