"""Augmented copies, and priors that are told which copy they see."""

import shutil
from unittest.mock import patch

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.testing import assert_close

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import open_run, prior_folder, prior_folders
from hrvqvae.data.batches import make_rng
from hrvqvae.data.copies import list_copies
from hrvqvae.data.loading import load_images
from hrvqvae.model import load
from hrvqvae.priors.base import Level
from hrvqvae.training.prior import PriorTask, resolve_priors, split_held_out
from tests.conftest import parametrize, random_images, same
from tests.priors.networks import of_each_kind, random_codes, random_prior
from tests.trained_run import GIVEN, GIVEN_GPT, fields, train_levels

COPIES = "flip=true shifts=1 variants=2"


def test_copies_are_what_they_claim():
    images = random_images(2, 3, 16, 24)
    copies = {copy.folder: copy for copy in list_copies(True, 1, 2)}
    assert list(copies) == [
        f"codes{name}{flipped}"
        for name in ("", "-shifted-1", "-varied-1", "-varied-2")
        for flipped in ("", "-flipped")
    ]
    assert [copy.index for copy in copies.values()] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert copies["codes"].augment is None

    # a shifted copy is the first that is drawn elsewhere than the image
    drawn = make_rng("shift", 1).integers(0, [5, 7], (100, 2)).tolist()
    top, left = next(corner for corner in drawn if corner != [2, 3])
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (3, 3)), "reflect")
    shifted = torch.from_numpy(padded[:, :, top : top + 16, left : left + 24])

    # an enlarged copy is a crop, resized
    rng = make_rng("variant", 1)
    scale = 1 + rng.uniform(0.05, 0.2)
    rows, columns = round(16 / scale), round(24 / scale)
    assert rows < 16
    top, left = int(rng.integers(17 - rows)), int(rng.integers(25 - columns))
    crop = images[:, :, top : top + rows, left : left + columns].float()
    enlarged = interpolate(crop, (16, 24), mode="bicubic", antialias=True)

    # a coloured copy has a factor per channel
    rng = make_rng("variant", 2)
    gains = rng.uniform(0.85, 1.15) * rng.uniform(0.93, 1.07, 3)
    coloured = images * torch.from_numpy(gains).float()[:, None, None]
    for name, expected in (
        ("codes-flipped", images.flip(3)),
        ("codes-shifted-1", shifted),
        ("codes-varied-1", enlarged),
        ("codes-varied-2", coloured),
        ("codes-varied-2-flipped", coloured.flip(3)),
    ):
        pixels = expected.round().clamp(0, 255).to(torch.uint8)
        function = copies[name].augment
        assert same(function(images), pixels), name


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


def test_a_prior_begins_with_another_output(run, tmp_path):
    source = shutil.copytree(run, tmp_path / "source")
    train_levels(source, of=GIVEN_GPT | {"prior.network.output": "choices"})
    begun = {"prior.training.init_from": str(source), "prior.network.output": "sums"}
    train_levels(
        run,
        of=GIVEN_GPT | fields("prior.training", "learning_rate=1e-12 max_steps=1") | begun,
    )
    first, second = (storage.read(prior_folder(path, 0, 1).model)[0] for path in (source, run))
    kept = [name for name in first if not name.startswith("heads.")]
    for name in kept:
        assert_close(first[name], second[name], atol=1e-4, rtol=1e-4)


def test_a_prior_begins_with_labels_of_copies(run, tmp_path):
    source = shutil.copytree(run, tmp_path / "source")
    train_levels(source, of=GIVEN_GPT)
    model = load(source)
    changes = f"variants=2 shifts=1 training.init_from={source}"
    given = GIVEN_GPT | fields("prior", changes)
    (config,) = resolve_priors(run, None, given, resume=False).values()
    task = PriorTask(run, range(2), config, (model.autoencoder, config, ""))
    task.classes = model.classes
    task.labels = np.zeros(1, np.int64)
    prior = task.build()
    assert task.init_from(prior).endswith("without its copies")
    codes = random_codes(prior.levels, 4)
    label = torch.arange(4)
    expected = model.priors.networks[0].level_logits(codes, [], label)
    assert same(prior.eval().level_logits(codes, [], label, label), expected)
