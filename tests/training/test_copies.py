"""Augmented copies, and priors that are told which copy they see."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.checkpoints.run import Run
from hrvqvae.config.parsing import override
from hrvqvae.data.batches import make_rng
from hrvqvae.data.copies import list_copies
from hrvqvae.model import load
from hrvqvae.models.objective import Metrics
from hrvqvae.priors.base import Level, Prior
from hrvqvae.training.prior import CodeBatch, PriorTask, resolve_priors, train_priors
from hrvqvae.training.state import TrainState
from tests.conftest import input_error, same
from tests.kills import at_step
from tests.priors.test_gpt import SMALL, random_codes
from tests.priors.test_pixelsnail import network, random_prior
from tests.trained_run import GIVEN, GIVEN_GPT, silent, train_levels

COPIES = {"flip": "true", "shifts": "1", "variants": "2"}


def test_copies_are_what_they_claim() -> None:
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    copies = {copy.folder: copy for copy in list_copies(True, 1, 2)}
    assert list(copies) == [
        f"codes{name}{flipped}"
        for name in ("", "-shifted-1", "-varied-1", "-varied-2")
        for flipped in ("", "-flipped")
    ]
    assert [copy.index for copy in copies.values()] == [0, 0, 1, 1, 2, 2, 3, 3]

    def augment(name: str) -> Tensor:
        function = copies[name].augment
        assert function is not None
        return function(images)

    assert copies["codes"].augment is None
    assert torch.equal(augment("codes-flipped"), images.flip(3))

    # an enlarged copy is a crop, resized
    rng = make_rng("variant", 1)
    scale = 1 + rng.uniform(0.05, 0.2)
    rows, columns = round(16 / scale), round(24 / scale)
    assert rows < 16
    top, left = int(rng.integers(17 - rows)), int(rng.integers(25 - columns))
    crop = images[:, :, top : top + rows, left : left + columns].float()
    enlarged = interpolate(crop, (16, 24), mode="bicubic", antialias=True)
    expected = enlarged.round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(augment("codes-varied-1"), expected)

    # a coloured copy has a factor per channel
    rng = make_rng("variant", 2)
    gains = rng.uniform(0.85, 1.15) * rng.uniform(0.93, 1.07, 3)
    coloured = images.numpy() * gains.astype(np.float32)[:, None, None]
    expected = torch.from_numpy(coloured.round().clip(0, 255).astype(np.uint8))
    assert torch.equal(augment("codes-varied-2"), expected)
    mirrored = augment("codes-varied-2-flipped")
    assert torch.equal(mirrored, augment("codes-varied-2").flip(3))


@pytest.mark.parametrize("kind", ["gpt", "pixelsnail"])
def test_samples_are_drawn_for_copy_0(kind: str) -> None:
    level = Level(grid=(3, 4), symbols=4, classes=3, copies=2)
    prior: Prior = random_prior(SMALL if kind == "gpt" else network(), level)
    assert prior.copies is not None
    prior.copies.weight[0] = 0  # a training leaves it at 0
    codes = random_codes([level], 2)
    conditions = ([], torch.tensor([0, 2]))
    expected = prior.level_logits(codes, *conditions)
    assert same(expected, prior.level_logits(codes, *conditions, torch.tensor([0, 0])))
    moved = prior.level_logits(codes, *conditions, torch.tensor([0, 1]))[0] != expected[0]
    assert [bool(image.any(0).all()) for image in moved] == [False, True]


@pytest.mark.parametrize("given", [GIVEN, GIVEN_GPT], ids=["pixelsnail", "gpt"])
def test_each_image_comes_with_the_label_of_its_copy(
    run: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    seen = list[tuple[bytes, int]]()
    original = PriorTask.step

    def step(self: PriorTask, state: TrainState, batch: CodeBatch) -> Metrics:
        assert batch.copies is not None
        images = (codes.numpy().astype(np.uint8).tobytes() for codes in batch.codes[0])
        seen.extend(zip(images, batch.copies.tolist(), strict=True))
        return original(self, state, batch)

    monkeypatch.setattr(PriorTask, "step", step)
    train_levels(run, 1, of=given, **COPIES, training__max_steps="9")
    by_label = {label: set[bytes]() for label in range(4)}
    for copy in list_copies(True, 1, 2):
        maps = np.load(RunFolder(run).codes.with_name(copy.folder) / "train-level-1.npy")
        by_label[copy.index] |= {codes.tobytes() for codes in maps}
    assert {label for _, label in seen} == {0, 1, 2, 3}
    assert all(codes in by_label[label] for codes, label in seen)

    # the embedding of copy 0 stays 0, the others learn
    weights = storage.read(next(iter(Run(run).priors.values())).file)[0]
    moved = weights["copies.weight"].abs().sum(1) > 0
    assert moved.tolist() == [False, True, True, True]


def test_a_resumed_training_with_copies_is_one_that_never_stopped(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {**COPIES, "training__max_steps": "8"}
    train_levels(run, of=GIVEN_GPT, **fields)
    folder = prior_folder(run, 0, 1)
    expected = storage.read(folder.saved()[0])[0]
    folder.path.rename(run / "aside")
    at_step(monkeypatch, PriorTask, 4, lambda _: signal.raise_signal(signal.SIGINT))
    train_levels(run, of=GIVEN_GPT, **fields)
    monkeypatch.undo()
    train_levels(run, of={}, resume=True)
    weights = storage.read(folder.saved()[0])[0]
    assert weights.keys() == expected.keys()
    assert same([weights[name] for name in expected], list(expected.values()))
    assert load(run).sample(1).shape == (1, 1, 12, 12)


def test_a_prior_begins_with_more_layers_and_labels_of_copies(run: Path) -> None:
    train_levels(run, of=GIVEN_GPT)
    before = load(run).priors.networks[0]
    prior_folder(run, 0, 1).path.rename(run / "aside")
    fields = {"prior.network.layers": "3", "prior.variants": "2", "prior.shifts": "1"}
    config = resolve_priors(run, None, GIVEN_GPT | fields, resume=False)[range(2)]
    (run / "aside").rename(prior_folder(run, 0, 1).path)
    config = override(config, {"prior.training.init_from": str(run)})
    task = PriorTask(run, range(2), config, (load(run).autoencoder, config, ""))
    task.classes = tuple("0123456789")
    task.labels = np.zeros(1, np.int64)
    prior = task.build()
    message = task.init_from(prior)
    assert message.endswith("labels of copies begin at 0, 2 further layers as the identity")
    codes = random_codes(list(prior.levels), 4)
    label = torch.arange(4)
    expected = before.level_logits(codes, [], label)
    logits = prior.eval().level_logits(codes, [], label, torch.tensor([0, 1, 2, 3]))
    assert same(logits, expected)


def test_copies_need_images_and_a_network_that_takes_labels(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = GIVEN | {"prior.variants": "2", "prior.codes": "none.tar"}
    with input_error(r"prior\.shifts and prior\.variants need the run's own"):
        train_priors(run, resolve_priors(run, 1, fields, resume=False), say=silent)
    monkeypatch.setattr(Prior, "make_embeddings", lambda *_: None)
    with input_error(r"prior\.variants must be 0: pixelsnail has no labels"):
        train_levels(run, 1, variants="1", class_dropout="0.1")
