"""The decoder of samples, sampling.json, and priors of the first levels alone."""

import shutil

import pytest
import torch

from hrvqvae import load
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import (
    GENERATION,
    PROGRESSIVE,
    RunFolder,
    config_of,
    decoder_folder,
    open_run,
    prior_folder,
)
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.training.decoder import SampleTask
from tests.checkpoints.conftest import write_decoder
from tests.conftest import cells_of, damage_error, do, input_error, parametrize, same

BY_GENERATION = '{"levels": 2, "decoder": "generation"}'


@pytest.fixture
def generative(full_run):
    """A run folder with a decoder for samples, which sampling.json names."""
    write_decoder(full_run, GENERATION, -0.05)
    RunFolder(full_run).sampling.write_text(BY_GENERATION)
    return full_run


def test_samples_alone_are_decoded_by_the_decoder_that_sampling_json_names(generative):
    model = load(generative)
    drawn = model.draw(2)
    assert len(drawn.codes) == 2
    reconstructed = model.decode(drawn.codes, size=(12, 12))
    assert not same(drawn.images, reconstructed)
    by_name = model.load_generator(decoder=GENERATION)
    assert same(by_name.decode(drawn.codes, 2, (12, 12)), drawn.images)

    RunFolder(generative).sampling.write_text('{"levels": 2, "decoder": "progressive"}')
    progressive = load(generative)
    assert same(progressive.draw(2).images, reconstructed)
    assert same(progressive.decode(drawn.codes, size=(12, 12)), reconstructed)


CODES = (torch.zeros(1, 7, 7, dtype=torch.int64),) * 2


def decode(run):
    """Decode codes of two levels by the decoder for samples."""
    return load(run).load_generator().decode(CODES, 2)


def test_a_decoder_of_samples_is_exported(generative, tmp_path):
    out = RunFolder(tmp_path / "out")
    for compact in (True, False):
        shutil.rmtree(out.path, ignore_errors=True)
        export(generative, out.path, compact=compact)
        load(out.path).load_generator()
    assert same(decode(out.path), decode(generative))


@parametrize(
    "text, reason",
    cells_of(r"""
        [1] | mapping
        [ | Expecting
        {"guidence": 2} | guidence
        {"guidance": "x"} | guidance is 'x'; it must be from 0 to 1000
    """),
)
def test_a_wrong_sampling_json_is_one_line(text, reason, tmp_path):
    folder = RunFolder(tmp_path)
    folder.sampling.write_text(text)
    with damage_error(rf"sampling\.json is damaged: .*{reason}") as error:
        folder.read_sampling()
    assert "\n" not in str(error.value)


def test_samples_of_the_first_levels_need_their_priors_alone(full_run, tmp_path):
    model = load(full_run)
    before = model.sample(3, levels=2)
    assert same(model.decode(model.draw(3).codes, 2, (12, 12)), before)
    shutil.rmtree(prior_folder(full_run, 2).path)
    model = load(full_run)
    assert same(model.sample(3, levels=2), before)
    assert model.classes == tuple("0123456789")
    run = open_run(full_run)
    assert run.count_prior_levels() == 2
    for text, levels in (('{"guidance": 2, "levels": 2}', 2), ("{}", None)):
        run.sampling.write_text(text)
        assert open_run(full_run).sampling_options(3.0) == {"guidance": 3.0, "levels": levels}
    do(f"sample {full_run} -n 2 --levels 2 -o {tmp_path}/sheet.png")
    with input_error("has no prior of level 3; train it: hrvqvae train-prior"):
        model.sample(3)


def test_samples_of_the_priors_are_drawn_and_looked_at(full_run):
    """The decoder is told their classes."""
    shutil.rmtree(full_run / PROGRESSIVE)
    line = f"train-decoder {full_run} --max-steps 4 --device cpu --generation.levels 2"
    small = "--generation.samples 6 --generation.sample_batch 4 --generation.training.batch_size 4"
    do(f"{line} {small} --generation.adversarial_start 1 --generation.redraw 0")
    meta = storage.read_meta(decoder_folder(full_run, GENERATION).model)
    task = SampleTask(full_run, config_of(meta, full_run))
    task.open_data()
    task.read_data()
    codes, classes = task.samples
    assert [len(level) for level in codes] == [6, 6]
    assert classes.min() >= 0
    model = load(full_run)
    drawn = model.draw(3, seed=1 << 31, params=SamplingParams(levels=2))
    assert same(tuple(level[:3] for level in codes), drawn.codes)

    # images of one code differ by their class
    generator = model.load_generator(2)
    same_codes = tuple(level[:1].expand(2, -1, -1) for level in codes)
    images = generator.of_classes(torch.tensor([3, 3])).decode(same_codes)
    others = generator.of_classes(torch.tensor([3, 4])).decode(same_codes)
    unknown = generator.of_classes(torch.tensor([-1, 99])).decode(same_codes)
    assert same(images[0], others[0])
    assert not same(images[1], others[1])
    assert same(unknown, generator.decode(same_codes))
