"""A trained run: its autoencoder and its artifacts (the priors, the progressive decoder and the
entropy model).

Each artifact stores a digest of its autoencoder, and is stale if the autoencoder has changed since.
Priors and the progressive decoder store the digest of the weights file. The entropy model stores
the digest of the tensors in it.

A stale artifact is never deleted. Using a stale artifact is an error that names the command to
renew it, except that a stale progressive decoder is ignored with a notice.
"""

from __future__ import annotations

import copy
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.codemaps import extract_codes, load_or_extract
from hrvqvae.checkpoints.folder import (
    GENERATION,
    PROGRESSIVE,
    RunFolder,
    decoder_folder,
    locate,
    prior_folders,
    run_folder,
)
from hrvqvae.compression.entropy_model import EntropyModel, read_entropy_model
from hrvqvae.compression.learning import SMALL_HIDDEN, fit
from hrvqvae.config import Config, Levels, QuantizerConfig, level_names, to_dict
from hrvqvae.config.parsing import from_dict, from_file, override_reading
from hrvqvae.data.copies import list_copies
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.blocks import ConditionalDecoder
from hrvqvae.models.build import (
    build,
    build_progressive_decoder,
    build_sample_decoder,
    require_several_levels,
)
from hrvqvae.priors.base import Priors, build_prior
from hrvqvae.priors.guidance import Guidance
from hrvqvae.utils.device import resolve_device
from hrvqvae.utils.errors import (
    DamagedFileError,
    InputError,
    expand_home,
    explain_write_errors,
    require,
)
from hrvqvae.utils.locks import lock_file
from hrvqvae.utils.outputs import replace_file, write_atomic
from hrvqvae.utils.progress import Say, note, note_once

# The folder of each decoder of prefixes in a run, and what a model does without this decoder.
DECODERS = {
    PROGRESSIVE: "prefixes are decoded by the decoder of all levels",
    GENERATION: "samples are decoded like reconstructions",
}
_Network = TypeVar("_Network", bound=nn.Module)


def save_model(
    path: Path,
    config: Config,
    weights: Mapping[str, Tensor],
    step: int,
    kind: str = "autoencoder",
    **about: Any,
) -> None:
    """Write weights with their configuration and further metadata (see `NetworkArtifact.read`).
    Raises OSError.
    """
    storage.write(path, weights, {"kind": kind, "config": to_dict(config), "step": step, **about})


def config_of(meta: Mapping[str, Any], path: Path) -> Config:
    """Return the configuration in the metadata of a weights file. Raises DamagedFileError if it is
    missing.
    """
    if "config" not in meta:
        raise DamagedFileError(f"{path} holds no configuration: it is not a model of hrvqvae")
    return from_dict(meta["config"], str(path))


def renewal_advice(run: str | Path) -> str:
    """Return the end of a message about a stale artifact, which says how to renew the artifact."""
    return f"made for another state of the model {run}: delete it, and train it again"


def count_leading(parts: Iterable[Levels]) -> int:
    """Return the number of levels, from the first on, that lie in parts, given coarse first."""
    count = 0
    for levels in parts:
        if levels.start == count:
            count = levels.stop
    return count


