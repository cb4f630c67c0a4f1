"""The model card of a folder that is handed on: README.md, with the front matter that the hub reads."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hrvqvae.checkpoints.folder import RunFolder, is_hub_name
from hrvqvae.config import Config, Levels, bits_per_image, level_names
from hrvqvae.config.registry import DATASETS, PRIORS
from hrvqvae.models.build import system_of
from hrvqvae.utils.errors import InputError

_FRONT = "---\n"
_TAGS = ("vector-quantization", "vq-vae", "image-compression", "image-generation", "pytorch")


def _front_matter(about: Mapping[str, Any]) -> str:
    """The lines of YAML that a hub reads."""
    return f"{_FRONT}{yaml.safe_dump(dict(about), sort_keys=False)}{_FRONT}"


def _about(config: Config, licence: str | None) -> dict[str, Any]:
    """What the hub wants to know; no licence is said where none is given."""
    said = {} if licence is None else {"license": licence}
    return {**said, "library_name": "hrvqvae", "tags": [*_TAGS, config.model.system, config.data.dataset]}


def card_of(
    config: Config, *, name: str, step: int | None = None, bits_per_code: Sequence[float] = (),
    networks: Mapping[Levels, str] | None = None, figures: Mapping[str, Any] | None = None, licence: str | None = None,
    prefix_step: int | None = None,
) -> str:  # fmt: skip
    """A model card in Markdown: data, recipe, model, figures, licence, how to use it.

    Args:
        name: of the model, for people.
        step: training steps of the autoencoder.
        bits_per_code: of each level under its prior, on held-out images; empty where there are no priors.
        networks: kind of each prior's network, by the levels that it covers.
        figures: of the last evaluation in training, as metrics.jsonl has them.
        licence: as the hub names licences: mit, cc-by-4.0, ...
        prefix_step: training steps of the progressive decoder; None where there is none.
    """
    data, training, model = config.data, config.training, config.model
    known = DATASETS.get(data.dataset).about if data.dataset in DATASETS else data.dataset
    known = re.sub(r",? \d+x\d+ \w+", "", known)  # a training may have other sizes than the data set
    grids, colours = model.latent_grids(data.size, data.size), "greyscale" if data.channels == 1 else "colour"
    levels = ", ".join(f"{h}x{w} of {k}" for (h, w), k in zip(grids, model.num_symbols, strict=True))
    steps = f", {step:,} steps" if step else ""
    rows = {
        "data": f"{known}; trained on {data.size}x{data.size} pixels, {colours}",
        "recipe": f"`{config.name}`, batches of {training.batch_size}, {training.optimizer.capitalize()} at "
        f"{training.learning_rate:g}, seed {training.seed}{steps}; every field is in config.json",
        "codes": f"grids and symbols of the levels, coarse first: {levels}; "
        f"{bits_per_image(model, data.size, data.size):,.0f} bits per image before priors",
        "priors": _priors(networks or {}, bits_per_code),
        **({} if prefix_step is None else {"progressive decoder": f"trained {prefix_step:,} steps"}),
        "licence": licence or "not stated; ask whoever trained it",
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    return (
        f"{_front_matter(_about(config, licence))}\n# Model card: {name}\n\n"
        f"{system_of(config).title} of {data.dataset}: images to small grids of discrete codes, and codes to images"
        f"{', with priors that draw new ones' if bits_per_code else ''}.\n\n| | |\n|---|---|\n{table}\n"
        f"{_measured(figures)}\n{_use(name, bool(bits_per_code))}"
    )


def _priors(networks: Mapping[Levels, str], bits_per_code: Sequence[float]) -> str:
    if not networks:
        return "none"
    titles = {levels: PRIORS.get(kind).title if kind in PRIORS else kind for levels, kind in networks.items()}
    covering = "; ".join(f"{title} of {level_names(levels)}" for levels, title in titles.items())
    bits = ", ".join(f"{one:.3f}" for one in bits_per_code)
    return f"{covering}, in half precision; {bits} bits per code on held-out images"


def _measured(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "No figures are kept with this model; `hrvqvae evaluate` measures them.\n"
    ssim = "" if figures.get("ssim") is None else f", SSIM {figures['ssim']:.4f}"
    usage = ", ".join(f"{share:.1%}" for share in figures.get("usage", ()))
    return (
        f"Measured at step {figures['step']:,} of the training, on {figures['images']:,} test images: MSE "
        f"{figures['mse']:.4e}, PSNR {figures['psnr']:.2f} dB{ssim}; codewords in use, level by level: {usage}.\n"
    )


def _use(name: str, priors: bool) -> str:
    drawn = "new = model.sample(16, seed=0)               # (16, C, Y, X), float32 in [0, 1]\n" if priors else ""
    folder = shlex.quote(name.rpartition("/")[2] if is_hub_name(name) else name)
    got = f"$ hrvqvae hub get {name}\n" if is_hub_name(name) else ""
    return (
        "## How to use it\n\nWith the Python package hrvqvae:\n\n```python\nfrom hrvqvae import TrainedModel\n\n"
        f'model = TrainedModel.from_pretrained("{name}")\n'
        "codes = model.encode(images)                 # images: (B, C, Y, X), uint8 or float32 in [0, 1]\n"
        "decoded = model.decode(codes)                # levels=1: from the coarsest level alone\n"
        f"{drawn}```\n\nIn a shell, beside the folder `{folder}`:\n\n"
        f"```console\n{got}$ hrvqvae reconstruct {folder} x.png -o y.png\n```\n"
    )


def last_figures(run: RunFolder) -> dict[str, Any] | None:
    """The last evaluation in a run's metrics.jsonl, or None where there is none."""
    found = None
    try:
        for line in run.metrics.read_text().splitlines():
            row = json.loads(line)
            found = row if row.get("kind") == "evaluation" else found
    except (OSError, ValueError, AttributeError):  # there is none, or its last line was cut by a kill
        pass
    return found if found is not None and {"step", "images", "mse", "psnr"} <= found.keys() else None


def kept_card(folder: Path, config: Config, licence: str | None) -> str | None:
    """The card that lies in a folder, or None; front matter is put before it if it has none, and the licence into it.

    Raises:
        InputError: its front matter is no YAML.
    """
    path = RunFolder(folder).card
    if not path.is_file():
        return None
    text = path.read_text()
    if not text.startswith(_FRONT):
        return f"{_front_matter(_about(config, licence))}\n{text}"
    if licence is None:
        return text
    try:
        _, head, body = text.split(_FRONT, 2)
        return _front_matter({**yaml.safe_load(head), "license": licence}) + body
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise InputError(f"the lines at the top of {path} are not YAML") from error
