"""Tiny presets of every system, under the names that a comparison asks for."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hrvqvae.comparison.systems import available_systems
from hrvqvae.config import DataConfig, presets
from hrvqvae.config.parsing import override
from hrvqvae.evaluation import classifier
from hrvqvae.evaluation.classifier import TrainedClassifier, small_classifier
from tests.trained_run import tiny_run, tiny_systems, undrawn

_SMALL = {"model.hidden_units": "8", "model.residual_units": "8", "model.padding": "1"}


@pytest.fixture
def systems(mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiny presets for MNIST, an untrained classifier in place of a trained one, and no curves of
    trainings.
    """
    tiny = {config.name: config for config in tiny_systems(mnist_root).values()}
    original = presets.get
    for name in (f"{system}/mnist" for system in available_systems()):
        if name not in tiny:
            model = override(original(name).config, _SMALL).model
            tiny[name] = dataclasses.replace(tiny_run(mnist_root), name=name, model=model)

    def get(name: str) -> presets.Preset:
        return (
            presets.Preset(config=tiny[name], sources={}, about="")
            if name in tiny
            else original(name)
        )

    def train(config: DataConfig) -> TrainedClassifier:
        torch.manual_seed(0)
        network = small_classifier(1, 10).eval().requires_grad_(False)
        names = tuple("0123456789")
        return TrainedClassifier(network, 0.1, names, classifier.describe_images(config))

    monkeypatch.setattr(presets, "get", get)
    monkeypatch.setattr(classifier, "train_classifier", train)
    with undrawn():
        yield
