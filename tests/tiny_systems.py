"""Small configurations that the commands train in a second, one of every system, for 12x12 greyscale images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hrvqvae.config import Config, PriorConfig, QuantizerConfig, presets
from hrvqvae.config.parsing import override
from hrvqvae.models.rqvae.config import RQVAEConfig
from hrvqvae.models.treevq.config import TreeVQConfig
from hrvqvae.models.vqgan.config import VQGANConfig
from hrvqvae.models.vqpytorch.config import (
    FSQConfig,
    FSQQuantizerConfig,
    VQPyTorchConfig,
    VQPyTorchQuantizerConfig,
)
from hrvqvae.models.vqvae.config import VQVAEConfig
from hrvqvae.models.vqvae2.config import VQVAE2Config
from hrvqvae.priors.configs import TransformerConfig

_FLAT = QuantizerConfig(codewords=27, dim=8, init_vectors=1000)


def tiny_run(mnist_root: Path) -> Config:
    """HR-VQVAE with three levels of three codewords, and small priors."""
    arguments = {
        "data.root": str(mnist_root), "data.size": "12", "data.workers": "0", "model.hidden_units": "8",
        "model.residual_units": "8", "model.padding": "1", "model.quantizer.codewords": "3",
        "model.quantizer.init_vectors": "1000", "training.batch_size": "16", "training.device": "cpu",
        "training.checkpoint_every": "20", "training.evaluation_images": "40", "name": "tiny",
        "prior.network.hidden_units": "8", "prior.network.residual_units": "8", "prior.network.residual_blocks": "2",
        "prior.network.attention_layers": "1", "prior.training.batch_size": "16", "prior.training.device": "cpu",
        "prior.training.warmup_steps": "3", "prior.training.learning_rate": "0.01",
        "prior.training.polyak_decay": "0.5",
    }  # fmt: skip
    return override(presets.get("hrvqvae/mnist").config, arguments)


def tiny_systems(mnist_root: Path) -> dict[str, Config]:
    """System -> configuration; they differ in the model, and VQGAN in its prior's network."""
    tree = tiny_run(mnist_root)
    network = {name: getattr(tree.model, name) for name in ("stride", "padding", "hidden_units", "residual_units")}
    ours = dataclasses.replace(tree.model.quantizer, beam=2, coarse_weight=0.1, level_betas=(0.0,))
    models = {
        "hrvqvae": tree.model,
        "treevq": TreeVQConfig(**network, quantizer=ours),
        "vqvae": VQVAEConfig(**network, quantizer=_FLAT),
        "vqvae2": VQVAE2Config(**network, grids=2, quantizer=_FLAT),
        "vqgan": VQGANConfig(
            **network, quantizer=_FLAT, perceptual="none", adversarial_start=2, discriminator_units=4,
            discriminator_layers=1,
        ),
        "rqvae": RQVAEConfig(
            **network, quantizer=QuantizerConfig(linked=1, levels=3, codewords=3, dim=8, init_vectors=1000)
        ),
        "fsq": FSQConfig(**network, quantizer=FSQQuantizerConfig(channel_levels=(5, 5), dim=8)),
        "vqpytorch": VQPyTorchConfig(
            **network, quantizer=VQPyTorchQuantizerConfig(name="vq", codewords=5, levels=2, dim=8)
        ),
    }  # fmt: skip
    configs = {name: dataclasses.replace(tree, name=f"{name}/mnist", model=model) for name, model in models.items()}
    transformer = TransformerConfig(hidden_units=16, layers=1, heads=2)
    prior = PriorConfig(network=transformer, training=tree.prior.training)
    return {**configs, "vqgan": dataclasses.replace(configs["vqgan"], prior=prior)}
