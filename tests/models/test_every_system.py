"""Every system and preset: commands, resumption, a step of training."""

import dataclasses
import json
from itertools import product
from pathlib import Path

import torch

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.config import presets
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.data.batches import Batch
from hrvqvae.data.images import read_image
from hrvqvae.models.build import build
from hrvqvae.priors.base import build_prior
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.prior import CodeBatch, PriorTask
from hrvqvae.training.state import TrainState
from tests.conftest import (
    do,
    generator,
    parametrize,
    random_images,
    same,
    shared_fixture,
    state_of,
    write_file,
    write_picture,
)
from tests.trained_run import tiny_systems


def moved(before, after):
    return {name for name, tensor in before.items() if not same(tensor, after[name])}


EVERY = tuple(SYSTEMS)


def train(folder, config, options, steps, priors=True):
    file = write_file(config, folder.with_suffix(".yaml"))
    constant = "--training.schedule constant --prior.training.schedule constant"
    commands = [f"train {file} --out {folder} {constant} {options}"]
    if priors:
        commands.append(f"train-prior {folder}")
    for command, (index, step) in product(commands, enumerate(steps)):
        torch.manual_seed(index)  # another process has another state of the generator
        do(f"{command} --max-steps {step} {'--resume' if index else ''}")


@shared_fixture
def runs(tmp_path_factory, mnist_root):
    folder = tmp_path_factory.mktemp("systems")
    for system, config in tiny_systems(mnist_root).items():
        train(folder / system, config, "", [4])
    return folder


@parametrize("system", EVERY)
def test_every_command(system, runs, tmp_path):
    run = runs / system
    image = tmp_path / "image.png"
    sheet = tmp_path / "sheet.png"
    exported = tmp_path / "exported"
    write_picture(image, 3, (12, 12), "L")
    report = json.loads(do(f"evaluate {run} --json"))
    assert report["prior_bits_per_image"] > 0
    assert len(report["levels"]) == len(RunFolder(run).read_config().model.num_symbols)
    do(f"export {run} {exported}")
    for command in (
        f"reconstruct {run} {image}",
        f"sample {run} -n 2 --class 4",
        f"sample {exported} -n 2",
        f"complete {run} {image} -n 2 --class 4",
    ):
        do(f"{command} -o {sheet} --force")
        assert read_image(sheet, 3).shape[1] >= 12


@parametrize(
    "system, options",
    [
        # tests/training/test_contract.py resumes hrvqvae; vqvae is the first part of vqgan
        *((system, "") for system in EVERY if system not in ("hrvqvae", "vqvae")),
        ("rqvae", "joint_beam=true beam=2"),
        ("vqvae2", "level_codewords=70"),
    ],
)
def test_resumed_to_the_bit(system, options, runs, tmp_path, mnist_root):
    tiny = tiny_systems(mnist_root)[system]
    given = " ".join(f"--model.quantizer.{option}" for option in options.split())
    unstopped = tmp_path / "whole" if options else runs / system
    parts = tmp_path / "parts"
    if options:
        train(unstopped, tiny, given, [4], priors=False)
    train(parts, tiny, given, [2, 4], priors=not options)
    run = RunFolder(unstopped)
    config = run.read_config()
    levels = () if options else range(len(config.model.num_symbols))
    for level in (None, *levels):
        states = []
        for path in (unstopped, parts):
            folder = RunFolder(path) if level is None else prior_folder(path, level)
            states.append(storage.read(folder.saved()[0])[0] | storage.read(folder.model)[0])
        assert same(*states), level
    # what others load has no discriminator
    assert storage.read(run.model)[0].keys() == build(config).state_dict().keys()


def _reduce(config):
    def narrow(section, **fields):
        fields = {name: value for name, value in fields.items() if hasattr(section, name)}
        return dataclasses.replace(section, **fields)

    network = narrow(config.prior.network, hidden_units=8, attention_heads=2, heads=2)
    sizes = {"hidden_units": 8, "residual_units": 8, "discriminator_units": 4}
    model = narrow(config.model, perceptual="none", adversarial_start=0, **sizes)
    data = narrow(config.data, size=min(*config.data.image_size, 64))
    return narrow(config, model=model, data=data, prior=narrow(config.prior, network=network))


_LEFT_OUT = {
    f"{system}/{data}" for system in EVERY for data in ("cifar10", "imagenet", "emoji32", "photos")
}


@parametrize("name", [name for name in presets.names() if name not in _LEFT_OUT])
def test_a_preset_builds_and_its_reduced_form_trains_a_step_of_every_stage(name):
    full = presets.get(name).config
    with torch.device("meta"):
        assert sum(map(torch.numel, build(full).parameters())) > 100_000
    config = _reduce(full)
    torch.manual_seed(0)
    model = build(config)
    images = random_images(2, config.data.channels, *config.data.image_size)
    model.initialize(images, generator())
    task = AutoencoderTask(config, RunFolder(Path()))
    state = TrainState.start(model, config.training, task.build_objective())
    before = {
        key: tensor.clone()
        for key, tensor in state.tensors().items()
        if "model." in key and tensor.is_floating_point()
    }
    task.step(state, Batch(images=images, labels=torch.zeros(2).long()))
    changed = moved(before, state.tensors())
    assert len(changed) > 0.7 * len(before)
    for network in state.networks.keys() - {"model"}:
        assert any(key.startswith(f"{network}_model.") for key in changed)
    codes = model.eval().encode(images)
    paths = model.codeword_indices(codes)
    for levels in config.prior_levels:
        prior = build_prior(config, levels, 3)
        trained = TrainState.start(prior, config.prior.training_of(levels.start))
        weights = state_of(prior)
        own = slice(levels.start, levels.stop)
        batch = CodeBatch(codes[own], (*paths[: levels.start],), torch.tensor([0, 2]))
        task_of_prior = PriorTask("", levels, config, (model, config, ""))
        # layers of a transformer begin with outputs of 0, behind which nothing moves at first
        for _ in range(2):
            task_of_prior.step(trained, batch)
        parameters = dict(prior.named_parameters())
        assert len(moved(parameters, weights)) > 0.7 * len(parameters)
