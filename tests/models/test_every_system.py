"""Every system and preset: commands, resumption, a step of training."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.config import Config, presets
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.data.batches import Batch
from hrvqvae.data.images import read_image
from hrvqvae.model import Model
from hrvqvae.models.build import build
from hrvqvae.priors.base import build_prior
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.prior import CodeBatch, PriorTask
from hrvqvae.training.state import TrainState
from tests.conftest import do, done, same, write_file, write_picture
from tests.trained_run import tiny_systems, undrawn

EVERY = tuple(SYSTEMS)


def train(
    folder: Path, config: Config, options: list[str], steps: tuple[str, ...], priors: bool = True
) -> None:
    file = write_file(config, folder.with_suffix(".yaml"))
    constant = ["--training.schedule", "constant", "--prior.training.schedule", "constant"]
    first = ["train", file, "--out", folder, *constant, *options]
    with undrawn():
        for command in [first, ["train-prior", folder]] if priors else [first]:
            for index, step in enumerate(steps):
                torch.manual_seed(index)  # another process has another state of the generator
                do(*command, "--max-steps", step, *(["--resume"] if index else []))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Path:
    folder = tmp_path_factory.mktemp("systems")
    for system, config in tiny_systems(mnist_root).items():
        train(folder / system, config, [], ("4",))
    return folder


@pytest.mark.parametrize("system", EVERY)
def test_every_command(system: str, runs: Path, tmp_path: Path) -> None:
    run = runs / system
    image = tmp_path / "image.png"
    exported = tmp_path / "exported"
    write_picture(image, 3, (12, 12), "L")
    report = json.loads(done("evaluate", run, "--json")[1])
    assert report["prior_bits_per_image"] > 0
    assert len(report["levels"]) == len(RunFolder(run).read_config().model.num_symbols)
    do("export", run, exported)
    for command in (
        ("reconstruct", run, image),
        ("sample", run, "-n", 2, "--class", 4),
        ("sample", exported, "-n", 2),
        ("complete", run, image, "-n", 2, "--class", 4),
    ):
        do(*command, "-o", tmp_path / "sheet.png", "--force")
        assert read_image(tmp_path / "sheet.png", 3).shape[1] >= 12


def _options(**fields: str) -> list[str]:
    return [word for name, value in fields.items() for word in (f"--model.quantizer.{name}", value)]


@pytest.mark.parametrize(
    ("system", "options"),
    [
        *((system, []) for system in EVERY),
        ("rqvae", _options(joint_beam="true", beam="2")),
        ("vqvae2", _options(level_codewords="70")),
        ("hrvqvae", _options(levels="4", linked="2", update="gradient")),
    ],
)
def test_resumed_to_the_bit(
    system: str, options: list[str], runs: Path, tmp_path: Path, mnist_root: Path
) -> None:
    tiny = tiny_systems(mnist_root)[system]
    whole_run = tmp_path / "whole" if options else runs / system
    if options:
        train(whole_run, tiny, options, ("4",), priors=False)
    train(tmp_path / "parts", tiny, options, ("2", "4"), priors=not options)
    run = RunFolder(whole_run)
    config = run.read_config()
    if "--model.quantizer.joint_beam" in options:
        assert Model(whole_run, beam=5).config.model.quantizer.beam == 5
    for level in (None, *range(0 if options else len(config.model.num_symbols))):
        states = []
        for path in (whole_run, tmp_path / "parts"):
            folder = RunFolder(path) if level is None else prior_folder(path, level)
            states.append(storage.read(folder.saved()[0])[0] | storage.read(folder.model)[0])
        assert same(*states), level
    weights = storage.read(run.model)[0]
    assert weights.keys() == build(config).state_dict().keys(), (
        "what others load has no discriminator"
    )


def _reduce(config: Config) -> Config:
    def narrow(section: Any, **fields: object) -> Any:
        return dataclasses.replace(
            section, **{name: value for name, value in fields.items() if hasattr(section, name)}
        )

    network = narrow(config.prior.network, hidden_units=8, attention_heads=2, heads=2)
    fields = {
        "hidden_units": 8,
        "residual_units": 8,
        "adversarial_start": 0,
        "discriminator_units": 4,
    }
    return dataclasses.replace(
        config,
        model=narrow(config.model, perceptual="none", **fields),
        data=narrow(config.data, size=min(*config.data.image_size, 64)),
        prior=narrow(config.prior, network=network),
    )


_LEFT_OUT = {
    f"{system}/{data}" for system in EVERY for data in ("cifar10", "imagenet", "emoji32", "photos")
}


@pytest.mark.parametrize("name", [name for name in presets.names() if name not in _LEFT_OUT])
def test_a_preset_builds_and_its_reduced_form_trains_a_step_of_every_stage(name: str) -> None:
    whole = presets.get(name).config
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build(whole).parameters()) > 100_000
    config = _reduce(whole)
    torch.manual_seed(0)
    model = build(config)
    images = torch.randint(
        256, (2, config.data.channels, *config.data.image_size), dtype=torch.uint8
    )
    model.initialize(images, torch.Generator().manual_seed(0))
    task = AutoencoderTask(config, RunFolder(Path()))
    state = TrainState.start(model, config.training, task.build_objective())
    parameters = {key: tensor for key, tensor in state.tensors().items() if "model." in key}
    before = {
        key: tensor.clone() for key, tensor in parameters.items() if tensor.is_floating_point()
    }
    assert math.isfinite(
        task.step(state, Batch(images=images, labels=torch.zeros(2).long()))["loss"]
    )
    after = state.tensors()
    moved = {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}
    assert len(moved) > 0.7 * len(before)
    for network in state.networks.keys() - {"model"}:
        assert any(key.startswith(f"{network}_model.") for key in moved)
    model.eval()
    codes = model.encode(images)
    for levels in config.prior_levels:
        prior = build_prior(config, levels, 3)
        trained = TrainState.start(prior, config.prior.training_of(levels.start))
        old = [parameter.clone() for parameter in prior.parameters()]
        level_codes = codes[levels.start : levels.stop]
        coarser = codes[: levels.start]
        batch = CodeBatch(level_codes, tuple(model.codeword_indices(coarser)), torch.tensor([0, 2]))
        task_of_prior = PriorTask("", levels, config, (model, config, ""))
        for _ in range(
            2
        ):  # layers of a transformer begin with outputs of 0, behind which nothing moves at first
            task_of_prior.step(trained, batch)
        new = [
            not torch.equal(tensor, other)
            for tensor, other in zip(old, prior.parameters(), strict=True)
        ]
        assert sum(new) > 0.7 * len(new)
