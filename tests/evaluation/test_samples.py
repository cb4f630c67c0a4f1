"""Distances between sets of images, their features, bits of codes, against equations in numpy;
evaluation of a run.
"""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch.testing import assert_close
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.kid import poly_mmd

from hrvqvae import load
from hrvqvae.checkpoints.folder import open_run
from hrvqvae.codes.maps import CodeMaps
from hrvqvae.compression import hrv
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.learning import fit
from hrvqvae.config import DataConfig, Geometry
from hrvqvae.data.batches import ImageSet
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation import samples
from hrvqvae.evaluation.classifier import TrainedClassifier
from hrvqvae.evaluation.report import (
    choose_data,
    evaluate_run,
    measure_file_bits,
    measure_label_bits,
    measure_rate,
)
from hrvqvae.evaluation.samples import (
    Features,
    RealImages,
    choose_features,
    measure_samples,
)
from hrvqvae.models import published
from hrvqvae.priors.base import Level, Prior, Priors
from hrvqvae.priors.configs import PixelSNAILConfig
from hrvqvae.priors.generative import Sampled
from tests.conftest import (
    approx,
    do,
    done,
    generator,
    input_error,
    refused,
    with_data,
    write_file,
    write_mnist,
    write_picture,
)
from tests.trained_run import tiny_run, write_untrained_classifier

PIXELS = Features("", lambda images: images.flatten(1))


