"""Augmented copies, and priors that are told which copy they see."""

import shutil
from unittest.mock import patch

import torch
from torch.testing import assert_close

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import open_run, prior_folder, prior_folders
from hrvqvae.data.copies import list_copies
from hrvqvae.data.loading import load_images
from hrvqvae.priors.base import Level
from hrvqvae.training.prior import PriorTask, split_held_out
from tests.conftest import parametrize, random_images, same
from tests.priors.networks import of_each_kind, random_codes, random_prior
from tests.trained_run import GIVEN, GIVEN_GPT, fields, train_levels

COPIES = "flip=true shifts=1 variants=2"


def test_copies_are_what_they_claim():
    images = random_images(2, 3, 16, 24)
    copies = list(list_copies(True, 1, 2))
    changed = {copy.folder: copy.augment(images) for copy in copies if copy.augment}
    assert ["codes", *changed] == [
        f"codes{name}{flipped}"
        for name in ("", "-shifted-1", "-varied-1", "-varied-2")
        for flipped in ("", "-flipped")
    ]
    assert [copy.index for copy in copies] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert same(changed["codes-flipped"], images.flip(3))

    # a shifted copy is moved by at most an eighth of a side
    inner = changed["codes-shifted-1"][:, :, 2:-2, 3:-3]
    rows = images.unfold(2, 12, 1).unfold(3, 18, 1)
    moved = [same(rows[:, :, top, left], inner) for top in range(5) for left in range(7)]
    assert sum(moved) == 1
    assert not moved[2 * 7 + 3]

    # an enlarged copy is a crop, a coloured copy has a factor per channel
    assert changed["codes-varied-1"].shape == images.shape
    shares = changed["codes-varied-2"] / images
    dark = (images > 100) & (images < 200)
    for channel in range(3):
        factors = shares[:, channel][dark[:, channel]]
        assert factors.max() - factors.min() < 0.02
        assert 0.75 < factors.mean() < 1.25


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
def test_an_epoch_has_each_copy_of_an_image_once_with_its_label(run, given):
    model, config = open_run(run).load()
    images = torch.from_numpy(load_images(config.data, "train").pixels)
    kept, _ = split_held_out(len(images), 0.05, 0)
    expected = [
        (codes.tolist(), copy.index)
        for copy in list_copies(True, 1, 2)
        for codes in model.encode(copy.augment(images) if copy.augment else images)[0][kept]
    ]
    epoch = f"training.batch_size={len(kept)} training.max_steps=8"
    with patch.object(PriorTask, "step", autospec=True, side_effect=PriorTask.step) as step:
        train_levels(run, 1, f"{COPIES} {epoch}", of=given)
    seen = [
        (codes.tolist(), label)
        for _, _, batch in (call.args for call in step.call_args_list)
        for codes, label in zip(batch.codes[0], batch.copies.tolist(), strict=True)
    ]
    assert sorted(seen) == sorted(expected)

    # the embedding of copy 0 stays 0, the others learn
    (prior,) = prior_folders(run).values()
    moved = storage.read(prior.model)[0]["copies.weight"].any(1)
    assert moved.tolist() == [False, True, True, True]


def test_a_prior_begins_with_other_classes_copies_and_output(run, tmp_path):
    """The rest of the network is kept, and copies have no effect yet."""
    source = shutil.copytree(run, tmp_path / "source")
    train_levels(source, of=GIVEN_GPT | {"prior.network.output": "choices"})
    changes = f"variants=2 shifts=1 class_dropout=0.3 training.init_from={source}"
    still = fields("prior.training", "learning_rate=1e-12 max_steps=1")
    train_levels(run, of=GIVEN_GPT | still | {"prior.network.output": "sums"}, changes=changes)
    first, second = (storage.read(prior_folder(path, 0, 1).model)[0] for path in (source, run))
    assert len(second["classes.weight"]) == len(first["classes.weight"]) + 1
    assert second["copies.weight"].abs().max() < 1e-9
    for name in first:
        if name.split(".")[0] not in ("classes", "copies", "heads"):
            assert_close(first[name], second[name], atol=1e-4, rtol=1e-4)
