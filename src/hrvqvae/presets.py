"""The presets: unions of the tables' rows (`tables.py`), and what no table prints, which is "ours".

Derived figures are computed from the configuration and shown beside the printed ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hrvqvae.config import (
    NETWORKS,
    Config,
    DataConfig,
    HRVQVAEConfig,
    ModelConfig,
    PriorConfig,
    QuantizerConfig,
    TrainingConfig,
    TreeQuantizerConfig,
    VQGANConfig,
    VQVAE2Config,
    VQVAEConfig,
    bits_per_image,
    compression_ratio,
    flatten,
    to_dict,
    training_steps,
)
from hrvqvae.errors import InputError
from hrvqvae.tables import PRINTED, TABLE_4, TABLE_5, TABLE_6, TABLE_7, TABLE_8, TABLE_9, Rows

# Of every prior: neither blocks nor optimizer are printed (spec.md section 5).
_PRIOR_TRAINING: Rows = {
    "prior.training.epochs": 100, "prior.training.learning_rate": 1e-3, "prior.training.warmup_steps": 200,
}  # fmt: skip
_PRIOR_OURS: Rows = {"prior.network.residual_blocks": 12, **_PRIOR_TRAINING}
# Priors of a few thousand images, on a few cores.
_PRIOR_SMALL: Rows = {
    "prior.training.batch_size": 32, "prior.training.epochs": 60, "prior.training.evaluate_every": 100,
    "prior.training.checkpoint_every": 100,
}  # fmt: skip
_CROPPED: Rows = {"data.crop": "random", "data.flip": True}
_FFHQ_DATA: Rows = {"data.split": "sorted", "data.flip": True, "data.labels": False}
_PHOTO_DATA: Rows = {**_CROPPED, "data.labels": False}
# At the learning rate of Tables 6 and 7 the codewords, and Adam's second moment, must follow the encoder faster than by
# their usual decays, VQVAE-2's above all. docs/results.md and docs/comparison.md have the measurements.
_FOLLOW: Rows = {"model.quantizer.decay": 0.95, "training.adam_beta2": 0.99}
OURS: Mapping[str, Rows] = {
    "mnist": {"model.padding": 2, **_FOLLOW},  # 28x28 pixels and a 16x16 grid: 32x32 pixels are encoded
    "cifar10": {"data.flip": True, **_FOLLOW},
    "imagenet": {**_CROPPED, **_FOLLOW},
    "ffhq": {**_FFHQ_DATA, **_FOLLOW},
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named configuration, where each value comes from, and what the paper prints about it.

    Attributes:
        config: the configuration.
        sources: dotted name -> "Table 5", ...; a name that is missing is ours.
        printed: derived figures as the paper prints them.
        about: one line on what it is for.
        notes: contradictions and departures, a line each.
    """

    config: Config
    sources: Mapping[str, str]
    printed: Rows
    about: str
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.config.name

    def source(self, name: str) -> str:
        """Where the value of that dotted name comes from."""
        return self.sources.get(name, "ours")


def _nested(rows: Rows) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in rows.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _config(name: str, rows: Rows) -> Config:
    """The configuration of those rows; whatever they leave out takes its default."""
    tree = _nested(rows)
    model, prior = dict(tree["model"]), dict(tree["prior"])
    system, quantizer = model.pop("system", "hrvqvae"), model.pop("quantizer")
    if system == "hrvqvae":
        built: ModelConfig = HRVQVAEConfig(**model, quantizer=TreeQuantizerConfig(**quantizer))
    else:
        kinds = {"vqvae": VQVAEConfig, "vqvae2": VQVAE2Config, "vqgan": VQGANConfig}
        built = kinds[system](**model, quantizer=QuantizerConfig(**quantizer))
    layers, training = dict(prior.pop("network")), TrainingConfig(**prior.pop("training"))
    network = NETWORKS[layers.pop("kind", "pixelsnail")](**layers)
    return Config(
        name=name,
        data=DataConfig(**tree["data"]),
        model=built,
        training=TrainingConfig(**tree["training"]),
        prior=PriorConfig(**prior, network=network, training=training),
    )


