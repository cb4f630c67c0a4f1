"""Models and priors from disk, a trained model as one object, codes and samples of the shipped
MNIST model.
"""

import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from hrvqvae import load
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.entropy import fit_entropy_model, load_entropy_model
from hrvqvae.checkpoints.folder import (
    PROGRESSIVE,
    RunFolder,
    decoder_folder,
    open_run,
    prior_folder,
    require_trainable,
)
from hrvqvae.data.images import as_images, read_image
from hrvqvae.plots.sheets import draw_grid
from hrvqvae.priors.base import LogitSteps
from hrvqvae.priors.sampling import SamplingParams
from tests.conftest import (
    cells_of,
    do,
    drawn_digits,
    generator,
    input_error,
    parametrize,
    random_images,
    read_json,
    same,
    shared_fixture,
    with_quantizer,
    with_training,
)


def test_loading_from_anywhere(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    state = torch.get_rng_state()
    model = load(run.name)
    assert same(torch.get_rng_state(), state)
    monkeypatch.chdir("/")
    images = torch.rand(2, 1, 12, 12)
    model.compress(images)
    assert not model.autoencoder.training
    assert same(model.encode(images), load(run).encode(images))
    with input_error("there are [0-9]+ GPUs here"):
        load(run, device="cuda:99")
    with input_error("must be auto"):
        load(run, device="gpu")


@pytest.mark.usefixtures("in_tmp_path")
def test_runs_that_are_none():
    Path("empty").mkdir()
    Path("begun").mkdir()
    Path("begun/config.yaml").touch()
    Path("file").touch()
    for name, message in cells_of("""
            none | there is no such run folder
            empty | is not a run folder
            begun | has no model.safetensors yet.* train begun --resume$
            file | is not a run folder
            vqvae/mnist | is a preset.* mnist .*hrvqvae train vqvae/mnist --out runs/vqvae-mnist$
        """):
        with input_error(message):
            load(name)


@pytest.mark.usefixtures("in_tmp_path")
def test_models_of_the_package_are_not_trained(run):
    require_trainable("run")
    Path("mnist").mkdir()
    for name in ("mnist", "cifar10"):
        with input_error(f"hrvqvae export {name} DIR"):
            require_trainable(name)
    with input_error("there is no such run folder"):
        require_trainable("runs/none")
    shutil.copytree(run, "mnist", dirs_exist_ok=True)
    require_trainable("mnist")


def test_a_configuration_that_was_edited_is_refused(run):
    folder = RunFolder(run)
    before = folder.read_config()
    # what a run that goes on may change
    folder.write_config(with_training(before, max_steps=7, device="cpu"))
    assert open_run(run).load()[1].model == before.model
    folder.write_config(with_quantizer(before, beta=0.5))
    with input_error("run/config.yaml describes another model than model.safetensors"):
        load(run)
    folder.config.unlink()
    assert open_run(run).load()[1] == before  # the weights know their configuration


def test_what_was_made_for_another_state_is_refused(changed):
    told = "was made for another state of the autoencoder"
    with input_error(f"prefixes {told}"):
        load(changed)
    with input_error(f"level-1 {told}"):
        shutil.rmtree(decoder_folder(changed, PROGRESSIVE).path)
        load(changed).sample(1)
    with input_error(f"tables.hrvt {told}"):
        load_entropy_model(open_run(changed))


def test_an_entropy_model_is_fitted_when_it_is_needed(run, monkeypatch, caplog):
    """Once; without the training images, files are larger, which a model says once."""
    images = torch.rand(2, 1, 12, 12)
    model = load(run)
    short = partial(fit_entropy_model, duration=0.01)
    monkeypatch.setattr("hrvqvae.model.fit_entropy_model", short)
    files = model.compress(images)
    assert model.entropy_model.networks
    assert load(run).compress(images) == files
    assert same(load(run).decompress(files), model.decompress(files))

    RunFolder(run).tables.unlink()
    folder = RunFolder(run)
    folder.write_config(folder.read_config().replace(**{"data.root": "/nowhere"}))
    weights, meta = storage.read(folder.model)
    meta["config"]["data"]["root"] = "/nowhere"
    storage.write(folder.model, weights, meta)
    bare = load(run)
    assert same(
        bare.decompress(bare.compress(images)), bare.decode(bare.encode(images), size=(12, 12))
    )
    bare.compress(images)
    assert caplog.text.count("files are larger") == 1


def test_priors_of_other_classes_are_refused(full_run):
    path = prior_folder(full_run, 1).model
    tensors, meta = storage.read(path)
    # of more images is no fault
    counts = [count + 1 for count in meta["class_counts"]]
    storage.write(path, tensors, {**meta, "class_counts": counts})
    assert open_run(full_run).load_priors().class_counts == tuple(meta["class_counts"])
    storage.write(path, tensors, {**meta, "classes": meta["classes"][::-1]})
    with input_error(r"level-2.* trained on other classes than level 1"):
        open_run(full_run).load_priors()


def test_codes_as_one_tensor(run):
    model = load(run)
    images = torch.rand(2, 1, 12, 12)
    codes = model.encode(images)
    stacked = torch.stack(codes, 1)
    assert same(model.decode(stacked[:, :1], 1), model.decode(codes[:1], 1))
    for output in (stacked, model.decode(codes), *model.decompress(model.compress(images))):
        (output * torch.ones((), requires_grad=True)).sum().backward()  # they train another network


def test_samples_are_those_of_the_command_and_of_the_plain_sampler(full_run, tmp_path):
    model = load(full_run)
    options = {"temperature": 0.8, "top_k": 2, "top_p": 0.9}
    images = model.sample(6, class_name="7", seed=3, **options)
    assert images.shape == (6, 1, 12, 12)
    assert images.dtype == torch.float32
    params = SamplingParams(**options)
    for network in model.priors.networks:
        network.steps = LogitSteps
    plain = model.draw(6, seed=3, class_name="7", params=params)
    assert same(images, plain.images)
    assert plain.classes == ("7",) * 6
    sheet = tmp_path / "sheet.png"
    single = tmp_path / "single"
    drawing = "--class 7 --seed 3 --temperature 0.8 --top-k 2 --top-p 0.9"
    do(f"sample {full_run} -n 6 {drawing} -o {sheet} --save-dir {single}")
    assert same(read_image(sheet, 3), as_images(draw_grid(list(images)), 3)[0])
    for number, image in enumerate(images):
        written = read_image(single / f"7-{number:04d}.png", 1)
        assert same(written, (image * 255).round().byte())


def test_a_mask_lies_over_the_codes_as_the_image_does(full_run):
    mask = torch.ones(12, 12, dtype=torch.bool)
    mask[1, 2] = mask[0, 11] = False  # the image has a margin of a pixel, and a code has two
    for where in load(full_run).keep_part(torch.zeros(1, 12, 12), mask).masks:
        assert (~where).nonzero().tolist() == [[0, 6], [1, 1]]


@parametrize("keep, rows", [(0.5, 4), ("0.25", 2)])
def test_completions_keep_the_codes_of_that_part(full_run, keep, rows):
    model = load(full_run)
    image = random_images(1, 12, 12, rng=generator())
    drawn = model.draw(5, seed=2, class_name="3", kept=model.keep_part(image, keep))
    for codes, original in zip(drawn.codes, model.encode(image[None]), strict=True):
        expected = original.expand(5, -1, -1)
        assert same(codes[:, :rows], expected[:, :rows])
        assert not same(codes, expected)
    assert same(model.complete(image, 5, keep=keep, class_name="3", seed=2), drawn.images)


GOLDEN = Path(__file__).parents[1] / "golden" / "mnist_codes.json"
CODES = read_json(GOLDEN)


@shared_fixture
def model():
    return load("mnist")


def test_codes_of_images(model):
    images = torch.from_numpy(drawn_digits(4, CODES["image_seed"], 28)[0]).unsqueeze(1)
    codes = model.encode(images)
    assert [code.tolist() for code in codes] == CODES["image_codes"]
    assert same(pickle.loads(pickle.dumps(model)).encode(images), codes)
    decoded = model.decode(codes, size=(28, 28))
    assert (decoded - images / 255).square().mean() < 0.01
