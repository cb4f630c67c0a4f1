"""Training a decoder of samples."""

from unittest.mock import patch

import pytest
import torch
from torch.testing import assert_close

import hrvqvae
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import GENERATION, RunFolder, decoder_folder, open_run
from hrvqvae.priors.generative import sample_codes
from hrvqvae.training.decoder import SampleTask, resolve_samples
from tests.conftest import approx, do, input_error, same
from tests.distributed.test_many import RANKS, many_ranks
from tests.trained_run import tiny_systems, train_levels
from tests.training.tasks import Case, untrained_run


@pytest.fixture
def case(mnist_root, tmp_path):
    """A decoder of samples of two of three levels."""
    return untrained_run("generation", tiny_systems(mnist_root)["hrvqvae"], tmp_path)


def command(case, levels=2, options="--generation.samples 0"):
    line = f"train-decoder {case.path} --max-steps 2 --device cpu --generation.levels {levels}"
    return f"{line} {options}"


def test_samples_of_its_levels_are_decoded_by_it_and_nothing_else_is(case):
    before = hrvqvae.load(case.path)
    codes = before.encode(torch.rand(3, 1, 12, 12))
    file = before.compress(torch.rand(1, 1, 12, 12))
    case.train(learning_rate=0.01)
    after = hrvqvae.load(case.path)
    decoded = after.load_generator(2).decode(codes, 2, (12, 12))
    assert not same(decoded, before.decode(codes, 2, (12, 12)))
    for levels in (1, 3):
        assert after.load_generator(levels) is after.autoencoder
    assert after.load_generator(2, "progressive") is after.autoencoder
    for levels in (1, 2, 3):
        assert same(after.decode(codes, levels), before.decode(codes, levels))
    assert same(after.decompress(file, 2)[0], before.decompress(file, 2)[0])
    with input_error(r"decodes levels 1 to 2, not levels 1 to 3: give --lev"):
        after.load_generator(3, "generation")


def test_its_levels_are_those_of_the_prior_that_is_there(case):
    config = case.base.replace(**{"generation.levels": 0, "generation.samples": 0})
    with patch("hrvqvae.training.decoder.prior_folders", return_value={range(2): None}):
        assert resolve_samples(open_run(case.path), config).generation.levels == 2
    assert resolve_samples(open_run(case.path), config).generation.levels == 1


def test_a_resumed_training_is_the_one_that_never_stopped(case, tmp_path):
    resumed = case.copied(tmp_path / "resumed")
    case.train(schedule="constant")
    for steps in (5, 12):
        resumed.train(max_steps=steps, resume=steps > 5, schedule="constant")
    assert same(resumed.state(), case.state())
    assert {name.split(".")[0] for name in case.state()} >= {"discriminator_model", "file"}


def test_it_begins_with_the_progressive_decoder_and_its_shape(case):
    Case("progressive", case.path, case.base).train()
    progressive = storage.read(decoder_folder(case.path, "prefixes").model)[0]
    do(f"{command(case)} --generation.training.learning_rate 1e-30")
    trained, meta = storage.read(decoder_folder(case.path, GENERATION).model)
    assert_close(trained.pop("refiner.outward.weight").abs().max(), torch.tensor(0.0))
    for name, tensor in progressive.items():
        # every class, and none, begins as two levels do
        expected = tensor[1].expand(11, -1) if name.endswith("case.weight") else tensor
        assert_close(trained[f"decoder.{name}"], expected)
    assert meta["config"]["generation"]["levels"] == 2


def test_the_discriminator_joins_with_its_own_rate(case, monkeypatch):
    joined = []
    step = SampleTask.step

    def watched(task, state, batch):
        metrics = step(task, state, batch)
        networks = state.networks.values()
        first, second = (network.optimizer.param_groups[0]["lr"] for network in networks)
        assert second == approx(first / 2)
        joined.append("adaptive_weight" in metrics)
        return metrics

    monkeypatch.setattr(SampleTask, "step", watched)
    case.train()
    assert joined == [False] * 2 + [True] * 10


def test_its_samples_are_drawn_once_half_of_them_without_guidance(case, monkeypatch):
    train_levels(case.path, changes="class_dropout=0.3 training.max_steps=1")
    RunFolder(case.path).sampling.write_text('{"guidance": 2.0}')
    drawn = []

    def watch(*arguments, params, **options):
        drawn.append((len(arguments[2]), params.guidance))
        return sample_codes(*arguments, params=params, **options)

    monkeypatch.setattr("hrvqvae.training.decoder.sample_codes", watch)
    config = case.config(max_steps=2).replace(
        **{"generation.samples": 5, "generation.classes": 10, "generation.sample_batch": 4}
    )
    case.train(config=config)
    longer = config.replace(**{"generation.training.max_steps": 4})
    case.train(config=longer, resume=True)
    assert drawn == [(3, 1.0), (2, 2.0)]

    # others are refused: of another guidance, of other priors
    RunFolder(case.path).sampling.write_text('{"guidance": 1.5}')
    with input_error("was made for another state of the guidance; move"):
        case.train(config=longer, resume=True)
    RunFolder(case.path).sampling.write_text('{"guidance": 2.0}')
    train_levels(case.path, of={}, changes="training.max_steps=2", resume=True)
    with input_error("was made for another state of the priors; move"):
        case.train(config=longer, resume=True)


def test_an_evaluation_shows_the_levels_that_it_was_trained_for(case):
    case.train()
    for record in case.records("evaluation"):
        assert [error is None for error in record["level_mse"]] == [True, False, True]


def test_every_process_trains_on_samples(case):
    config = case.config(batch_size=RANKS).replace(**{"generation.sample_batch": 1})
    with many_ranks(), input_error(f"{RANKS} processes can't share a batch of samples of 1"):
        case.train(config=config)
