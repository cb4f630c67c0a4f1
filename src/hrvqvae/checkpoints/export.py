"""Export a run to a folder to share: a run folder (`folder.py`) with config.json and a card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.entropy import load_entropy_model
from hrvqvae.checkpoints.folder import (
    DECODERS,
    RunFolder,
    config_of,
    decoder_folder,
    list_models,
    open_run,
    prior_folders,
)
from hrvqvae.config import Config, flatten, to_dict
from hrvqvae.config.parsing import mark_own_images
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.config.schema import TRAINING_SECTIONS
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import create_folder, write_atomic

_TAGS = ("vector-quantization", "vq-vae", "image-compression", "image-generation", "pytorch")
_CARD = """\
# {name}

{title} of images ({dataset}, {height}x{width} pixels), trained for {step:,} steps by the preset
`{preset}`. Levels, coarse first: {levels}. Every field of the training is in config.json.

```python
from hrvqvae import Model

model = Model.from_pretrained("{name}")
codes = model.encode(images)   # images: (B, C, Y, X), uint8 or float32 in [0, 1]
decoded = model.decode(codes)  # levels=1: from the coarsest level alone
```
"""


def export(
    run: str | Path,
    out: Path,
    *,
    name: str | None = None,
    license: str | None = None,
    compact: bool = False,
) -> list[Path]:
    """Write the model of a run, its priors, decoders and entropy model to a folder; return the
    files.

    Priors are written in half precision. The card is the run's README.md, if there is one. After an
    error nothing is left of the folder.

    Args:
        name: Name of the model on its card (default: the name of `out`).
        license: Identifier of the license on the hub: mit, cc-by-4.0, ...
        compact: Write the autoencoder in half precision, and the matrices of the other networks in
            8 bits. A few codes change, so the entropy model is left out.

    Raises:
        InputError: The run has no model, a file of the run is damaged or of another state of the
            autoencoder, or `out` exists or can't be written.
    """
    source = open_run(run)
    weights, meta = storage.read(source.model)
    config = without_paths(mark_own_images(config_of(meta, source.model)))
    if license is not None and source.card.is_file():
        raise InputError(f"{source.card} is the card of this model: state the license there")

    networks = [(folder, "prior") for folder in prior_folders(source.path).values()]
    networks += [(decoder_folder(source.path, kind), kind) for kind in DECODERS]
    with create_folder(out) as path:
        target = RunFolder(path)
        if compact:
            weights = storage.compact_weights(weights, matrices=False)
        storage.write(target.model, weights, {**meta, "config": to_dict(config)})
        for network, kind in networks:
            if network.model.is_file():
                copy = RunFolder(path / network.path.relative_to(source.path))
                _export_network(network, kind, source.digest, copy, target.digest, compact)
        if source.tables.is_file() and not compact:
            write_atomic(target.tables, load_entropy_model(source).content)
        if source.sampling.is_file():
            write_atomic(target.sampling, source.sampling.read_bytes())
        if source.card.is_file():
            card = source.card.read_text("utf-8")
        else:
            card = _write_card(config, name or out.name, meta, license)
        write_atomic(target.card, card.encode())
        write_atomic(target.config_json, f"{json.dumps(to_dict(config), indent=2)}\n".encode())
    return sorted(path for path in out.rglob("*") if path.is_file())


def _export_network(
    network: RunFolder, kind: str, digest: str, target: RunFolder, new_digest: str, compact: bool
) -> None:
    """Copy a prior or a decoder of the autoencoder `digest`, for the exported `new_digest`."""
    weights, meta = network.read_network(kind, digest)
    if kind == "prior" or compact:
        weights = storage.compact_weights(weights, matrices=compact)
    meta["config"] = to_dict(without_paths(config_of(meta, network.model)))
    meta["autoencoder"] = new_digest
    target.path.mkdir(parents=True)
    storage.write(target.model, weights, meta)


def without_paths(config: Config) -> Config:
    """Return a configuration without the paths of this machine: of data, codes and initial
    weights.
    """
    values = flatten(config)
    initial = [f"{section}.init_from" for section in TRAINING_SECTIONS]
    # The name of a model inside the package is no path.
    emptied = {field: "" for field in initial if values[field] not in list_models()}
    return config.replace(**{"data.root": None, "prior.codes": None, **emptied})


def _write_card(config: Config, name: str, meta: Mapping[str, Any], license: str | None) -> str:
    """Return a model card in Markdown, with YAML for the hub at its top."""
    front_matter = {
        "library_name": "hrvqvae",
        "tags": [*_TAGS, config.model.system, config.data.dataset],
    }
    if license is not None:
        front_matter["license"] = license
    height, width = config.data.image_size
    grids = config.model.geometry.grids(height, width)
    levels = zip(grids, config.model.num_symbols, strict=True)
    card = _CARD.format(
        name=name,
        title=SYSTEMS.get(config.model.system).title,
        dataset=config.data.dataset,
        height=height,
        width=width,
        step=meta["step"],
        preset=config.name,
        levels=", ".join(f"{rows}x{columns} of {count}" for (rows, columns), count in levels),
    )
    return f"---\n{yaml.safe_dump(front_matter, sort_keys=False)}---\n\n{card}"
