"""The paper's tables of configuration, row by row: a dotted configuration name with its value.

Source: the paper's appendix (spec.md section 4). Strides are what the printed latent grids ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rows = Mapping[str, Any]

# Table 5: input data, for HR-VQVAE and the retrained VQVAE-2.
TABLE_5: Mapping[str, Rows] = {
    "ffhq": {
        "data.dataset": "ffhq", "data.size": 256, "data.channels": 3,
        "data.train_samples": 60_000, "data.test_samples": 10_000,
        "training.batch_size": 32, "training.epochs": 400,
    },
    "imagenet": {
        "data.dataset": "imagenet", "data.size": 128, "data.channels": 3,
        "data.train_samples": 1_281_167, "data.test_samples": 100_000,
        "training.batch_size": 64, "training.epochs": 400,
    },
    "cifar10": {
        "data.dataset": "cifar10", "data.size": 32, "data.channels": 3,
        "data.train_samples": 50_000, "data.test_samples": 10_000,
        "training.batch_size": 128, "training.epochs": 999,
    },
    "mnist": {
        "data.dataset": "mnist", "data.size": 28, "data.channels": 1,
        "data.train_samples": 60_000, "data.test_samples": 10_000,
        "training.batch_size": 128, "training.epochs": 999,
    },
}  # fmt: skip

# Table 6: HR-VQVAE with three levels, autoencoder. The stride is what the printed latent grid asks for.
_TABLE_6_ALL: Rows = {
    "model.quantizer.levels": 3, "model.quantizer.beta": 0.25, "model.residual_units": 64, "model.kernel": 3,
    "training.learning_rate": 3e-3, "training.polyak_decay": 0.9,
}  # fmt: skip
_TABLE_6_LARGE: Rows = {"model.hidden_units": 128, "model.quantizer.codewords": 8, "model.quantizer.dim": 32}
TABLE_6: Mapping[str, Rows] = {
    "ffhq": {**_TABLE_6_ALL, **_TABLE_6_LARGE, "model.stride": 8},
    "imagenet": {**_TABLE_6_ALL, **_TABLE_6_LARGE, "model.stride": 4},
    "cifar10": {
        **_TABLE_6_ALL, "model.stride": 2,
        "model.hidden_units": 64, "model.quantizer.codewords": 8, "model.quantizer.dim": 16,
    },
    "mnist": {
        **_TABLE_6_ALL, "model.stride": 2,
        "model.hidden_units": 64, "model.quantizer.codewords": 4, "model.quantizer.dim": 8,
    },
}  # fmt: skip

# Table 7: VQVAE-2 with three levels as retrained for the comparison. Grids are printed bottom to top.
_TABLE_7_ALL: Rows = {
    "model.system": "vqvae2", "model.grids": 3, "model.quantizer.beta": 0.25, "model.residual_units": 64,
    "model.kernel": 3, "training.learning_rate": 3e-3, "training.polyak_decay": 0.9,
}  # fmt: skip
TABLE_7: Mapping[str, Rows] = {
    "ffhq": {
        **_TABLE_7_ALL, "model.stride": 8, "model.hidden_units": 128,
        "model.quantizer.codewords": 512, "model.quantizer.dim": 32,
    },
    "imagenet": {
        **_TABLE_7_ALL, "model.stride": 4, "model.hidden_units": 128,
        "model.quantizer.codewords": 512, "model.quantizer.dim": 32,
    },
    "cifar10": {
        **_TABLE_7_ALL, "model.stride": 2, "model.hidden_units": 64,
        "model.quantizer.codewords": 512, "model.quantizer.dim": 16,
    },
    "mnist": {
        **_TABLE_7_ALL, "model.stride": 2, "model.hidden_units": 64,
        "model.quantizer.codewords": 64, "model.quantizer.dim": 8,
    },
}  # fmt: skip

# Table 4: VQVAE-2 as first published. Its codebook sizes contradict each other: 512 codewords of width 64 are taken.
_TABLE_4_ALL: Rows = {
    "model.system": "vqvae2", "model.quantizer.beta": 0.25, "model.hidden_units": 128, "model.residual_units": 64,
    "model.quantizer.codewords": 512, "model.quantizer.dim": 64, "model.kernel": 3, "training.learning_rate": 2e-4,
    "training.polyak_decay": 0.9999,
}  # fmt: skip
TABLE_4: Mapping[str, Rows] = {
    "ffhq1024": {**_TABLE_4_ALL, "model.grids": 3, "model.stride": 8, "training.max_steps": 304_741},
    "imagenet256": {**_TABLE_4_ALL, "model.grids": 2, "model.stride": 4, "training.max_steps": 2_207_444},
}

# Table 8: the priors of HR-VQVAE with three levels. Output stack layers: 0, which is how the network is built.
_TABLE_8_ALL: Rows = {
    "prior.network.residual_units": 64, "prior.network.attention_layers": (4,), "prior.network.attention_heads": 8,
    "prior.network.kernel": 5, "prior.training.polyak_decay": 0.99,
}  # fmt: skip
_TABLE_8_LARGE: Rows = {**_TABLE_8_ALL, "prior.network.hidden_units": 128, "prior.network.dropout": (0.15,)}
_TABLE_8_SMALL: Rows = {**_TABLE_8_ALL, "prior.network.hidden_units": 64, "prior.network.dropout": (0.1,)}
TABLE_8: Mapping[str, Rows] = {
    "ffhq": {**_TABLE_8_LARGE, "prior.training.batch_size": 32},
    "imagenet": {**_TABLE_8_LARGE, "prior.training.batch_size": 128},
    "cifar10": {**_TABLE_8_SMALL, "prior.training.batch_size": 512},
    "mnist": {**_TABLE_8_SMALL, "prior.training.batch_size": 512},
}

# Table 9: the priors of VQVAE-2 with three levels; lists are printed bottom to top, here they are coarse first.
_TABLE_9_ALL: Rows = {
    "prior.network.residual_units": 64, "prior.network.attention_layers": (4, 1, 0), "prior.network.attention_heads": 8,
    "prior.network.kernel": 5, "prior.network.dropout": (0.5, 0.3, 0.25), "prior.training.polyak_decay": 0.99,
}  # fmt: skip
TABLE_9: Mapping[str, Rows] = {
    "ffhq": {**_TABLE_9_ALL, "prior.network.hidden_units": 128, "prior.batch_size": (128, 64, 32)},
    "imagenet": {
        **_TABLE_9_ALL, "prior.network.hidden_units": 128, "prior.network.residual_units": 128,
        "prior.batch_size": (256, 128, 64),
    },
    "cifar10": {**_TABLE_9_ALL, "prior.network.hidden_units": 64, "prior.training.batch_size": 512},
    "mnist": {**_TABLE_9_ALL, "prior.network.hidden_units": 64, "prior.training.batch_size": 512},
}  # fmt: skip

# Figures that the paper prints and that follow from the rows above: Table 5's steps, appendix A.1's factor.
_PRINTED_STEPS = {"ffhq": 875_000, "imagenet": 8_007_293, "cifar10": 390_234, "mnist": 468_281}
PRINTED: Mapping[str, Rows] = {
    f"{system}/{data}": {"training_steps": steps, **({"compression_ratio": ratio} if data == "ffhq" else {})}
    for system, ratio in (("hrvqvae", 171), ("vqvae2", 130))
    for data, steps in _PRINTED_STEPS.items()
}
