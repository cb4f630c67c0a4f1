"""A tiny configuration of every system, for 12x12 greyscale images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hrvqvae.config import Config, QuantizerConfig, TransformerConfig, VQGANConfig, VQVAE2Config, VQVAEConfig
from tests.test_cli import _tiny

FLAT = QuantizerConfig(codewords=27, dim=8, init_vectors=1000)


def tiny_systems(mnist_root: Path) -> dict[str, Config]:
    """System -> configuration; they differ in the model, and VQGAN in its prior's network."""
    tree = _tiny(mnist_root)
    network = {name: getattr(tree.model, name) for name in ("stride", "padding", "hidden_units", "residual_units")}
    models = {
        "hrvqvae": tree.model,
        "vqvae": VQVAEConfig(**network, quantizer=FLAT),
        "vqvae2": VQVAE2Config(**network, grids=2, quantizer=FLAT),
        "vqgan": VQGANConfig(
            **network, quantizer=FLAT, perceptual="none", adversarial_start=2, discriminator_units=4,
            discriminator_layers=1,
        ),
    }  # fmt: skip
    configs = {name: dataclasses.replace(tree, name=f"{name}/mnist", model=model) for name, model in models.items()}
    gan, transformer = configs["vqgan"], TransformerConfig(hidden_units=16, layers=1, heads=2)
    prior = dataclasses.replace(gan.prior, network=transformer)
    return {**configs, "vqgan": dataclasses.replace(gan, prior=prior)}
