"""Augmented copies, and priors that are told which copy they see."""

import signal

import numpy as np
import torch
from torch.nn.functional import interpolate

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.checkpoints.run import Run
from hrvqvae.config.parsing import override
from hrvqvae.data.batches import make_rng
from hrvqvae.data.copies import list_copies
from hrvqvae.model import load
from hrvqvae.priors.base import Level, Prior
from hrvqvae.training.prior import PriorTask, resolve_priors, train_priors
from tests.conftest import input_error, parametrize, random_images, same
from tests.kills import stop_at_step
from tests.priors.networks import of_each_kind, random_codes, random_prior
from tests.trained_run import GIVEN, GIVEN_GPT, silent, train_levels

COPIES = {"flip": "true", "shifts": "1", "variants": "2"}


def test_copies_are_what_they_claim():
    images = random_images(2, 3, 16, 24)
    copies = {copy.folder: copy for copy in list_copies(True, 1, 2)}
    assert list(copies) == [
        f"codes{name}{flipped}"
        for name in ("", "-shifted-1", "-varied-1", "-varied-2")
        for flipped in ("", "-flipped")
    ]
    assert [copy.index for copy in copies.values()] == [0, 0, 1, 1, 2, 2, 3, 3]

    def augment(name):
        function = copies[name].augment
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
    assert torch.equal(augment("codes-varied-2-flipped"), expected.flip(3))


@of_each_kind
def test_samples_are_drawn_for_copy_0(config):
    level = Level(grid=(3, 4), symbols=4, classes=3, copies=2)
    prior = random_prior(config, level)
    prior.copies.weight[0] = 0  # a training leaves it at 0
    codes = random_codes([level], 2)
    conditions = ([], torch.tensor([0, 2]))
    expected = prior.level_logits(codes, *conditions)
    assert same(expected, prior.level_logits(codes, *conditions, torch.tensor([0, 0])))
    moved = prior.level_logits(codes, *conditions, torch.tensor([0, 1]))[0] != expected[0]
    assert [bool(image.any(0).all()) for image in moved] == [False, True]


@parametrize("given", [GIVEN, GIVEN_GPT], ids=["pixelsnail", "gpt"])
def test_each_image_comes_with_the_label_of_its_copy(run, batches, given):
    train_levels(run, 1, of=given, **COPIES, training__max_steps="9")
    seen = [
        (codes.numpy().astype(np.uint8).tobytes(), label)
        for batch in batches
        for codes, label in zip(batch.codes[0], batch.copies.tolist(), strict=True)
    ]
    by_label = {label: set() for label in range(4)}
    for copy in list_copies(True, 1, 2):
        maps = np.load(RunFolder(run).codes.with_name(copy.folder) / "train-level-1.npy")
        by_label[copy.index] |= {codes.tobytes() for codes in maps}
    assert {label for _, label in seen} == {0, 1, 2, 3}
    assert all(codes in by_label[label] for codes, label in seen)

    # the embedding of copy 0 stays 0, the others learn
    weights = storage.read(next(iter(Run(run).priors.values())).file)[0]
    moved = weights["copies.weight"].abs().sum(1) > 0
    assert moved.tolist() == [False, True, True, True]


def test_a_resumed_training_with_copies_is_one_that_never_stopped(run, monkeypatch):
    changes = {**COPIES, "training__max_steps": "8"}
    train_levels(run, of=GIVEN_GPT, **changes)
    folder = prior_folder(run, 0, 1)
    expected = storage.read(folder.saved()[0])[0]
    folder.path.rename(run / "aside")
    stop_at_step(monkeypatch, PriorTask, 4, signal.SIGINT)
    train_levels(run, of=GIVEN_GPT, **changes)
    monkeypatch.undo()
    train_levels(run, of={}, resume=True)
    assert same(storage.read(folder.saved()[0])[0], expected)
    assert load(run).sample(1).shape == (1, 1, 12, 12)


def test_a_prior_begins_with_more_layers_and_labels_of_copies(run):
    train_levels(run, of=GIVEN_GPT)
    before = load(run).priors.networks[0]
    prior_folder(run, 0, 1).path.rename(run / "aside")
    changes = {"prior.network.layers": "3", "prior.variants": "2", "prior.shifts": "1"}
    config = resolve_priors(run, None, GIVEN_GPT | changes, resume=False)[range(2)]
    (run / "aside").rename(prior_folder(run, 0, 1).path)
    config = override(config, {"prior.training.init_from": str(run)})
    task = PriorTask(run, range(2), config, (load(run).autoencoder, config, ""))
    task.classes = tuple("0123456789")
    task.labels = np.zeros(1, np.int64)
    prior = task.build()
    told = "labels of copies begin at 0, 2 further layers as the identity"
    assert task.init_from(prior).endswith(told)
    codes = random_codes(prior.levels, 4)
    label = torch.arange(4)
    expected = before.level_logits(codes, [], label)
    assert same(prior.eval().level_logits(codes, [], label, torch.arange(4)), expected)


def test_copies_need_images_and_a_network_that_takes_labels(run, monkeypatch):
    fields = GIVEN | {"prior.variants": "2", "prior.codes": "none.tar"}
    with input_error(r"prior\.shifts and prior\.variants need the run's own"):
        train_priors(run, resolve_priors(run, 1, fields, resume=False), say=silent)
    monkeypatch.setattr(Prior, "make_embeddings", lambda *_: None)
    with input_error(r"prior\.variants must be 0: pixelsnail has no labels"):
        train_levels(run, 1, variants="1", class_dropout="0.1")
