"""Tiny presets of every system, under the names that a comparison asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hrvqvae.comparison.systems import available_systems
from hrvqvae.config import Config, presets
from hrvqvae.config.parsing import override
from hrvqvae.evaluation import classifier
from hrvqvae.evaluation.classifier import TrainedClassifier, small_classifier
from tests.tiny_systems import tiny_run, tiny_systems
from tests.undrawn import undrawn

_SMALL = {"model.hidden_units": "8", "model.residual_units": "8", "model.padding": "1"}


def tiny_presets(mnist_root: Path) -> dict[str, Config]:
    """Name -> the configuration of every system that is on this machine."""
    found = {config.name: config for config in tiny_systems(mnist_root).values()}
    for name in (f"{system}/mnist" for system in available_systems()):
        if name not in found:
            model = override(presets.get(name).config, _SMALL).model
            found[name] = dataclasses.replace(tiny_run(mnist_root), name=name, model=model)
    return found


def make_tiny(mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put tiny presets in the place of those for MNIST, and a classifier that is no good in that of a trained one."""
    tiny, original = tiny_presets(mnist_root), presets.get

    def get(name: str) -> presets.Preset:
        if name not in tiny:
            return original(name)
        return presets.Preset(config=tiny[name], sources={}, about="")

    def train(config: object, say: object) -> TrainedClassifier:
        torch.manual_seed(0)
        return TrainedClassifier(small_classifier(1, 10).eval().requires_grad_(False), 0.1, tuple("0123456789"))

    monkeypatch.setattr(presets, "get", get)
    monkeypatch.setattr(classifier, "train_classifier", train)


@pytest.fixture
def systems(mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As `make_tiny`; curves of the trainings are not drawn, those of the comparison are."""
    make_tiny(mnist_root, monkeypatch)
    with undrawn():
        yield
