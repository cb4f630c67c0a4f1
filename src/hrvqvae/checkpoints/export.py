"""Export a run to a folder to share, or to the hub: a run folder (`folder.py`) with config.json and
a model card.
"""

import dataclasses
import json
import math
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from hrvqvae.checkpoints import hub, storage
from hrvqvae.checkpoints.folder import (
    GENERATION,
    PROGRESSIVE,
    RunFolder,
    SamplingDefaults,
    is_hub_name,
    list_models,
)
from hrvqvae.checkpoints.run import Run, config_of, copy_state, count_leading, stale_notice
from hrvqvae.config import Config, Levels, bits_per_image, flatten, level_names, to_dict
from hrvqvae.config.parsing import OWN_IMAGES, mark_own_images
from hrvqvae.config.registry import DATASETS, PRIORS, SYSTEMS
from hrvqvae.config.schema import TRAINING_SECTIONS
from hrvqvae.priors.guidance import format_guidance
from hrvqvae.utils.errors import InputError, printable
from hrvqvae.utils.outputs import create_folder, write_atomic
from hrvqvae.utils.progress import note_once

_FENCE = "---\n"  # before and after the YAML at the top of a card
_MORE_VARIETY = "; `--guidance 1` draws from the prior itself, with more variety"
_UNMEASURED = "not in training; `hrvqvae evaluate` measures it"
_SAMPLE_LINE = "new = {call:<38} # (16, C, Y, X), float32 in [0, 1]\n"
_CARD = """\
# Model card: {name}

{title}: images to small grids of discrete codes, and codes to images{drawing}.

| | |
|---|---|
{table}
## How to use it

With the Python package hrvqvae:

```python
from hrvqvae import Model

model = Model.from_pretrained("{name}")
codes = model.encode(images)                 # images: (B, C, Y, X), uint8 or float32 in [0, 1]
decoded = model.decode(codes)                # levels=1: from the coarsest level alone
{sample_line}```

In a shell, beside the folder `{folder}`:

```console
{get_line}$ hrvqvae reconstruct {folder} x.png -o y.png
```
"""
_TAGS = ("vector-quantization", "vq-vae", "image-compression", "image-generation", "pytorch")


def export(
    run: str | Path,
    out: Path,
    *,
    name: str | None = None,
    license: str | None = None,
    compact: bool = False,
    weights: Mapping[str, Tensor] | None = None,
) -> list[Path]:
    """Write the model of a run, its artifacts and a model card to a folder, and return the files.

    Priors are written in half precision. The card is the run's README.md, if there is one. Stale
    artifacts are left out, with a notice. After an error nothing is left of the folder.

    Args:
        name: Name of the model on its card (default: the name of `out`).
        license: Identifier of the license on the hub: mit, cc-by-4.0, ...
        compact: Write the autoencoder in half precision, and the matrices of the priors and the
            progressive decoder in 8 bits. Codes can differ from the run's codes where two codewords
            are about equally near.
        weights: Weights of the autoencoder (default: those in the run). If they differ from the
            run's weights, all artifacts are left out.

    Raises:
        InputError: The run has no model, a file of the run is damaged, or `out` exists or can't be
            written.
    """
    source = Run(run)
    source_folder = source.folder
    config = without_paths(mark_own_images(source.config))
    weights = source.weights if weights is None else weights
    weights_digest = storage.weights_digest(weights)

    # Leave out what was made for other weights.
    stale = source.stale_artifacts()
    left_out = stale_notice(run)
    has_changed = weights_digest != source.weights_digest
    if has_changed:
        stale = [*source.networks, source.entropy_model]
        left_out = [f"card, priors, decoders and entropy model, made for the weights of {run}"]
    for line in left_out:
        note_once(f"left out of {out}: {line}")

    abouts = {}  # metadata of the exported networks, by their folders, such as priors/level-1
    with create_folder(out) as folder:
        target = RunFolder(folder)
        meta = {**storage.read_meta(source.path), "config": to_dict(config)}
        if compact:
            weights = storage.compact_weights(weights, matrices=False)
        storage.write(target.model, weights, meta)
        autoencoder_digest = storage.digest(target.model)
        for network in source.networks:
            if network in stale or not network.file.is_file():
                continue
            network_weights, about = network.read()
            if network.kind == "prior" or compact:
                network_weights = storage.compact_weights(network_weights, matrices=compact)
            about["config"] = to_dict(without_paths(config_of(about, network.file)))
            about["autoencoder"] = autoencoder_digest
            abouts[str(network)] = about
            network_target = RunFolder(folder / str(network))  # such as OUT/priors/level-1
            network_target.path.mkdir(parents=True)
            storage.write(network_target.model, network_weights, about)
        if compact:
            note_once(
                f"{out} has other weights than {run}, so no entropy model: hrvqvae"
                f" fit-entropy-model {shlex.quote(str(out))}"
            )
        elif source.entropy_model.file.is_file() and source.entropy_model not in stale:
            write_atomic(target.tables, source.entropy_model.load().content)
        if source_folder.sampling.is_file() and abouts:  # without networks nothing is sampled
            write_atomic(target.sampling, source_folder.sampling.read_bytes())
        for state in source.earlier_states():
            if compact:
                note_once(
                    f"left out of {out}: {source_folder.states}, by which {run} reads its older"
                    " files of codes"
                )
            # The state of these weights is the export itself.
            elif state.weights_digest != weights_digest:
                copy_state(state, target)
                _remove_paths(Run(target.states / state.weights_digest))
        if source_folder.card.is_file() and not has_changed:
            try:
                card = source_folder.card.read_text("utf-8-sig")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{source_folder.card} is not UTF-8: save it as UTF-8, or move it away"
                ) from error
        else:
            measured = _UNMEASURED if has_changed else _read_evaluation(source_folder)
            title = printable(name or out.name)
            card = _card(source_folder, config, title, meta, abouts, license, measured)
        write_atomic(target.card, _with_front_matter(card, config, license))
        write_atomic(target.config_json, f"{json.dumps(to_dict(config), indent=2)}\n".encode())
    return sorted(path for path in out.rglob("*") if path.is_file())


