"""Small models of every system and quantizer, for images of three channels."""

from dataclasses import replace

import torch

from hrvqvae.config import Config, DataConfig, QuantizerConfig
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.models.build import build
from tests.conftest import generator

TREE = QuantizerConfig(levels=3, codewords=3, dim=4, init_vectors=500)
FLAT = QuantizerConfig(codewords=6, dim=4, init_vectors=500, beta=0.3)
_NETWORK = {"stride": 2, "padding": 1, "hidden_units": 8, "residual_units": 6, "residual_blocks": 1}
_MODELS = {  # name -> system, fields
    "hrvqvae": ("hrvqvae", {"quantizer": TREE}),
    "treevq": ("treevq", {"quantizer": replace(TREE, beam=2, coarse_weight=0.1)}),
    "groups": ("hrvqvae", {"quantizer": replace(TREE, levels=5, linked=2)}),
    "vqvae": ("vqvae", {"quantizer": FLAT}),
    "vqvae2": ("vqvae2", {"quantizer": FLAT, "grids": 3}),
    "vqgan": ("vqgan", {"quantizer": FLAT, "perceptual": "none", "discriminator_layers": 1}),
    "rqvae": ("rqvae", {"quantizer": replace(TREE, linked=1)}),
    "sizes": (
        "rqvae",
        {"quantizer": replace(TREE, linked=1, level_codewords=(3, 2, 4))},
    ),
}
EVERY = tuple(_MODELS)


def config_of(name, **changes):
    system, fields = _MODELS[name]
    return replace(SYSTEMS.get(system).config, **{**_NETWORK, **fields, **changes})


def model_of(config):
    torch.manual_seed(0)
    model = build(Config(data=DataConfig(channels=3), model=config))
    model.initialize(torch.rand(8, 3, 14, 14), generator())
    return model.eval()
