"""The public object: what it takes, what it says, and defaults of torch that others have set."""

import re

import numpy as np
import torch

import hrvqvae
from benchmarks.common import TINY
from hrvqvae.training.options import choose_run_folder
from tests.conftest import (
    approx,
    double_precision,
    generator,
    input_error,
    parametrize,
    random_images,
    same,
    shared_fixture,
)


@shared_fixture
def model():
    return hrvqvae.load("mnist")


@shared_fixture
def images():
    return random_images(3, 1, 28, 28, rng=generator())


def test_codes_as_arrays_of_any_integers(model, images):
    codes = model.encode(images)  # as many images as levels
    expected = model.decode(codes)
    stacked = torch.stack(codes, 1).to(torch.int16)
    backwards = np.ascontiguousarray(stacked.numpy()[:, :, ::-1])[:, :, ::-1]
    for form in (stacked, backwards, [code.numpy().astype(np.uint8) for code in codes]):
        assert same(model.decode(form), expected)


def test_a_mask_of_numpy(model, images):
    mask = np.zeros((28, 28), bool)
    mask[:14] = True
    params = hrvqvae.SamplingParams(levels=1)
    expected = model.complete(images[0], keep=0.5, params=params)
    picture = hrvqvae.to_pil(images[0])
    for form in (mask[::-1].copy()[::-1], mask.astype(">i4")):
        assert same(model.complete(picture, keep=form, params=params), expected)


def test_evaluate_takes_a_folder_and_a_data_set(images, tmp_path):
    """And measures with the beam of the model."""
    pictures = [hrvqvae.to_pil(image) for image in images]
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.png")
    for beam in (None, 16):
        model = hrvqvae.load("mnist", beam=beam)
        error = model.decode(model.encode(images)) - images / 255
        for data in (str(tmp_path), torch.utils.data.Subset(pictures, range(3))):
            report = model.evaluate(data).report
            assert report.images == 3
            assert report.mse == approx(float(error.square().mean()), rel=1e-5)


def test_samples_can_be_changed_in_place(model):
    """They are no inference tensors."""
    (drawn,) = model.draw_batches(range(1))
    for tensor in (drawn.images, *drawn.codes):
        tensor.mul_(1)


def test_folders_of_a_model(model, tmp_path, monkeypatch):
    """A path may begin with the home folder; a model stays where it is if the working directory
    changes.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    model.save_pretrained("~/run")
    assert choose_run_folder("mnist", "~/run").path == tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    loaded = hrvqvae.load("run")
    monkeypatch.chdir(tmp_path / "run")
    loaded.save_pretrained("copy")
    assert (tmp_path / "run/copy/model.safetensors").is_file()


def test_priors_are_on_the_device_of_a_model_that_moves(monkeypatch):
    """The device "meta" stands for a GPU."""
    model = hrvqvae.load("mnist")
    generator = model.load_generator()
    monkeypatch.setattr("hrvqvae.model.resolve_device", torch.device)
    for device in ("cpu", "meta"):
        modules = (*model.to(device).priors.networks, model.load_generator())
        weights = [weight for module in modules for weight in module.parameters()]
        assert {weight.device.type for weight in weights} == {device}
    assert generator is modules[-1] is model.autoencoder, "which has no decoder of samples"


REFUSED = {
    "codes of level 1 have shape (14, 14); expected (B, H, W)": lambda model: model.decode(
        tuple(torch.zeros(3, 14, 14, dtype=torch.long))
    ),
    "levels is 99; this model decodes 1, 2, 3": lambda model: model.encoder(levels=99),
    "indices is [0, -1]; it must be at least 0": lambda model: [*model.draw_batches([0, -1])],
    "keep is bottom": lambda model: model.complete(torch.zeros(1, 28, 28), keep="bottom"),
    "it must be (Y, X) bool": lambda model: model.complete(
        torch.zeros(1, 28, 28), keep=torch.ones(28, 28, device="meta")
    ),
    "there are 2 images": lambda model: model.complete(torch.zeros(2, 1, 28, 28)),
}


@parametrize("message", REFUSED)
def test_wrong_arguments(message, model):
    with input_error(re.escape(message)):
        REFUSED[message](model)


DEFAULTS = {
    "float64": double_precision,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "meta device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def use_all(images, data, out):
    """Return what a loaded model gives, and the digest of a trained one."""
    model = hrvqvae.load("mnist")
    trained = hrvqvae.train("hrvqvae/mnist", data=data, out=out, max_steps=2, **TINY)
    codes = model.encode(images)
    report = model.evaluate([*images], rate=False).report
    files = model.compress(images)
    return [*codes, model.sample(2), files, trained.run.digest, report.mse, report.ssim]


@shared_fixture
def plain(images, mnist_root, tmp_path_factory):
    return use_all(images, mnist_root, tmp_path_factory.mktemp("plain"))


@parametrize("default", DEFAULTS)
def test_defaults_of_torch_change_nothing(default, plain, images, tmp_path, mnist_root):
    with DEFAULTS[default]():
        changed = use_all(images, mnist_root, tmp_path)
    for value, expected in zip(changed, plain, strict=True):
        assert same(value, expected) if isinstance(value, torch.Tensor) else value == expected