def without_paths(config: Config) -> Config:
    """Return a configuration without the paths of this machine: of data, codes and initial
    weights.
    """
    values = flatten(config)
    initial = [f"{section}.init_from" for section in TRAINING_SECTIONS]
    # The name of a model inside the package is no path.
    emptied = {field: "" for field in initial if values[field] not in list_models()}
    return config.replace(**{"data.root": None, "prior.codes": None, **emptied})


def _remove_paths(state: Run) -> None:
    """Write the networks of a copied state again, without the paths of this machine."""
    decoder = state.decoders[PROGRESSIVE]
    networks = [(state.path, *storage.read(state.path))]
    if decoder.file.is_file():
        networks.append((decoder.file, *decoder.read()))
    for path, weights, meta in networks:
        meta["config"] = to_dict(without_paths(config_of(meta, path)))
        if path == decoder.file:
            meta["autoencoder"] = storage.digest(state.path)
        storage.write(path, weights, meta)


def push_run(
    run: str | Path,
    name: str,
    *,
    license: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> str:
    """Export a run, upload it to the hub as user/name, and return its address. `options` go to
    `hub.push`.
    """
    with tempfile.TemporaryDirectory() as folder:
        export(run, Path(folder) / "model", name=name, license=license, weights=weights)
        return hub.push(Path(folder) / "model", name, **options)


def _card(
    source: RunFolder,
    config: Config,
    name: str,
    meta: Mapping[str, Any],
    abouts: Mapping[str, Mapping[str, Any]],
    license: str | None,
    measured: str,
) -> str:
    """Return a model card in Markdown, with a table of the data, the training, the networks and the
    figures, which `measured` tells.

    `meta` and `abouts` are the metadata of the autoencoder and of the other networks.
    """
    priors = [about for about in abouts.values() if about["kind"] == "prior"]
    data = config.data
    training = config.training
    model = config.model
    images = "images of one's own" if data.dataset == OWN_IMAGES else data.dataset
    about_images = images
    if data.dataset in DATASETS:  # without the size: images may be resized for training
        about_images = re.sub(r",? \d+x\d+ \w+", "", DATASETS.get(data.dataset).about)
    height, width = data.image_size
    grids = model.geometry.grids(*data.image_size)
    colours = "greyscale" if data.channels == 1 else "colour"
    levels = ", ".join(
        f"{h}x{w} of {k}" for (h, w), k in zip(grids, model.num_symbols, strict=True)
    )
    steps = f", {meta['step']:,} steps" if meta.get("step") else ""
    rows = {
        "data": f"{about_images}; trained on {height}x{width} pixels, {colours}",
        "recipe": (
            f"`{config.name}`, batches of {training.batch_size}, {training.optimizer.capitalize()}"
            f" at {training.learning_rate:g}, seed {training.seed}{steps}; every field is in"
            " config.json"
        ),
        "codes": (
            f"grids and symbols of the levels, coarse first: {levels}; "
            f"{bits_per_image(model, height, width):,.0f} bits per image before priors"
        ),
        "priors": _describe_priors(priors),
    }
    titles = {PROGRESSIVE: "progressive decoder", GENERATION: "decoder for samples"}
    for decoder, decoder_title in titles.items():
        if decoder in abouts:
            rows[decoder_title] = f"trained {abouts[decoder]['step']:,} steps"
    sample_line = ""
    num_drawn = count_leading(map(_levels_of, priors))
    draws_all = num_drawn == len(model.num_symbols)
    if draws_all or (num_drawn and model.decodes_prefixes):
        defaults = source.read_sampling()
        options = "16, seed=0"
        if defaults.levels is None and not draws_all:
            defaults = dataclasses.replace(defaults, levels=num_drawn)
            options += f", levels={num_drawn}"
        rows["samples"] = _describe_sampling(defaults)
        sample_line = _SAMPLE_LINE.format(call=f"model.sample({options})")
    rows["measured"] = measured
    rows["license"] = license or "not stated"
    table = "".join(f"| {label} | {value} |\n" for label, value in rows.items())
    on_hub = is_hub_name(name)
    return _CARD.format(
        name=name,
        title=f"{SYSTEMS.get(model.system).title} of {images}",
        drawing=", with priors that draw new ones" if sample_line else "",
        table=table,
        sample_line=sample_line,
        folder=shlex.quote(name.rpartition("/")[2] if on_hub else name),
        get_line=f"$ hrvqvae hub get {name}\n" if on_hub else "",
    )


def _levels_of(prior: Mapping[str, Any]) -> Levels:
    return range(prior["level"], prior["level"] + prior.get("levels", 1))


def _describe_priors(priors: Sequence[Mapping[str, Any]]) -> str:
    if not priors:
        return "none"
    titles = []
    bits = list[str]()
    for about in priors:
        kind = about["config"]["prior"]["network"]["kind"]
        title = PRIORS.get(kind).title if kind in PRIORS else kind
        titles.append(f"{title} of {level_names(_levels_of(about))}")
        per_level = about.get("level_bits_per_code", [about["bits_per_code"]])
        # NaN: the training was stopped before it was measured
        bits += ["unmeasured" if math.isnan(value) else f"{value:.3f}" for value in per_level]
    return f"{'; '.join(titles)}; {', '.join(bits)} bits per code on held-out images"


def _describe_sampling(defaults: SamplingDefaults) -> str:
    levels = "all levels" if defaults.levels is None else level_names(range(defaults.levels))
    hint = "" if defaults.guidance == 1 else _MORE_VARIETY
    return f"drawn by default with guidance {format_guidance(defaults.guidance)} and {levels}{hint}"


def _read_evaluation(run: RunFolder) -> str:
    """Return a sentence about the last evaluation in a run's metrics.jsonl."""
    text = _UNMEASURED
    # The file may be missing, end in half a line after a kill, or hold other figures.
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        for row in map(json.loads, run.metrics.read_text().splitlines()):
            if row["kind"] == "evaluation":
                usage = ", ".join(f"{share:.1%}" for share in row["usage"])
                ssim = "" if row["ssim"] is None else f", SSIM {row['ssim']:.4f}"
                text = (
                    f"at step {row['step']:,}, on {row['images']:,} test images: MSE"
                    f" {row['mse']:.4e}, PSNR {row['psnr']:.2f} dB{ssim}; codewords in use, level"
                    f" by level: {usage}"
                )
    return text


def _with_front_matter(card: str, config: Config, license: str | None) -> bytes:
    """Return a card with YAML for the hub at its top. If the card has YAML already, only the
    license is set there.
    """
    front_matter = {
        "library_name": "hrvqvae",
        "tags": [*_TAGS, config.model.system, config.data.dataset],
    }
    body = f"\n{card}"
    if card.startswith(_FENCE):
        if license is None:
            return card.encode()
        try:
            _, head, body = card.split(_FENCE, 2)
            front_matter = dict(yaml.safe_load(head))
        except (yaml.YAMLError, ValueError, TypeError) as error:
            raise InputError("the lines at the top of the model card are not YAML") from error
    if license is not None:
        front_matter["license"] = license
    return f"{_FENCE}{yaml.safe_dump(front_matter, sort_keys=False)}{_FENCE}{body}".encode()
