"""Evaluation of a run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hrvqvae import load
from hrvqvae.checkpoints.codemaps import CodeMaps
from hrvqvae.config import DataConfig, to_dict
from hrvqvae.config.parsing import from_dict
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation import classifier
from hrvqvae.evaluation.classifier import train_classifier
from hrvqvae.evaluation.report import evaluate_run
from hrvqvae.evaluation.samples import measure_samples
from hrvqvae.model import Model
from hrvqvae.utils.errors import InputError
from tests.conftest import do, done, refused, write_file
from tests.trained_run import tiny_run, undrawn


def test_evaluation_with_priors(run: Path) -> None:
    report = json.loads(do("evaluate", run, "--json", "--device", "cpu"))
    total = sum(level["prior_bits_per_code"] for level in report["levels"]) * 49
    assert report["prior_bits_per_image"] == pytest.approx(total)
    assert 0 < total <= 3 * 49 * 1.6
    assert report["file_bits_per_image"] is None, "no entropy model yet"
    assert 3 < report["label_bits_per_image"] < 4, "ten classes"
    out = do("evaluate", run, "--device", "cpu", "--images", 7)
    assert "mnist test: 7 images" in out
    assert re.search(r"an unknown class takes 3\.\d bits", out)


@pytest.mark.parametrize(("beam", "lmbda"), [(9, None), (None, 0.02), (9, 0.02)])
def test_a_beam_and_a_lambda_encode_all_that_is_measured(
    run: Path, beam: int | None, lmbda: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def measure(priors: object, model: object, entropy_model: object, coded: CodeMaps, *_: object) -> None:
        seen.update(coded=coded)

    def judged(model: Model, *_: object, **options: object) -> tuple[()]:
        seen.update(model=model, lmbda=options["lmbda"])
        return ()

    monkeypatch.setattr("hrvqvae.evaluation.report.measure_rate", measure)
    monkeypatch.setattr("hrvqvae.evaluation.report.measure_samples", judged)
    evaluated = evaluate_run(run, "train", device="cpu", samples=2, beam=beam, lmbda=lmbda)
    wide = load(run, beam=beam)
    images = load_images(wide.config.data, "train")
    for level, codes in zip(seen["coded"].levels, wide.encode(torch.from_numpy(images.pixels), lmbda), strict=True):
        assert np.array_equal(level, codes.numpy())
    decoded = wide.decode(wide.encode(whole := torch.from_numpy(images.pixels), lmbda), size=(12, 12))
    assert evaluated.report.mse == pytest.approx(float((decoded - whole / 255).square().mean()), rel=1e-4)
    assert seen["model"].config.model.quantizer.beam == (beam or 1)
    assert seen["lmbda"] == lmbda


def test_the_classifier_learns(mnist_root: Path) -> None:
    data = DataConfig(dataset="mnist", root=str(mnist_root), size=12, channels=1)
    drawn = torch.get_rng_state()
    first, again = (train_classifier(data, epochs=50) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), drawn), "the caller's generator is as before"
    assert first.accuracy > 0.25, "of 10 classes; each two share a bar, so half is the best there is"
    assert first.accuracy == again.accuracy


def test_samples_are_classified(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "train_classifier", lambda config: train_classifier(config, epochs=2))
    _, out, err = done("evaluate", run, "--samples", 7, "--images", 8, "--json", "--device", "cpu")
    report = json.loads(out)
    assert "training the classifier" in err
    assert report["samples"] == 7
    assert 0 < report["classifier_accuracy"] <= 1
    share = report["classification_accuracy"] * 7
    assert share == pytest.approx(round(share)), "of 7"


def of_pictures(folder: Path, mnist_root: Path, run: Path, **data: object) -> str:
    config = to_dict(tiny_run(mnist_root))
    config["data"] |= {"dataset": "pictures", "root": str(folder), "channels": 3, **data}
    file = write_file(from_dict(config, "tiny"), run.with_suffix(".yaml"))
    with undrawn():
        do("train", file, "--out", run, "--max-steps", 3)
        do("train-prior", run, "--max-steps", 2)
    return str(run)


def test_other_classes_are_noticed(picture_folder: Path, mnist_root: Path, tmp_path: Path) -> None:
    run = of_pictures(picture_folder, mnist_root, tmp_path / "run")
    do("evaluate", run, "--device", "cpu")
    (picture_folder / "dogs").rename(picture_folder / "wolves")
    line = refused(["evaluate", run, "--device", "cpu", "--split", "test", "--data", str(picture_folder)])
    assert "have other classes than the data: cats, dogs" in line
    wolves = ["sample", run, "--class", "wolves", "-o", tmp_path / "x.png"]
    assert "class 'wolves' is not one of cats, dogs" in refused(wolves)


def test_a_folder_without_classes_knows_none(picture_folder: Path, mnist_root: Path, tmp_path: Path) -> None:
    run = of_pictures(picture_folder, mnist_root, tmp_path / "run", labels=False)
    do("sample", run, "-n", 2, "-o", tmp_path / "sheet.png", "--save-dir", run + "/s")
    assert sorted(path.name for path in (tmp_path / "run" / "s").iterdir()) == ["0000.png", "0001.png"]
    assert "know no classes" in refused(["sample", run, "--class", "cats", "-o", tmp_path / "x.png"])
    model = Model(run)
    with pytest.raises(InputError, match="know no classes"):
        measure_samples(model, model.config.data, 2)
    evaluated = evaluate_run(run, device="cpu")
    assert evaluated.rate.label == 0