def _preset(name: str, about: str, tables: Mapping[str, Rows], ours: Rows, notes: tuple[str, ...] = ()) -> Preset:
    """The union of tables' rows, each with its source, and of rows that are ours, which win."""
    rows: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for table, printed in tables.items():
        rows |= printed
        sources |= dict.fromkeys(printed, table)
        if "model.stride" in printed:
            sources["model.stride"] = f"{table} (latent grid)"
    sources = {key: source for key, source in sources.items() if key not in ours and key != "model.system"}
    printed = PRINTED.get(name, {})
    return Preset(config=_config(name, {**rows, **ours}), sources=sources, printed=printed, about=about, notes=notes)


_FLAT: Rows = {"model.system": "vqvae"}


def _flat_row(row: Rows) -> Rows:
    """An HR-VQVAE row with one flat codebook of as many codewords as its tree has leaves: the same bits (section 5)."""
    rest = {key: value for key, value in row.items() if key not in ("model.quantizer.levels",)}
    leaves = row["model.quantizer.codewords"] ** row["model.quantizer.levels"]
    return {**rest, **_FLAT, "model.quantizer.codewords": leaves}


def _gan_rows(row: Rows, small: bool) -> Rows:
    """VQGAN with the grid and network of an HR-VQVAE row, 1,024 codewords and a transformer prior (section 5)."""
    rest = {key: value for key, value in row.items() if key != "model.quantizer.levels"}
    return {
        **rest, "model.system": "vqgan", "model.quantizer.codewords": 1024,
        "model.adversarial_start": 1_000 if small else 10_000, "model.adversarial_weight": 0.1,
        "model.discriminator_units": 32 if small else 64, "model.discriminator_layers": 2 if small else 3,
        "training.learning_rate": 1e-3 if small else 3e-4,
        "prior.network.kind": "transformer", "prior.network.hidden_units": 128 if small else 512,
        "prior.network.layers": 6 if small else 12, "prior.training.batch_size": 32,
        "prior.training.polyak_decay": 0.99, **_PRIOR_TRAINING,
    }  # fmt: skip


_ABOUT: Mapping[str, str] = {
    "mnist": "MNIST, 28x28 greyscale",
    "cifar10": "CIFAR10, 32x32 colour",
    "imagenet": "ImageNet, 128x128 colour, class folders",
    "ffhq": "FFHQ, 256x256 colour, a folder of faces",
    "emoji32": "a folder of 32x32 colour images in class folders",
    "photos": "any folder of photographs, 256x256 crops",
}
_FFHQ_NOTE = (
    "Table 5 prints 875,000 training steps; 60,000 samples * 400 epochs / 32 are 750,000. 875,000 is what "
    "70,000 samples give. The printed value is kept beside the computed one."
)
_FLAT_NOTE = (
    "VQVAE is not printed: the HR-VQVAE row with one flat codebook of m^3 codewords, so the same bits a position."
)
_TABLE_4_NOTE = (
    "Table 4 prints codebook size 64 beside 512 codewords, and three codeword counts for two levels of ImageNet: "
    "512 codewords of dimension 64 a level are taken."
)
_GAN_NOTE = (
    "VQGAN is not printed: the HR-VQVAE row's grid and network, 1,024 codewords, a transformer prior. Its adversarial "
    "weight is 0.1: with the usual 0.8 and this learning rate, an untrained discriminator undoes the decoder at once."
)
_TABLE_9_NOTE = "Table 9 prints no head count for the middle grid's one attention layer: 8 is ours."
_ROW_OF = {"emoji32": "cifar10", "photos": "ffhq"}  # data that the paper does not have -> the row whose model it takes
_OURS_DATA: Mapping[str, Rows] = {
    "emoji32": {
        "data.dataset": "emoji32", "data.size": 32, "data.channels": 3,
        "training.batch_size": 64, "training.epochs": 60, "training.evaluate_every": 250,
        "training.checkpoint_every": 250, **_FOLLOW, **_PRIOR_SMALL, "prior.network.dropout": (0.3,),
    },
    "photos": {
        "data.dataset": "photos", "data.size": 256, "data.channels": 3, **_PHOTO_DATA,
        "training.batch_size": 8, "training.epochs": 400, "training.learning_rate": 1e-3,
        "training.evaluate_every": 250, "training.checkpoint_every": 250, "training.evaluation_images": 64,
        **_FOLLOW, **_PRIOR_SMALL, "prior.training.batch_size": 8, "prior.network.dropout": (0.3,),
    },
}  # fmt: skip
_ORIGINAL: Mapping[str, Rows] = {
    "ffhq1024": {**TABLE_5["ffhq"], **_FFHQ_DATA, "data.size": 1024, "training.epochs": 0, "training.batch_size": 8},
    "imagenet256": {**TABLE_5["imagenet"], **_CROPPED, "data.size": 256, "training.epochs": 0},
}