class Run:
    """A run folder, a weights file or a model inside the package. Raises InputError if the name is
    none of these.
    """

    def __init__(self, name: str | Path) -> None:
        # `path`: the weights file of the autoencoder
        self.name = expand_home(name)
        self.path = locate(self.name).absolute()
        # the name that stays right if the working directory changes
        absolute = self.name.absolute()
        self.place = absolute if self.path.is_relative_to(absolute) else self.name
        self.folder = RunFolder(self.path.parent)

    def __str__(self) -> str:
        return str(self.name)

    @cached_property
    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        return storage.read_with_digest(self.path)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The autoencoder's weights, on the CPU."""
        return self._content[0]

    @cached_property
    def digest(self) -> str:
        """The digest of the weights file."""
        return self._content[2]

    @cached_property
    def weights_digest(self) -> str:
        """The digest of the tensors in the weights file, without its metadata."""
        return storage.weights_digest(self.weights)

    @cached_property
    def config(self) -> Config:
        """The configuration of the autoencoder's training, from the header of the weights file."""
        return config_of(storage.read_meta(self.path), self.path)

    @cached_property
    def folder_config(self) -> Config:
        """The configuration in config.yaml; without this file beside the weights, `config`."""
        if self.is_trainable:
            return self.folder.read_config()
        return self.config

    @property
    def is_trainable(self) -> bool:
        """Whether training may change the weights: they lie in a run folder with config.yaml."""
        return self.path == self.folder.model and self.folder.config.is_file()

    @torch.inference_mode(False)  # a rate-distortion search takes gradients through the weights
    def load(
        self, device: str = "cpu", beam: int | None = None, decoder: str | None = PROGRESSIVE
    ) -> tuple[Autoencoder, Config]:
        """Return the autoencoder in evaluation mode, and its configuration; see `hrvqvae.load`.

        `decoder` names the decoder of `DECODERS` that decodes prefixes of the levels, if the run
        has it; with None, the autoencoder's decoder does.

        Raises:
            InputError: config.yaml describes another model, `beam` is given for a model with a
                single level per grid, or there is no such device.
            DamagedFileError: Weights are damaged, or do not fit their configuration.
        """
        # Fill the cached properties `config`, `digest` and `weights_digest` here, so that all come
        # from one reading of the file.
        weights, meta, digest = self._content
        config = self.config = config_of(meta, self.path)
        _check_agreement("model", config, self.path)
        if beam is not None:
            quantizer = getattr(config.model, "quantizer", None)
            if not isinstance(quantizer, QuantizerConfig) or quantizer.levels == 1:
                raise InputError(
                    f"{config.model.system} has a single level per grid; a beam needs several"
                )
            require(beam != 0, "beam", beam, "at least 1")
            config = config.replace(**{"model.quantizer.encoding_beam": beam})
        model = _build_with_weights(lambda: build(config), weights, self.path)

        # The model holds the weights now; keep the digests alone.
        self.digest = digest
        self.weights_digest = storage.weights_digest(weights)
        del self._content
        if decoder is not None:
            config = self._use_decoder(model, config, decoder)
        return model.to(resolve_device(device)), config

    def load_generator(
        self,
        autoencoder: Autoencoder,
        config: Config,
        levels: int | None = None,
        decoder: str | None = None,
    ) -> Autoencoder:
        """Return an autoencoder that decodes samples: it shares the networks of `autoencoder`, but
        decodes prefixes with another decoder of this run.

        Args:
            config: The configuration that `load` returned.
            levels: Number of levels of the samples (default: those that the decoder was trained
                for).
            decoder: "progressive" or "generation" (default: the one that sampling.json names, else
                the decoder of samples, if there is one). The progressive decoder replaces a
                decoder of samples that is missing or stale, with a notice. It also replaces a
                decoder of samples for other levels, unless `decoder` names that decoder.

        Raises:
            InputError: The decoder of samples is given, and was trained for other levels.
            DamagedFileError: As `load`.
        """
        name = decoder or self.folder.read_sampling().decoder
        if name is None and self.decoders[GENERATION].file.is_file():
            name = GENERATION
        if name != GENERATION:
            return autoencoder
        # The copy shares all submodules. The decoder of samples is none: only the copy gets it.
        generator = copy.copy(autoencoder)
        used = self._use_decoder(generator, config, GENERATION)
        trained = used.generation.levels
        if used is config:  # the decoder of samples is missing or stale
            return autoencoder
        # a decoder whose configuration says 0 levels decodes any number
        if levels is None or trained in (0, levels):
            return generator
        if decoder is None:
            return autoencoder
        raise InputError(
            f"the decoder of samples of {self} decodes {level_names(range(trained))}, not"
            f" {level_names(range(levels))}: give --levels {trained}, or --decoder progressive"
        )

    def _use_decoder(self, model: Autoencoder, config: Config, name: str) -> Config:
        """Let a model decode prefixes with a decoder of this run, unless it is missing or stale.

        Return the configuration with the settings of the decoder.
        """
        decoder = self.decoders[name]
        is_there = self.path == self.folder.model and decoder.file.is_file()
        if not is_there or decoder.is_stale():
            if is_there or name != PROGRESSIVE:  # a run need not have a progressive decoder
                reason = f"was {renewal_advice(self.name)}" if is_there else "is missing"
                note_once(f"{DECODERS[name]}: {decoder.path} {reason}")
            return config
        weights, meta = decoder.read()
        stored = config_of(meta, decoder.file)
        config = replace(config, progressive=stored.progressive, generation=stored.generation)

        # not from `model`, since `_build_with_weights` first builds on the meta device
        def make() -> ConditionalDecoder:
            autoencoder = require_several_levels(build(config), config)
            build_decoder = (
                build_sample_decoder if name == GENERATION else build_progressive_decoder
            )
            return build_decoder(autoencoder, config)

        network = _build_with_weights(make, weights, decoder.file)
        device = next(model.parameters()).device
        require_several_levels(model, config).use_progressive_decoder(network.to(device))
        return config

    @property
    def priors(self) -> dict[Levels, NetworkArtifact]:
        """The priors, trained or not, by their levels. Raises InputError if two priors share a
        level.
        """
        return {
            levels: NetworkArtifact(self, folder.path, folder.model, "prior", levels)
            for levels, folder in prior_folders(self.folder.path).items()
        }

    @property
    def decoders(self) -> dict[str, NetworkArtifact]:
        """The decoders of prefixes, trained or not, by their names in `DECODERS`."""
        folders = {name: decoder_folder(self.folder.path, name) for name in DECODERS}
        return {
            name: NetworkArtifact(self, folder.path, folder.model, name)
            for name, folder in folders.items()
        }

    @property
    def networks(self) -> list[NetworkArtifact]:
        """The priors and the decoders of prefixes, trained or not."""
        return [*self.priors.values(), *self.decoders.values()]

    @property
    def entropy_model(self) -> EntropyModelArtifact:
        """The entropy model."""
        return EntropyModelArtifact(self, self.folder.tables, self.folder.tables)

    def stale_artifacts(self) -> list[Artifact]:
        """Return the stale artifacts that can be read, including networks whose training has not
        finished.
        """
        stale = []
        with suppress(OSError, InputError):  # `priors` raises if two share a level
            for artifact in (*self.networks, self.entropy_model):
                with suppress(OSError, InputError):
                    if artifact.is_stale():
                        stale.append(artifact)
        return stale

    def count_prior_levels(self) -> int:
        """Return how many levels, from the first on, have a trained prior. Reads no weights."""
        return count_leading(
            levels for levels, prior in self.priors.items() if prior.file.is_file()
        )

    def missing_priors(self, num_levels: int | None = None) -> str:
        """Return the command that trains the missing priors of the first levels (default: all).

        Return "" if each of these levels has a prior. Reads no weights.
        """
        priors = self.priors
        trained = [levels for levels, prior in priors.items() if prior.file.is_file()]
        count = num_levels or len(self.config.model.num_symbols)
        missing = [n for n in range(count) if not any(n in levels for levels in trained)]
        if not missing:
            return ""
        option = ""
        if len(trained) < len(priors):  # some have a configuration, but no weights yet
            option = " --resume"
        elif trained:  # without --level, train-prior would refuse the trained priors
            option = f" --level {missing[0] + 1}"
        name = shlex.quote(str(self))
        is_shipped = run_folder(self.name) != Path(self.name)  # nothing is trained there
        if is_shipped:
            return f"hrvqvae export {name} DIR, then hrvqvae train-prior DIR{option}"
        return f"hrvqvae train-prior {name}{option}"

    def load_priors(self, num_levels: int | None = None) -> Priors:
        """Return the priors of the first levels (default: of all levels).

        Raises:
            InputError: One of these levels has no prior or two priors; a prior is stale, damaged,
                or was trained on other classes than the first prior; or a prior's config.yaml
                describes another network.
        """
        if command := self.missing_priors(num_levels):
            present = self.count_prior_levels()
            can_draw = present and self.config.model.decodes_prefixes
            instead = f", or draw {level_names(range(present))} alone" if can_draw else ""
            raise InputError(f"{self} lacks priors; train them: {command}{instead}")
        networks = []
        first = dict[str, Any]()  # the metadata of the first prior
        for covered, prior in self.priors.items():
            if num_levels is not None and covered.start >= num_levels:
                break
            weights, meta = prior.read()
            config = config_of(meta, prior.file)
            first = first or meta
            if not _agree_on_classes(meta["classes"], first["classes"]):
                raise InputError(
                    f"{prior.file} was trained on other classes than level 1; delete {prior.path},"
                    " train anew"
                )
            _check_agreement("prior.network", config, prior.file)
            levels = range(meta["level"], meta["level"] + meta.get("levels", 1))
            make = partial(build_prior, config, levels, len(meta["classes"]))
            networks.append(_build_with_weights(make, weights, prior.file))
        return Priors(tuple(networks), tuple(first["classes"]), tuple(first["class_counts"]))

    def sampling_options(
        self, guidance: Guidance | None = None, levels: int | None = None
    ) -> dict[str, Any]:
        """Return the options `guidance` and `levels` of samples.

        If neither is given, both come from sampling.json. If only levels are given, guidance is 1.
        If only guidance is given, levels are None, which stands for all levels; but they come from
        sampling.json if a level has no prior. Raises DamagedFileError as `read_sampling`.
        """
        defaults = self.folder.read_sampling()
        if guidance is None and levels is None:
            guidance = defaults.guidance
            levels = defaults.levels
        if levels is None and self.missing_priors():
            levels = defaults.levels
        return {"guidance": 1.0 if guidance is None else guidance, "levels": levels}

    def wrote(self, fingerprint: bytes) -> bool:
        """Return whether this run wrote files of codes with this fingerprint."""
        with suppress(InputError):
            entropy_model = self.entropy_model.load()
            # Files written before the entropy model was fitted have the fingerprint of `bare`.
            return fingerprint in (entropy_model.fingerprint, entropy_model.bare.fingerprint)
        return False

    def earlier_states(self) -> list[Run]:
        """Return the states of this run that `keep_state` copied, each as a run."""
        return [Run(path.parent) for path in sorted(self.folder.states.glob("*/model.safetensors"))]

    def keep_state(self) -> None:
        """Copy this state to RUN/states/DIGEST, so that its files of codes stay readable after
        further training.
        """
        if self.is_trainable:
            copy_state(self, self.folder)