def frechet_by_hand(left, right):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))."""
    first, second = (np.cov(x, rowvar=False) for x in (left, right))
    difference = left.mean(0) - right.mean(0)
    roots = sqrtm(first @ second).real
    return float(difference @ difference + np.trace(first + second - 2 * roots))


def share_inside(points, centres):
    """The share of points in a ball around a centre that reaches to its third other centre."""
    radii = torch.cdist(centres, centres).sort(1).values[:, 3]
    return float((torch.cdist(points, centres) <= radii).any(1).double().mean())


def sets(count):
    rng = generator()
    return tuple(torch.rand(count, 1, 2, 3, generator=rng) * scale for scale in (1.0, 0.9, 0.3))


@patch.object(samples, "_BLOCK", 32)
def test_distances_by_hand():
    real, near, far = sets(80)
    kept = RealImages(PIXELS, [real[:50], real[50:]])
    assert kept.frechet_name == "FID of 80 images"
    for drawn in (near, far, near):
        left, right = (images.flatten(1).double() for images in (real, drawn))
        distances = kept.compare([drawn[:30], drawn[30:]])
        assert distances.frechet == approx(frechet_by_hand(left.numpy(), right.numpy()), rel=1e-4)
        assert distances.kernel == approx(float(poly_mmd(left, right)), rel=1e-6)
        assert distances.precision == approx(share_inside(right, left))
        assert distances.recall == approx(share_inside(left, right)) != distances.precision
    assert kept.compare([real]).frechet == approx(0, abs=1e-4)
    plain = RealImages(Features("pixels", PIXELS.extract), [real])
    assert plain.frechet_name == "Frechet distance of 80 images, features of pixels"


def test_numbers_of_images_that_have_no_distance():
    real, near, _ = sets(6)  # of 6 features
    few = RealImages(PIXELS, [real])
    distances = few.compare([near])
    assert distances.frechet is None
    features = (images.flatten(1).double() for images in (real, near))
    assert distances.kernel == approx(float(poly_mmd(*features)))
    assert few.summarize([[near], [near]])["frechet"] is None


def mnist_config(root, size=12):
    return DataConfig(root=str(root), size=size)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


@pytest.mark.usefixtures("cache")
def test_a_classifier_is_that_of_its_images(mnist_root, tmp_path):
    path = tmp_path / "classifier.safetensors"
    config = mnist_config(mnist_root)
    network = write_untrained_classifier(config, path)
    features = choose_features(config, path)
    images = torch.rand(3, 1, 12, 12)
    assert features.source == "a classifier of mnist"
    # kept in half precision
    assert_close(features([images]), network.features(images).double(), atol=1e-3, rtol=1e-2)
    with input_error("samples of mnist need a classifier"):
        choose_features(replace(config, validation=0.5), path)


@pytest.mark.usefixtures("cache")
def test_colour_takes_efficientnet(tmp_path):
    for index in range(12):
        write_picture(tmp_path / "photos" / f"{index}.png", index, (40, 40))
    config = DataConfig(
        dataset="photos", root=str(tmp_path / "photos"), size=32, channels=3, workers=0
    )
    features = choose_features(config, tmp_path / "classifier.safetensors")
    assert features.source == "efficientnet-lite0"
    assert features([torch.rand(2, 3, 32, 32)]).shape == (2, 320)


def test_only_inception_gives_a_fid(cache, mnist_root, monkeypatch):
    torch.manual_seed(0)
    loader = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
    monkeypatch.setattr(loader, Mock())
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", Mock())
    published.INCEPTION.path.parent.mkdir(parents=True)
    published.INCEPTION.path.touch()
    choose = partial(choose_features, mnist_config(mnist_root), cache / "classifier.safetensors")
    features = choose()
    assert features.source == ""
    grey = torch.rand(2, 1, 28, 28)
    seen = features([grey])
    assert seen.shape == (2, 2048)
    assert_close(seen, features([grey.expand(-1, 3, -1, -1)]))
    assert not seen.isnan().any()
    monkeypatch.setattr(
        samples, "FeatureExtractorInceptionV3", lambda *_: lambda images: [images.flatten(1)]
    )
    rounded = choose()([torch.full((1, 1, 1, 1), 0.999)])
    assert rounded.tolist() == [[255] * 3]  # as in a file


class Rings:
    classes = ("often", "seldom")
    class_counts = (95, 5)
    run = SimpleNamespace(path=Path("nowhere"))

    def __init__(self, *shares):
        self.shares = shares

    def draw(self, count, *, seed, params, class_name=None):
        generator = np.random.default_rng((7, seed))
        labels = generator.choice(2, count, p=self.shares)
        if class_name is not None:
            labels[:] = Priors((), self.classes, ()).class_index(class_name)
        return Sampled(rings(labels, generator), (), ())

    def encode(self, images, effort=0):
        return (images,)

    def decode(self, codes, size):
        return SimpleNamespace(cpu=lambda: codes[0])  # as on a GPU: to be moved before it is used


def rings(labels, generator):
    """Images (N, 1, 2, 2) that are dark in the first class, and bright in the second."""
    noise = generator.normal(0, 0.05, (len(labels), 1, 2, 2))
    brightness = np.array([0.3, 0.8])[labels]
    return torch.from_numpy(brightness[:, None, None, None] + noise).clamp(0, 1).float()


@pytest.fixture
def unequal_classes(monkeypatch):
    labels = (np.arange(4_000) % 20 == 19).astype(np.int64)
    config = DataConfig(dataset="rings", size=2, workers=0)
    pixels = (rings(labels, np.random.default_rng(0)) * 255).byte().numpy()
    images = ImageSet(config, labels, Rings.classes, pixels=pixels)
    brightness = TrainedClassifier(Brightness(), 1.0, images.classes, "")
    monkeypatch.setattr(samples, "load_images", lambda *_: images)
    monkeypatch.setattr(samples, "choose_features", lambda *_: PIXELS)
    monkeypatch.setattr(samples, "find_classifier", lambda *_: brightness)
    return config


class Brightness(torch.nn.Module):
    def forward(self, images):
        mean = images.mean((1, 2, 3)) - 0.55
        return torch.stack([-mean, mean], 1)


def test_a_perfect_generator_of_unequal_classes_is_at_the_floor(unequal_classes, monkeypatch):
    (quality,) = measure_samples(Rings(0.95, 0.05), unequal_classes, 600)
    drawn, floor = (quality.distances[name]["frechet"] for name in ("samples", "test images"))
    assert floor.mean / 3 < drawn.mean < 3 * floor.mean < 0.02
    assert quality.classification_accuracy == 1  # both classes, equally often
    (equal,) = measure_samples(Rings(0.5, 0.5), unequal_classes, 600)
    assert equal.distances["samples"]["frechet"].mean > 20 * floor.mean


def striped(count, seed):
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, 4, (count, 8, 1)).repeat(8, 2)
    return CodeMaps((rows, generator.integers(0, 4, (count, 8, 8))), np.zeros(count, np.int64), ())


def test_the_entropy_model_is_measured_as_files_are_written():
    bare = EntropyModel("drawn", "0" * 32, Geometry(2, 0, (1, 1)), (4, 4))
    entropy_model = fit(bare, striped(400, 0).levels, 0.02, lambda _: None)
    rng = np.random.default_rng(2)
    drawn = CodeMaps((*rng.integers(0, 4, (2, 40, 8, 8)),), np.zeros(40, np.int64), ())
    for test, by_tables in ((striped(40, 1), True), (drawn, False)):
        bits = measure_file_bits(entropy_model, test, (16, 16))
        flat = np.concatenate([level.reshape(40, -1) for level in test.levels], 1).astype(np.int32)
        files = hrv.write(entropy_model, flat, (16, 16))
        assert hrv.read_header(files[0]).by_tables == by_tables
        lengths = [image.lengths[1:] for image in hrv.read(entropy_model, files)]
        assert bits == tuple(8 * np.mean(np.array(lengths) - 1, 0))
        assert (bits[0] < 0.5 * 128) == by_tables  # what repeats takes fewer bits
        assert bits[1] >= 128


def test_a_label_takes_the_bits_of_its_frequency():
    counts = [7, 3, 3, 0]  # each once more: 8, 4, 4 and 1 of 17
    assert measure_label_bits(counts, np.array([0, 1])) == approx(np.log2(17) - 2.5)
    assert measure_label_bits(counts, np.array([3])) == approx(np.log2(17))


class Knowing(Prior):
    """A prior in which half of the probability is that of the code equal to the class."""

    def level_logits(self, codes, coarser, label):
        shares = torch.full((len(label), self.level.symbols), 0.5 / (self.level.symbols - 1))
        shares[torch.arange(len(label)), label] = 0.5
        return (shares.log()[:, :, None, None].expand(-1, -1, *self.level.grid),)


def test_priors_are_given_the_class_and_the_class_stands_beside():
    labels = np.random.default_rng(0).integers(0, 4, 130)
    codes = np.broadcast_to(labels[:, None, None], (130, 3, 5)).copy()
    maps = CodeMaps((codes,), labels, tuple("abcd"))
    prior = Knowing(PixelSNAILConfig(), Level(grid=(3, 5), symbols=4, classes=4))
    measure = partial(
        measure_rate,
        Priors((prior,), maps.classes, (1000, 1000, 1000, 1000)),
        SimpleNamespace(codeword_indices=lambda codes: codes),
        None,
        size=(6, 10),
        device=torch.device("cpu"),
    )
    rate = measure(maps=maps)
    assert rate.prior == (approx(15),)
    assert rate.label == approx(2)
    assert rate.per_code("prior") == [approx(1)]
    assert rate.per_image("prior") == rate.prior[0]
    wrong = replace(maps, labels=(labels + 1) % 4)
    assert measure(maps=wrong).prior[0] > 30


def evaluate(line):
    return json.loads(do(f"evaluate {line} --json --device cpu"))


def test_evaluation_with_priors(run):
    report = evaluate(f"{run}")
    total = sum(level["prior_bits_per_code"] for level in report["levels"]) * 49
    assert report["prior_bits_per_image"] == approx(total)
    assert 0 < total <= 3 * 49 * 1.6
    assert report["file_bits_per_image"] is None  # no entropy model yet
    assert 3 < report["label_bits_per_image"] < 4  # ten classes
    out = do(f"evaluate {run} --device cpu -n 7")
    assert "mnist test: 7 images" in out
    assert re.search(r"an unknown class takes 3\.\d bits", out)


def test_a_beam_and_an_effort_encode_all_that_is_measured(run):
    beam = 9
    effort = 2
    report = "hrvqvae.evaluation.report."
    with (
        patch(f"{report}measure_rate") as rate,
        patch(f"{report}measure_samples", return_value=()) as samples,
    ):
        evaluated = evaluate_run(run, "train", device="cpu", samples=4, beam=beam, effort=effort)
    wide = load(run, beam=beam)
    images = torch.from_numpy(load_images(wide.config.data, "train").pixels)
    coded = wide.encode(images, effort=effort)
    for level, codes in zip(rate.call_args.args[3].levels, coded, strict=True):
        assert np.array_equal(level, codes.numpy())
    error = (wide.decode(coded, size=(12, 12)) - images / 255).square().mean()
    assert evaluated.report.mse == approx(float(error), rel=1e-4)
    assert samples.call_args.args[0].config.model.quantizer.beam == beam
    assert samples.call_args.kwargs["effort"] == effort


def test_what_can_not_be_measured_is_refused_before_anything_is_encoded(tmp_path):
    write_mnist(tmp_path / "mnist", size=28)
    measured = partial(evaluate_run, "mnist", root=str(tmp_path), device="cpu")
    with patch("hrvqvae.evaluation.report.evaluate") as measure:
        for count in (1, -1):
            with input_error(f"^{count} samples and 40 test images are too few"):
                measured(samples=count)
        for limit in (0, -1):
            with input_error(f"limit is {limit}; it must be at least 1"):
                measured(limit=limit)
        with input_error("split is 'val'"):
            measured(split="val")
        with input_error("guidance is -3"):
            measured(samples=2, guidance=(1, -3))
        with input_error("need a classifier"):
            measured(samples=4)
    measure.assert_not_called()


def test_any_folder_is_measured_whole_by_any_model(run, tmp_path):
    for index in range(9):
        write_picture(tmp_path / "photos" / f"{index}.png", index, (40 + index, 30))
    reports = [evaluate(f"{model} --data {tmp_path}/photos") for model in (run, "mnist")]
    for report in reports:
        assert report["dataset"] == "photos"
        assert report["split"] == "all"
        assert report["images"] == 9
        assert report["no_priors"].endswith("0, 1, 2, 3, 4, 5, 6, 7, 8, 9; the data has no classes")
    assert reports[1]["prior_bits_per_image"] is None
    assert reports[1]["file_bits_per_image"] > 0  # which take no classes
    assert evaluate(f"{run} --data {tmp_path}/photos --split test")["images"] < 9


def test_the_images_of_the_training_are_found_under_each_name(tmp_path, monkeypatch):
    for name in ("HRVQVAE_DATA", "HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    for folder in ("imagenet", "copy/imagenet", "photos", "other"):
        (tmp_path / folder).mkdir(parents=True)
    for dataset, roots in (
        ("imagenet", (tmp_path, tmp_path / "copy", tmp_path / "imagenet", "~")),
        ("photos", (tmp_path / "photos", "~/photos")),
    ):
        config = DataConfig(dataset=dataset, size=12, channels=3)
        for root in map(str, roots):
            data, split = choose_data(config, root, None)
            assert (data.dataset, split) == (dataset, "test"), root
    write_picture(tmp_path / "other/x.png", 1)
    data, split = choose_data(config, "~/other", None)
    assert (data.dataset, split) == ("other", "all")


def test_the_test_split_of_a_folder_of_the_same_classes_is_measured_with_priors(run, tmp_path):
    for index in range(20):
        folder = tmp_path / "own" / ("test" if index < 10 else "train") / str(index % 10)
        write_picture(folder / "x.png", index)
    report = evaluate(f"{run} --data {tmp_path}/own")
    assert report["split"] == "test"
    assert report["images"] == 10
    assert report["no_priors"] is None
    assert report["prior_bits_per_image"] > 0


def test_samples_are_classified(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    write_untrained_classifier(open_run(copy).read_config().data, copy / "classifier.safetensors")
    report = evaluate(f"{copy} --samples 7 -n 8")
    assert report["samples"] == 7
    assert report["classifier_accuracy"] == 0.1
    share = report["classification_accuracy"] * 7
    assert share == approx(round(share))  # of 7


def of_pictures(folder, mnist_root, run, **data):
    data = {"dataset": "pictures", "root": str(folder), "channels": 3, **data}
    file = write_file(with_data(tiny_run(mnist_root), **data), run.with_suffix(".yaml"))
    do(f"train {file} --out {run} --max-steps 3")
    do(f"train-prior {run} --max-steps 2")
    return str(run)


def test_other_classes_are_noticed(picture_folder, mnist_root, tmp_path):
    options = {"on_error": "skip", "memory_mb": 0, "test_fraction": 0.5}
    run = of_pictures(picture_folder, mnist_root, tmp_path / "run", **options)
    broken = [*picture_folder.rglob("*.webp")]
    for path in broken:
        path.write_bytes(b"broken")
    _, out, err = done(f"evaluate {run} --device cpu --json --on-error skip")
    assert json.loads(out)["images"] > 0
    assert "broken images skipped" in err  # beside the JSON
    for path in broken:
        path.unlink()
    (picture_folder / "dogs").rename(picture_folder / "wolves")
    command = f"{run} --data {picture_folder}"
    reason = evaluate(command)["no_priors"]
    assert reason.endswith("other classes than the data: cats, dogs; the data has cats, wolves")
    assert reason in refused(f"evaluate {command} --device cpu --samples 2")
