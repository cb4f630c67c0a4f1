"""Small configurations that the commands train in a second, one of every system, for 12x12 greyscale images."""

import dataclasses
from pathlib import Path
from typing import Any

from hrvqvae.config import Config, PriorConfig, QuantizerConfig, presets
from hrvqvae.config.model import FSQQuantizerConfig, LibraryQuantizerConfig
from hrvqvae.config.parsing import override
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.priors.configs import GPTConfig

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
    ours = dataclasses.replace(tree.model.quantizer, beam=2, coarse_weight=0.1, level_betas=(0.0,))  # type: ignore[attr-defined]
    fields: dict[str, dict[str, Any]] = {
        "hrvqvae": {"quantizer": tree.model.quantizer},  # type: ignore[attr-defined]
        "treevq": {"quantizer": ours},
        "vqvae": {"quantizer": _FLAT},
        "vqvae2": {"quantizer": _FLAT, "grids": 2},
        "vqgan": {
            "quantizer": _FLAT, "perceptual": "none", "adversarial_start": 2, "discriminator_units": 4,
            "discriminator_layers": 1,
        },
        "rqvae": {"quantizer": QuantizerConfig(levels=3, codewords=3, linked=1, dim=8, init_vectors=1000)},
        "fsq": {"quantizer": FSQQuantizerConfig(channel_levels=(5, 5), dim=8)},
        "vqpytorch": {"quantizer": LibraryQuantizerConfig(name="vq", codewords=5, levels=2, dim=8)},
    }  # fmt: skip
    models = {name: dataclasses.replace(SYSTEMS.get(name).config, **network, **own) for name, own in fields.items()}
    configs = {name: dataclasses.replace(tree, name=f"{name}/mnist", model=model) for name, model in models.items()}
    gpt = GPTConfig(hidden_units=16, layers=1, heads=2, path_units=8)
    prior = PriorConfig(network=gpt, training=tree.prior.training)
    return {**configs, "vqgan": dataclasses.replace(configs["vqgan"], prior=prior)}