def copy_state(run: Run, target: RunFolder) -> None:
    """Copy the weights, progressive decoder and entropy model of a run into TARGET/states/DIGEST,
    if not there yet.
    """
    state = RunFolder(target.states / run.weights_digest)
    decoder = decoder_folder(state.path, PROGRESSIVE).model
    artifacts = {decoder: run.decoders[PROGRESSIVE], state.tables: run.entropy_model}
    files = {
        path: part.file
        for path, part in artifacts.items()
        if part.file.is_file() and not part.is_stale()
    }
    files[state.model] = run.path  # the last, because it completes the state
    try:
        for path, source in files.items():
            is_new = not path.is_file()
            # The progressive decoder may have been trained again for the same weights.
            if is_new or (path == decoder and path.read_bytes() != source.read_bytes()):
                path.parent.mkdir(parents=True, exist_ok=True)
                with replace_file(path) as copy:
                    copy.write_bytes(source.read_bytes())
                    if source == run.path and Run(copy).weights_digest != run.weights_digest:
                        raise InputError(
                            f"{run.path} was replaced since it was loaded: load it again"
                        )
    except OSError as error:
        note(
            f"{state.path} can't be written ({error.strerror or error}): keep a copy of {run.path}"
            " to read its codes"
        )


@dataclass(frozen=True)
class Artifact(ABC):
    """A network or an entropy model that was made for one state of a run's autoencoder. It need not
    exist.
    """

    run: Run
    path: Path  # the folder of a network, or the file of an entropy model
    file: Path  # the file of the network's weights or of the entropy model

    def __str__(self) -> str:
        return str(self.path.relative_to(self.run.folder.path))

    @abstractmethod
    def is_stale(self) -> bool:
        """Return whether the artifact was made for another state. Raises InputError if the file is
        unreadable.
        """


