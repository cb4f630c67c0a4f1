"""Tiny presets for the laboratory; the rivals for the tests that ask for them."""

import importlib

import pytest
import torch

from benchmarks import search
from benchmarks.laboratory import instruments
from hrvqvae.config import presets
from hrvqvae.config.registry import SYSTEMS, register_system
from hrvqvae.evaluation.classifier import small_classifier
from hrvqvae.evaluation.samples import Features
from tests.trained_run import tiny_systems


@pytest.fixture(autouse=True)
def _small_measurements(monkeypatch):
    monkeypatch.setattr(search, "_ROUNDS", 3)


@pytest.fixture
def rivals():
    """The rivals, registered during a test."""
    module = importlib.import_module("benchmarks.rivals")
    for system in (module.FSQ, module.VQPYTORCH):
        if system.name not in SYSTEMS:
            register_system(system)
    yield module
    forget_rivals()


def forget_rivals():
    SYSTEMS.added.clear()
    presets.get.cache_clear()


@pytest.fixture
def systems(mnist_root, monkeypatch):
    """Tiny presets for MNIST, and an untrained classifier in place of a trained one."""
    tiny = {
        config.name: presets.Preset(config=config, sources={}, about="")
        for config in tiny_systems(mnist_root).values()
    }
    original = presets.get

    torch.manual_seed(0)
    network = small_classifier(1, 10).eval().requires_grad_(False)
    features = Features("a classifier of mnist", network.features)
    monkeypatch.setattr(presets, "get", lambda name: tiny.get(name) or original(name))
    monkeypatch.setattr(instruments, "choose_features", lambda *_: features)
