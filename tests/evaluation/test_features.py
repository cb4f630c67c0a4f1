"""Features of images: which there are, each under its own name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from hrvqvae.config import DataConfig
from hrvqvae.evaluation import classifier
from hrvqvae.evaluation.classifier import TrainedClassifier, small_classifier
from hrvqvae.evaluation.samples import features_of
from hrvqvae.models import published
from hrvqvae.utils.errors import InputError
from tests.conftest import write_picture


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of published networks."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


@pytest.mark.usefixtures("cache")
def test_a_classifier_of_greyscale_images_is_trained_once(
    mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    trained = []

    def train(config: DataConfig, say: object) -> TrainedClassifier:
        trained.append(config.dataset)
        return TrainedClassifier(small_classifier(1, 10).eval().requires_grad_(False), 0.1, tuple("0123456789"))

    monkeypatch.setattr(classifier, "train_classifier", train)
    config, images = DataConfig(dataset="mnist", root=str(mnist_root), size=12), torch.rand(3, 1, 12, 12)
    one, again = (features_of(tmp_path, config, lambda _: None) for _ in range(2))
    assert trained == ["mnist"]
    assert one.title("FID", "Frechet distance", 2000) == (
        "Frechet distance of 2,000 images, features of a classifier of mnist"
    )
    assert one(images).shape == (3, 128)
    torch.testing.assert_close(one(images), again(images), atol=1e-3, rtol=1e-2)  # kept in half precision


@pytest.mark.usefixtures("cache")
def test_colour_takes_efficientnet(tmp_path: Path) -> None:
    for index in range(12):
        write_picture(tmp_path / "photos" / f"{index}.png", index, (40, 40))
    config = DataConfig(dataset="photos", root=str(tmp_path / "photos"), size=32, channels=3, workers=0)
    found = features_of(tmp_path, config, lambda _: None)
    assert found.title("KID", "kernel distance", 200) == "kernel distance of 200 images, features of efficientnet-lite0"
    assert found(torch.rand(2, 3, 32, 32)).shape == (2, 320)


def test_only_inception_gives_a_fid(cache: Path, mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published network's form with weights of no use, read from where torch-fidelity reads them."""
    torch.manual_seed(0)
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: made)
    made: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: made.update(state))
    published.INCEPTION.path.parent.mkdir(parents=True)
    published.INCEPTION.path.touch()
    found = features_of(cache, DataConfig(dataset="mnist", root=str(mnist_root), size=12), lambda _: None)
    assert found.title("FID", "Frechet distance", 10_000) == "FID of 10,000 images"
    grey = torch.rand(2, 1, 28, 28)
    seen = found(grey)
    assert seen.shape == (2, 2048)
    torch.testing.assert_close(seen, found(grey.expand(-1, 3, -1, -1)))
    assert not seen.isnan().any()


def test_a_damaged_inception_is_told_in_one_line(cache: Path, mnist_root: Path) -> None:
    published.INCEPTION.path.parent.mkdir(parents=True)
    published.INCEPTION.path.write_bytes(b"nothing that was published" * 9)
    with pytest.raises(InputError, match=r"inception.*pth is damaged .*; delete it, then hrvqvae data get inception"):
        features_of(cache, DataConfig(dataset="mnist", root=str(mnist_root), size=12), lambda _: None)