@dataclass(frozen=True)
class NetworkArtifact(Artifact):
    """A prior or a decoder of prefixes, in a run folder of its own."""

    kind: str  # "prior", or the name of a decoder in `DECODERS`
    levels: Levels | None = None  # of a prior; None for a decoder

    @property
    def config(self) -> Config:
        """The configuration of the network: config.yaml or, without this file, from the weights
        file.
        """
        folder = RunFolder(self.path)
        return (
            folder.read_config()
            if folder.config.is_file()
            else config_of(storage.read_meta(self.file), self.file)
        )

    def is_stale(self) -> bool:
        return RunFolder(self.path).is_stale(self.run.digest)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the weights and the metadata. Raises InputError if the file is missing, stale or
        damaged.
        """
        weights, meta = storage.read(self.file)
        required = {"config", "autoencoder", "step"}
        if self.kind == "prior":
            required |= {"level", "classes", "class_counts", "bits_per_code"}
        if meta.get("kind") != self.kind or not required <= meta.keys():
            raise DamagedFileError(f"{self.file} is no file of the kind {self.kind}")
        if meta["autoencoder"] != self.run.digest:
            raise InputError(f"{self.file} was {renewal_advice(self.run.name)}")
        return weights, meta


@dataclass(frozen=True)
class EntropyModelArtifact(Artifact):
    """The entropy model. It stores the digest of the tensors, so an export does not make it
    stale.
    """

    def is_stale(self) -> bool:
        return self.path.is_file() and self._read().model != self.run.weights_digest

    def _read(self) -> EntropyModel:
        return read_entropy_model(self.path.read_bytes(), str(self.path))

    def is_small(self) -> bool:
        """Return whether the file has the small networks of a web page."""
        sizes = {len(network.bias) for network in self._read().networks if network}
        return sizes == {SMALL_HIDDEN}

    def load(self, weights_digest: str | None = None) -> EntropyModel:
        """Return the fitted entropy model or, if none was fitted, an entropy model without
        networks.

        Raises InputError if it was not made for weights with `weights_digest` (default: the run's
        weights), and DamagedFileError if the file is damaged, or its grids or symbols are not the
        autoencoder's.
        """
        digest = weights_digest or self.run.weights_digest
        model_config = self.run.config.model
        bare = EntropyModel(
            str(self.run.name), digest, model_config.geometry, model_config.num_symbols
        )
        if not self.path.is_file():
            return bare
        fitted = self._read()
        if fitted.model != digest:
            raise InputError(f"{self.file} was {renewal_advice(self.run.name)}")
        if (fitted.geometry, fitted.symbols) != (bare.geometry, bare.symbols):
            raise DamagedFileError(
                f"{self.path} is damaged: it has other grids or symbols than the model beside it"
            )
        return fitted

    def fit(
        self,
        root: str | None = None,
        effort: float = 1.0,
        shifts: int = 0,
        device: torch.device | None = None,
        say: Say = print,
        small: bool = False,
        fields: Mapping[str, Any] = MappingProxyType({}),
    ) -> Path:
        """Fit the entropy model to the codes of the training split, write it beside the weights,
        and return its file.

        If the model was trained on mirror images too, their codes are fitted as well. If these
        weights have an entropy model already, it is kept, because the files of codes written with
        it can't be read without it.

        Args:
            root: Folder of the data (default: as in training).
            effort: Duration of the fit, in multiples of the usual duration.
            shifts: Number of further copies of the images to fit, each shifted by some pixels.
            small: Limit the file to a few kilobytes per level, for a web page.
            fields: Fields of reading the data, such as "data.on_error".

        Raises InputError as `override_reading`, or if data is missing, another process fits the
        model, or the weights were replaced meanwhile.
        """
        with lock_file(self.path):
            if self._restore_fitted(say):
                return self.path
            model, config = self.run.load(decoder=None)
            config = override_reading(config.with_root(root), fields)

            # The codes of each copy of the images; a run folder keeps them.
            maps = []
            for image_copy in list_copies(config.data.flip, shifts):
                augment = image_copy.augment
                if self.run.folder.config.is_file():
                    path = self.run.folder.codes.with_name(image_copy.folder)
                    maps.append(
                        load_or_extract(
                            path, model, self.run.digest, config, "train", device, say, augment
                        )
                    )
                else:
                    maps.append(extract_codes(model, config, "train", device, augment=augment))
            by_level = zip(*(copy_maps.levels for copy_maps in maps), strict=True)
            levels = [np.concatenate(arrays) for arrays in by_level]

            settings = config.model
            digest = self.run.weights_digest
            bare = EntropyModel(config.name, digest, settings.geometry, settings.num_symbols)
            content = fit(bare, levels, effort, say, len(maps), small).content
            if Run(self.run.name).weights_digest != digest:
                raise InputError(
                    f"{self.run.path} was replaced while its entropy model was fitted; fit it again"
                )
            # Meanwhile an entropy model of these weights may have been copied into the run.
            if not self._restore_fitted(say):
                self._replace(content)
        return self.path

    def _replace(self, content: bytes) -> None:
        """Write the entropy model. An entropy model of other weights that is in its place moves to
        the folder of those weights in `states`.
        """
        with explain_write_errors(self.path):
            if self.path.is_file():
                state = RunFolder(self.run.folder.states / self._read().model)
                state.path.mkdir(parents=True, exist_ok=True)
                self.path.replace(state.tables)
            write_atomic(self.path, content)

    def _restore_fitted(self, say: Say) -> bool:
        """Restore the entropy model of these weights from `states` if need be, and return whether
        there is one.
        """
        copy = RunFolder(self.run.folder.states / self.run.weights_digest).tables
        if not self.path.is_file() or self.is_stale():
            if not copy.is_file():
                return False
            self._replace(copy.read_bytes())
        say(
            f"{self.path} is kept: it fits these weights, and files of codes may have been written"
            " with it"
        )
        return True


def _agree_on_classes(names: list[str], expected: list[str]) -> bool:
    """Return whether names of classes are equal. Numbers 0, 1, ... agree with as many names, since
    version 1.0.0 gave numbers to classes of some data sets.
    """
    numbers = [*map(str, range(len(expected)))]
    is_numbered = numbers in (names, expected) and not {*names} & {*expected}
    return names == expected or (len(names) == len(expected) and is_numbered)


def _check_agreement(section: str, config: Config, path: Path) -> None:
    """Raise InputError if the section in config.yaml or config.json beside a weights file differs
    from `config`.
    """
    folder = RunFolder(path.parent)
    select = attrgetter(section)
    for file in (folder.config, folder.config_json):
        if path == folder.model and file.is_file() and select(from_file(file)) != select(config):
            raise InputError(
                f"{file} describes another model than {path.name} holds: undo the change there, or "
                "train anew in another folder"
            )


def _build_with_weights(
    make: Callable[[], _Network], weights: Mapping[str, Tensor], path: Path
) -> _Network:
    """Build a network in evaluation mode with the weights of a file. Raises DamagedFileError if
    they do not fit.
    """
    # The network is first built on the meta device, where tensors take no memory. This build stops
    # when the network has far more parameters than the file, so that a small file can't take much
    # time or memory.
    misfit = DamagedFileError(f"{path}: the weights do not fit their configuration")
    budget = 4 * len(weights) + 100

    def count_parameter(*_: object) -> None:
        nonlocal budget
        budget -= 1
        if budget < 0:
            raise misfit

    hook = register_module_parameter_registration_hook(count_parameter)
    try:
        with torch.device("meta"):
            hollow = make()
        hollow.load_state_dict(weights, assign=True)  # compares names and shapes
    except RuntimeError as error:  # also a size that overflows
        raise misfit from error
    finally:
        hook.remove()

    # The random weights are replaced, so they take no numbers of the caller's generator.
    with torch.random.fork_rng(devices=()):
        network = make()
    try:
        network.requires_grad_(False).load_state_dict(weights)
    except RuntimeError as error:
        raise misfit from error
    return network.eval()


def stale_notice(name: str | Path) -> list[str]:
    """Return a list of one line that names a run's stale artifacts and their renewal; [] if none is
    stale.
    """
    stale = []
    with suppress(InputError):
        stale = Run(name).stale_artifacts()
    return [f"{', '.join(map(str, stale))}: {renewal_advice(name)}"] if stale else []
