"""The run folder: its files, its checkpoints, its networks; and the search for a run by name.

RUN/config.yaml         the resolved configuration
    config.json         the configuration, in an exported run
    README.md           the model card, in an exported run
    metrics.jsonl       one line per logged step and evaluation
    model.safetensors   averaged weights, and the configuration
    tables.hrvt         the entropy model (docs/format.md)
    checkpoints/        the two newest checkpoints, such as step-000001000.safetensors
    pictures/           reconstruction sheets, training curves, codeword usage, samples
    prefixes/           the run folder of the progressive decoder
    generation/         the run folder of the decoder for samples and completions
    priors/codes/       the codes of the train split; beside it codes-flipped/, codes-shifted-1/,
                        ... for copies
    priors/level-1/     the run folder of a prior; its model.safetensors has the lowest held-out
                        loss; priors/levels-1-3/ where one prior covers several levels
    sampling.json       default guidance, levels and decoder of samples
    .lock               held by the process that trains here

A prior, a decoder and an entropy model store the digest of the autoencoder's weights. They are
refused with an autoencoder of another digest.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor, nn

from hrvqvae.checkpoints import storage
from hrvqvae.config import Config, Levels, QuantizerConfig, level_names, presets, to_dict
from hrvqvae.config.parsing import from_dict, from_file
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import (
    build,
    build_progressive_decoder,
    build_sample_decoder,
    require_several_levels,
)
from hrvqvae.priors.base import Priors, build_prior
from hrvqvae.priors.guidance import Guidance, list_weights
from hrvqvae.utils.device import resolve_device
from hrvqvae.utils.errors import (
    DamagedFileError,
    InputError,
    expand_home,
    explain_write_errors,
    near_names,
    require,
    require_made_for,
)
from hrvqvae.utils.outputs import remove_temporaries, write_atomic

# folders of the further decoders, which decode the first levels
PROGRESSIVE = "prefixes"  # of the progressive decoder, for reconstructions
GENERATION = "generation"  # of the decoder of samples
DECODERS = (PROGRESSIVE, GENERATION)
_NUM_CHECKPOINTS = 2
_SHIPPED = Path(__file__).parent.parent / "weights"  # one folder per model, as `export` writes them
_Network = TypeVar("_Network", bound=nn.Module)


@dataclass(frozen=True)
class SamplingDefaults:
    """How samples are drawn if no option says otherwise: the fields of sampling.json."""

    guidance: Guidance = 1.0
    levels: int | None = None  #: number of levels to draw; None: all
    #: "progressive" or "generation"; None: the second, if there is one for these levels
    decoder: str | None = None


class RunFolder:
    """The paths in a run folder, its checkpoints and its networks. The folder need not exist."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)  # for messages
        self.config = path / "config.yaml"
        self.config_json = path / "config.json"
        self.card = path / "README.md"
        self.metrics = path / "metrics.jsonl"
        self.model = path / "model.safetensors"
        self.tables = path / "tables.hrvt"
        self.pictures = path / "pictures"
        self.codes = path / "priors" / "codes"
        self.sampling = path / "sampling.json"
        self.checkpoints = path / "checkpoints"

    def __str__(self) -> str:
        return self.name

    # ---- configuration and checkpoints ----

    def prepare(self, config: Config) -> None:
        """Create the folders, and write the configuration. The caller must hold the lock."""
        with explain_write_errors(f"the run folder {self.path}", "; choose another --out"):
            for folder in (self.path, self.checkpoints, self.pictures):
                folder.mkdir(parents=True, exist_ok=True)
                remove_temporaries(folder)
            self.write_config(config)

    def begun(self) -> bool:
        """Return whether the folder holds a checkpoint or a model."""
        return bool(self.saved()) or self.model.is_file()

    def list_made(self) -> list[str]:
        """Return the files that were made for the weights: entropy model, decoders, priors."""
        decoders = [f"{name}/model.safetensors" for name in DECODERS]
        patterns = ("tables.hrvt", *decoders, "priors/level*/model.safetensors")
        files = (path for pattern in patterns for path in self.path.glob(pattern))
        return sorted(path.relative_to(self.path).as_posix() for path in files)

    def write_config(self, config: Config) -> None:
        """Write config.yaml. Raises OSError."""
        write_atomic(self.config, yaml.safe_dump(to_dict(config), sort_keys=False).encode())

    def read_config(self) -> Config:
        """Return the configuration in config.yaml; without this file, that of the weights. Raises
        InputError if neither is there.
        """
        if self.config.is_file():
            return from_file(self.config)
        if not self.model.is_file():
            raise InputError(f"{self.path} is not a run folder (it has no {self.config.name})")
        return config_of(storage.read_meta(self.model), self.model)

    def read_sampling(self) -> SamplingDefaults:
        """Return what sampling.json says. Raises DamagedFileError if a field is wrong."""
        if not self.sampling.is_file():
            return SamplingDefaults()
        try:
            defaults = SamplingDefaults(**json.loads(self.sampling.read_bytes()))
            list_weights(defaults.guidance)
        except (ValueError, TypeError) as error:
            raise DamagedFileError(f"{self.sampling} is damaged: {error}") from error
        return defaults

    def saved(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        return sorted(self.checkpoints.glob(f"step-{'[0-9]' * 9}.safetensors"), reverse=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then delete all but the two newest. Raises OSError if it can't be
        written.
        """
        path = self.checkpoints / f"step-{step:09d}.safetensors"
        storage.write(path, tensors, meta)
        for old in self.saved()[_NUM_CHECKPOINTS:]:
            old.unlink()
        return path

    def load_newest(self, say: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the newest intact checkpoint. A damaged checkpoint is reported with `say`.

        Raises InputError if there is no checkpoint, or DamagedFileError if all are damaged.
        """
        checkpoints = self.saved()
        if not checkpoints:
            raise InputError(
                f"{self.path} holds a model, and no checkpoint to go on from: begin another run"
                " with the weights of this model, by --init-from"
            )
        for path in checkpoints:
            try:
                return storage.read(path)
            except DamagedFileError as error:
                say(f"{error}; an older checkpoint is loaded instead")
        raise DamagedFileError(
            f"every checkpoint in {self.checkpoints} is damaged; train anew with another --out"
        )

    # ---- the weights in this folder ----

    @cached_property
    def digest(self) -> str:
        """The digest of the weights, without their configuration."""
        return storage.weights_digest(storage.read(self.model)[0])

    def read_network(self, kind: str, digest: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the weights and the metadata of a prior or a decoder of an autoencoder.

        Args:
            kind: "prior", PROGRESSIVE or GENERATION.
            digest: Digest of the autoencoder.

        Raises InputError if the file is missing, damaged, or of another autoencoder.
        """
        weights, meta = storage.read(self.model)
        if meta.get("kind") != kind:
            raise DamagedFileError(f"{self.model} is no file of the kind {kind}")
        require_made_for(self.path, meta, {"autoencoder": digest})
        return weights, meta

    # ---- the autoencoder of a run, with its decoders and priors ----

    @torch.inference_mode(False)  # a search with the decoder takes gradients through the weights
    def load(
        self, device: str = "cpu", beam: int | None = None, decoder: str | None = PROGRESSIVE
    ) -> tuple[Autoencoder, Config]:
        """Return the autoencoder in evaluation mode, and its configuration; see `hrvqvae.load`.

        `decoder` is PROGRESSIVE or GENERATION: the decoder of the first levels, if the run has it.
        With None, the autoencoder's own decoder decodes them.

        Raises:
            InputError: config.yaml describes another model, `beam` is given for a model with a
                single level per grid, there is no such device, or the decoder was made for another
                state of the autoencoder.
            DamagedFileError: Weights are damaged, or do not fit their configuration.
        """
        weights, meta = storage.read(self.model)
        config = config_of(meta, self.model)
        _check_agreement("model", config, self)
        if beam is not None:
            quantizer = getattr(config.model, "quantizer", None)
            if not isinstance(quantizer, QuantizerConfig) or quantizer.levels == 1:
                raise InputError(
                    f"{config.model.system} has a single level per grid; a beam needs several"
                )
            require(beam != 0, "beam", beam, "at least 1")
            search = {"model.quantizer.beam": beam, "model.quantizer.joint_beam": True}
            config = config.replace(**search)
        model = _build_with_weights(lambda: build(config), weights, self.model)
        self.digest = storage.weights_digest(weights)
        if decoder is not None and decoder_folder(self.path, decoder).model.is_file():
            config = self._use_decoder(model, config, decoder)
        return model.to(resolve_device(device)), config

    def load_generator(
        self,
        autoencoder: Autoencoder,
        config: Config,
        levels: int | None = None,
        decoder: str | None = None,
    ) -> Autoencoder:
        """Return an autoencoder that decodes samples. It shares the networks of `autoencoder`, but
        decodes the first levels with the decoder of samples, if there is one for these levels.

        Args:
            config: The configuration that `load` returned.
            levels: Number of levels of the samples (default: those of the decoder of samples).
            decoder: "progressive" or "generation" (default: as in sampling.json, else the decoder
                of samples).

        Raises InputError if "generation" is given, and is missing or was trained for other levels.
        """
        wanted = decoder or self.read_sampling().decoder or "generation"
        has_generation = decoder_folder(self.path, GENERATION).model.is_file()
        if decoder == "generation" and not has_generation:
            raise InputError(
                f"{self} has no decoder of samples: train it with hrvqvae train-decoder"
                f" {shlex.quote(str(self))}"
            )
        if wanted == "progressive" or not has_generation:
            return autoencoder

        # a shallow copy shares all submodules; only the copy gets the decoder of samples
        generator = copy.copy(autoencoder)
        trained = self._use_decoder(generator, config, GENERATION).generation.levels
        if levels is None or trained in (0, levels):  # 0: any number of levels
            return generator
        if decoder is None:
            return autoencoder
        raise InputError(
            f"the decoder of samples of {self} decodes {level_names(range(trained))}, not"
            f" {level_names(range(levels))}: give --levels {trained}, or --decoder progressive"
        )

    def _use_decoder(self, model: Autoencoder, config: Config, name: str) -> Config:
        """Let a model decode the first levels with the decoder in the folder `name` of this run.
        Return the configuration with the settings of the decoder.
        """
        folder = decoder_folder(self.path, name)
        weights, meta = folder.read_network(name, self.digest)
        stored = config_of(meta, folder.model)
        config = replace(config, progressive=stored.progressive, generation=stored.generation)
        autoencoder = require_several_levels(model, config)
        build_decoder = build_sample_decoder if name == GENERATION else build_progressive_decoder
        make = partial(build_decoder, autoencoder, config)
        network = _build_with_weights(make, weights, folder.model)
        device = next(model.parameters()).device
        autoencoder.use_progressive_decoder(network.to(device))
        return config

    def count_prior_levels(self) -> int:
        """Return how many levels, from the first on, have a trained prior. Reads no weights."""
        count = 0
        for levels, prior in prior_folders(self.path).items():
            if levels.start == count and prior.model.is_file():
                count = levels.stop
        return count

    def load_priors(self, num_levels: int | None = None) -> Priors:
        """Return the priors of the first levels (default: of all levels).

        Raises:
            InputError: A level has no prior or two priors; a prior is damaged, was made for another
                state of the autoencoder, or was trained on other classes than the first prior.
        """
        num_levels = num_levels or len(self.read_config().model.num_symbols)
        present = self.count_prior_levels()
        if present < num_levels:
            raise InputError(
                f"{self} has no prior of level {present + 1}; train it: hrvqvae train-prior"
                f" {shlex.quote(str(self))}"
            )
        networks = []
        first = dict[str, Any]()  # the metadata of the first prior
        for levels, folder in prior_folders(self.path).items():
            if levels.start >= num_levels:
                break
            weights, meta = folder.read_network("prior", self.digest)
            config = config_of(meta, folder.model)
            first = first or meta
            if meta["classes"] != first["classes"]:
                raise InputError(
                    f"{folder.model} was trained on other classes than level 1; delete"
                    f" {folder.path}, train anew"
                )
            _check_agreement("prior.network", config, folder)
            make = partial(build_prior, config, levels, len(meta["classes"]))
            networks.append(_build_with_weights(make, weights, folder.model))
        return Priors(tuple(networks), tuple(first["classes"]), tuple(first["class_counts"]))

    def sampling_options(
        self, guidance: Guidance | None = None, levels: int | None = None
    ) -> dict[str, Any]:
        """Return the options `guidance` and `levels` of samples.

        If neither is given, both come from sampling.json. If only levels are given, guidance is 1.
        If only guidance is given, levels are None, which stands for all levels; but they come from
        sampling.json if a level has no prior. Raises DamagedFileError as `read_sampling`.
        """
        defaults = self.read_sampling()
        if guidance is None and levels is None:
            guidance = defaults.guidance
            levels = defaults.levels
        if levels is None and self.count_prior_levels() < len(self.read_config().model.num_symbols):
            levels = defaults.levels
        return {"guidance": 1.0 if guidance is None else guidance, "levels": levels}


def save_model(
    path: Path,
    config: Config,
    weights: Mapping[str, Tensor],
    step: int,
    kind: str = "autoencoder",
    **about: Any,
) -> None:
    """Write weights with their configuration and further metadata (see `RunFolder.read_network`).
    Raises OSError.
    """
    storage.write(path, weights, {"kind": kind, "config": to_dict(config), "step": step, **about})


def config_of(meta: Mapping[str, Any], path: Path) -> Config:
    """Return the configuration in the metadata of a weights file. Raises DamagedFileError if it is
    missing.
    """
    if "config" not in meta:
        raise DamagedFileError(f"{path} holds no configuration: it is not a model of hrvqvae")
    stored = copy.deepcopy(meta["config"])

    # the shipped priors have no field for their output
    network = stored.get("prior", {}).get("network", {})
    if network.get("kind") == "gpt":
        network.setdefault("output", "choices")
    return from_dict(stored, str(path))


def prior_folder(run: str | Path, *levels: int) -> RunFolder:
    """Return the folder of a run's prior of consecutive levels. Levels are counted from 0, the
    coarsest.
    """
    name = f"level-{levels[0] + 1}"
    if len(levels) > 1:
        name = f"levels-{levels[0] + 1}-{levels[-1] + 1}"
    return RunFolder(Path(run) / "priors" / name)


def prior_folders(run: str | Path) -> dict[Levels, RunFolder]:
    """Return the folders of a run's priors by their levels. Raises InputError if two priors share a
    level.
    """
    priors = []
    for path in (Path(run) / "priors").glob("level*"):
        match = re.fullmatch(r"levels?-(\d+)(?:-(\d+))?", path.name)
        folder = RunFolder(path)
        if match and (folder.config.is_file() or folder.begun()):
            priors.append((range(int(match[1]) - 1, int(match[2] or match[1])), folder))
    priors.sort(key=lambda prior: (prior[0].start, prior[0].stop))
    for (coarse, folder), (fine, finer_folder) in pairwise(priors):
        if fine.start < coarse.stop:
            raise InputError(
                f"{folder.path} and {finer_folder.path.name} both hold a prior of level"
                f" {fine.start + 1}; delete one of them"
            )
    return dict(priors)


def decoder_folder(run: str | Path, name: str) -> RunFolder:
    """Return the folder of a run's further decoder, PROGRESSIVE or GENERATION."""
    return RunFolder(Path(run) / name)


def list_models() -> list[str]:
    """Return the names of the trained models inside the package."""
    return sorted(path.parent.name for path in _SHIPPED.glob("*/model.safetensors"))


def run_folder(run: str | Path) -> Path:
    """Return `run` as a path, or the folder of the model `run` in the package if no run is at this
    path.
    """
    path = Path(run)
    is_run = RunFolder(path).config.is_file() or RunFolder(path).model.is_file()
    return _SHIPPED / path if str(run) in list_models() and not is_run else path


def open_run(name: str | Path) -> RunFolder:
    """Return the run folder of a trained model: a folder, or the name of a model in the package.
    Raises InputError if there is none.
    """
    run = expand_home(name)
    path = run_folder(run)
    folder = RunFolder(path.absolute(), str(run))
    if folder.model.is_file():
        return folder
    if folder.config.is_file():
        raise InputError(
            f"{path} has no model.safetensors yet; train it: hrvqvae train"
            f" {shlex.quote(str(path))} --resume"
        )
    if path.exists():
        raise InputError(
            f"{path} is not a run folder (it has no model.safetensors); for a checkpoint, give its"
            " run"
        )
    hint = f"models of the package: {', '.join(list_models())}"
    if matches := near_names(str(run).lower(), list_models()):
        hint = f"did you mean {matches}?"
    if str(run) in presets.names():
        command = f"hrvqvae train {run} --out runs/{str(run).replace('/', '-')}"
        raise InputError(f"{run} is a preset, not a trained model; {hint}; train one: {command}")
    raise InputError(f"{path}: there is no such run folder; {hint}")


def require_trainable(name: str | Path) -> RunFolder:
    """Open a run outside the package, where networks can be trained. Raises InputError for any
    other.
    """
    run = open_run(name)
    if run.path.is_relative_to(_SHIPPED):
        raise InputError(
            f"{name} is no run folder; write one and train there: hrvqvae export"
            f" {shlex.quote(str(name))} DIR"
        )
    return run


def _check_agreement(section: str, config: Config, folder: RunFolder) -> None:
    """Raise InputError if the section in config.yaml or config.json beside the weights differs from
    `config`.
    """
    select = attrgetter(section)
    for file in (folder.config, folder.config_json):
        if file.is_file() and select(from_file(file)) != select(config):
            raise InputError(
                f"{file} describes another model than {folder.model.name} holds: undo the change"
                " there, or train anew in another folder"
            )


def _build_with_weights(
    make: Callable[[], _Network], weights: Mapping[str, Tensor], path: Path
) -> _Network:
    """Build a network in evaluation mode with the weights of a file. Raises DamagedFileError if
    they do not fit.
    """
    # The random weights are replaced, so they take no numbers of the caller's generator.
    with torch.random.fork_rng(devices=()):
        network = make()
    try:
        network.requires_grad_(False).load_state_dict(weights)
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: the weights do not fit their configuration") from error
    return network.eval()