def _gan(data: str, row: str, extra: Rows) -> Rows:
    """Rows of a VQGAN preset, all ours but the input: those of its HR-VQVAE row, without what its prior has not."""
    small = row in ("mnist", "cifar10")
    rest = {
        key: value
        for key, value in extra.items()
        if not key.startswith("prior.network") and key != "training.adam_beta2"
    }
    start = {"model.adversarial_start": 1_000} if row != data else {}  # small data, few steps
    return {**_gan_rows(TABLE_6[row], small), **rest, **start, "prior.network.dropout": 0.3 if row != data else 0.1}


def _presets() -> dict[str, Preset]:
    found = []
    for data in ("mnist", "cifar10", "imagenet", "ffhq", "emoji32", "photos"):
        row, about = _ROW_OF.get(data, data), _ABOUT[data]
        mark = "" if row == data else f" ({row})"
        inputs: dict[str, Rows] = {"Table 5": TABLE_5[data]} if row == data else {}
        extra = OURS[data] if row == data else _OURS_DATA[data]
        ours = {**_PRIOR_OURS, **extra}
        notes = (_FFHQ_NOTE,) if data == "ffhq" else ()
        tree = {**inputs, f"Table 6{mark}": TABLE_6[row], f"Table 8{mark}": TABLE_8[row]}
        grids = {**inputs, f"Table 7{mark}": TABLE_7[row], f"Table 9{mark}": TABLE_9[row]}
        flat = {**inputs, f"as Table 6{mark}": _flat_row(TABLE_6[row]), f"as Table 8{mark}": TABLE_8[row]}
        each = {} if row == data else {"prior.batch_size": ()}  # one small batch size for all grids of small data
        found += [
            _preset(f"hrvqvae/{data}", about, tree, ours, notes),
            _preset(f"vqvae/{data}", about, flat, ours, (*notes, _FLAT_NOTE)),
            _preset(f"vqvae2/{data}", about, grids, {**ours, **each}, (*notes, _TABLE_9_NOTE)),
            _preset(f"vqgan/{data}", about, inputs, _gan(data, row, extra), (*notes, _GAN_NOTE)),
        ]
    for data, printed in TABLE_4.items():
        about = f"VQVAE-2 as first published, {data.rstrip('0123456789')} at {_ORIGINAL[data]['data.size']} pixels"
        found.append(
            _preset(
                f"vqvae2-original/{data}",
                about,
                {"Table 4": printed},
                {**_PRIOR_OURS, **_ORIGINAL[data]},
                (_TABLE_4_NOTE,),
            )
        )
    order = ("hrvqvae", "vqvae", "vqvae2", "vqgan", "vqvae2-original")
    return {one.name: one for one in sorted(found, key=lambda one: order.index(one.name.split("/")[0]))}


PRESETS: Mapping[str, Preset] = _presets()


def get(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: there is none; near names are listed.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(PRESETS)}"
    raise InputError(f"unknown preset {name!r}: {hint} (hrvqvae presets lists them)")


def derived(config: Config) -> dict[str, Any]:
    """Figures that follow from a configuration: grids, codewords, training steps, bits, compression factor."""
    data, model, training = config.data, config.model, config.training
    figures: dict[str, Any] = {
        "latent_grids": model.latent_grids(data.size, data.size),
        "codewords": model.num_codewords,
        "codewords_searched": sum(model.num_symbols),
        "image_bits": 8 * data.channels * data.size * data.size,
        "bits_per_image": bits_per_image(model, data.size, data.size),
        "compression_ratio": compression_ratio(model, data.channels, data.size, data.size),
    }
    if data.train_samples and training.epochs:
        figures["training_steps"] = training_steps(data.train_samples, training.epochs, training.batch_size)
    return figures


def describe(preset: Preset) -> dict[str, Any]:
    """Everything about a preset as plain values: values with sources, derived and printed figures, notes."""
    values = {
        name: {"value": value, "source": preset.source(name)}
        for name, value in flatten(to_dict(preset.config))
        if name != "name"
    }
    return {
        "name": preset.name,
        "about": preset.about,
        "system": preset.config.model.system,
        "values": values,
        "derived": derived(preset.config),
        "printed": dict(preset.printed),
        "notes": list(preset.notes),
    }


__all__ = ["PRESETS", "Preset", "derived", "describe", "get"]
