"""Frechet distances: against the equation in numpy, and by the features that there are, each under its own name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from hrvqvae.config import DataConfig
from hrvqvae.errors import InputError
from hrvqvae.evaluation import features
from hrvqvae.evaluation.classifier import Classifier, Judge
from hrvqvae.evaluation.features import Features, FrechetDistance, features_of
from hrvqvae.perceptual import published
from tests.conftest import write_picture


def by_hand(one: np.ndarray, other: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the root by the eigenvalues of C1 C2."""
    means, covariances = zip(*((x.mean(0), np.cov(x, rowvar=False)) for x in (one, other)), strict=True)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0))
    return float(((means[0] - means[1]) ** 2).sum() + sum(np.trace(c) for c in covariances) - 2 * roots.sum())


def test_frechet_distance_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    real, near, far = (torch.rand(300, 1, 2, 3, generator=generator) * scale for scale in (1.0, 0.9, 0.3))
    frechet = FrechetDistance(Features("FID", "", lambda images: images.flatten(1), 6), [real[:200], real[200:]])
    assert frechet.title == "FID of 300 images"
    for other in (near, far, near):
        expected = by_hand(real.flatten(1).double().numpy(), other.flatten(1).double().numpy())
        assert frechet([other[:50], other[50:]]) == pytest.approx(expected, rel=1e-4)
    assert abs(frechet([real])) < 1e-4


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

    def judge(config: DataConfig, say: object) -> Judge:
        trained.append(config.dataset)
        return Judge(Classifier(1, 10).eval().requires_grad_(False), 0.1)

    monkeypatch.setattr(features, "train_judge", judge)
    config, images = DataConfig(dataset="mnist", root=str(mnist_root), size=12), torch.rand(3, 1, 12, 12)
    one, again = (features_of(tmp_path, config, lambda _: None) for _ in range(2))
    assert trained == ["mnist"]
    assert one.title(2000) == "Frechet distance of 2,000 images, features of a classifier of mnist"
    assert one(images).shape == (3, one.num_features)
    assert torch.equal(one(images), again(images))


@pytest.mark.usefixtures("cache")
def test_colour_takes_efficientnet(tmp_path: Path) -> None:
    for index in range(12):
        write_picture(tmp_path / "photos" / f"{index}.png", index, (40, 40))
    config = DataConfig(dataset="photos", root=str(tmp_path / "photos"), size=32, channels=3, workers=0)
    found = features_of(tmp_path, config, lambda _: None)
    assert found.title(200) == "Frechet distance of 200 images, efficientnet-lite0 features"
    assert found(torch.rand(2, 3, 32, 32)).shape == (2, found.num_features)


def test_only_inception_gives_a_fid(cache: Path, mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published network's form with weights of no use, read from where torch-fidelity reads them."""
    torch.manual_seed(0)
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: made)
    made: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: made.update(state))
    published.INCEPTION.path.parent.mkdir(parents=True)
    published.INCEPTION.path.touch()
    found = features_of(cache, DataConfig(dataset="mnist", root=str(mnist_root), size=12), lambda _: None)
    assert found.title(10_000) == "FID of 10,000 images"
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
