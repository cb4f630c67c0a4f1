"""A trained run: its autoencoder and its artifacts (the priors, the progressive decoder and the entropy model).

Each artifact keeps a digest of the autoencoder that it was made for: networks that of the weights file, the entropy
model that of the weights alone, because files of codes outlive an export. An artifact of another state is stale. It is
never deleted, and using it is an error that names the command that renews it. Only a stale progressive decoder is
passed over, with a notice.
"""

from __future__ import annotations

import json
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.codemaps import CodeMaps, extract_codes, list_copies, load_or_extract
from hrvqvae.checkpoints.folder import RunFolder, locate, prior_folders, progressive_folder, run_folder
from hrvqvae.compression.entropy_model import EntropyModel, read_entropy_model
from hrvqvae.compression.learning import fit
from hrvqvae.config import Config, Levels, SingleGridConfig, to_dict
from hrvqvae.config.parsing import from_dict, from_file
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.blocks import ProgressiveDecoder
from hrvqvae.models.build import build, build_progressive_decoder, require_several_levels
from hrvqvae.priors.base import Priors, build_prior
from hrvqvae.utils.device import resolve_device
from hrvqvae.utils.errors import DamagedFileError, InputError, explain_write_errors, one_line
from hrvqvae.utils.locks import lock_file
from hrvqvae.utils.outputs import write_atomic
from hrvqvae.utils.progress import note, told_once

_Network = TypeVar("_Network", bound=nn.Module)


def save_model(
    path: Path, config: Config, weights: Mapping[str, Tensor], step: int, kind: str = "autoencoder", **about: Any
) -> None:
    """Write weights with their configuration and what else `NetworkArtifact.read` requires. Raises OSError."""
    storage.write(path, weights, {"kind": kind, "config": to_dict(config), "step": step, **about})


def config_of(meta: Mapping[str, Any], path: Path) -> Config:
    """Return the configuration inside a weights file. Raises DamagedFileError where it holds none."""
    if "config" not in meta:
        raise DamagedFileError(f"{path} holds no configuration: it is not a model of hrvqvae")
    return from_dict(meta["config"], str(path))


def renewal(run: str | Path) -> str:
    """Return the end of a message about a stale artifact: how to renew it."""
    return f"made for another state of the model; renew with: hrvqvae refresh {shlex.quote(str(run))}"


class Run:
    """A run folder, a weights file, or a model inside the package. Raises InputError if there is none of that name."""

    def __init__(self, name: str | Path) -> None:
        self.name, self.path = name, locate(name)  # the path of the autoencoder's weights
        self.folder = RunFolder(self.path.parent)

    def __str__(self) -> str:
        return str(self.name)

    # The autoencoder

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
        """The digest of the weights alone."""
        return storage.weights_digest(self.weights)

    @cached_property
    def config(self) -> Config:
        """The configuration that the weights were trained by; only the header of their file is read."""
        return config_of(storage.read_meta(self.path), self.path)

    @cached_property
    def described_config(self) -> Config:
        """The configuration in config.yaml, or else that of the weights."""
        described = self.path == self.folder.model and self.folder.config.is_file()
        return self.folder.read_config() if described else self.config

    @torch.inference_mode(False)  # a rate-distortion search takes gradients through the weights
    def load(
        self, device: str = "cpu", beam: int | None = None, progressive: bool = True
    ) -> tuple[Autoencoder, Config]:
        """Return the autoencoder in evaluation mode, and its configuration.

        Args:
            beam: Number of candidates that the search keeps per level (default: as many as in training).
            progressive: Decode prefixes by the progressive decoder, unless it is stale.

        Raises:
            InputError: config.yaml describes another model, a beam has no linked codebooks to search, or there is no
                such device.
            DamagedFileError: Weights are damaged or do not fit their configuration.
        """
        weights, meta, _ = self._content
        config = config_of(meta, self.path)
        _check_agreement(lambda described: described.model, config, self.path)
        if beam is not None:
            described = config.model
            if not isinstance(described, SingleGridConfig) or described.quantizer.group_size == 1:
                raise InputError(f"{described.system} has no linked codebooks, which a beam searches")
            config = config.replace(**{"model.quantizer.beam": beam})
        model = _build_filled(lambda: build(config), weights, self.path)
        _ = self.digest, self.weights_digest
        del self._content  # a second copy of the weights
        decoder = self.progressive
        if progressive and self.path == self.folder.model and decoder.exists():
            if decoder.is_stale():
                told_once(f"prefixes are decoded by the decoder of all levels: {decoder.path} was {renewal(self.name)}")
            else:
                weights, about = decoder.read()
                config = replace(config, progressive=config_of(about, decoder.file).progressive)

                def make() -> ProgressiveDecoder:
                    return build_progressive_decoder(require_several_levels(build(config), config), config)

                progressive_decoder = _build_filled(make, weights, decoder.file)
                require_several_levels(model, config).use_progressive_decoder(progressive_decoder)
        return model.to(resolve_device(device)), config

    # The artifacts

    @property
    def priors(self) -> dict[Levels, NetworkArtifact]:
        """The priors, trained or not, by the levels that each covers. Raises InputError where two cover a level."""
        folders = prior_folders(self.folder.path)
        return {levels: NetworkArtifact(self, folder.path, "prior", levels) for levels, folder in folders.items()}

    @property
    def progressive(self) -> NetworkArtifact:
        """The progressive decoder, which need not exist."""
        return NetworkArtifact(self, progressive_folder(self.folder.path).path, "prefixes")

    @property
    def entropy_model(self) -> EntropyModelArtifact:
        """The entropy model, which need not exist."""
        return EntropyModelArtifact(self, self.folder.tables)

    def stale_artifacts(self) -> list[Artifact]:
        """Return the stale artifacts, also those whose training has not finished, without unreadable ones."""
        stale = list[Artifact]()
        with suppress(OSError, InputError):
            for artifact in (*self.priors.values(), self.progressive, self.entropy_model):
                with suppress(OSError, InputError):
                    if artifact.is_stale():
                        stale.append(artifact)
        return stale

    def missing_priors(self) -> str:
        """Return the command that trains the missing priors; "" if every level has one. Reads no weights."""
        trained = [levels for levels, prior in self.priors.items() if prior.exists()]
        covered = {level for levels in trained for level in levels}
        missing = sorted({*range(len(self.config.model.num_symbols))} - covered)
        if not missing:
            return ""
        option = f" --level {missing[0] + 1}" if trained else ""
        if run_folder(self.name) != Path(self.name):  # nothing is trained inside the package
            return f"hrvqvae export {self.name} DIR, then hrvqvae train-prior DIR{option}"
        return f"hrvqvae train-prior {self.name}{option}"

    def load_priors(self) -> Priors:
        """Return the priors of all levels.

        Raises:
            InputError: A level has no prior or two, a prior is stale, of other classes, or described otherwise.
            DamagedFileError: A file is damaged, or does not fit its configuration.
        """
        if command := self.missing_priors():
            raise InputError(f"{self.name} lacks priors; train them: {command}")
        networks, classes = [], list[tuple[tuple[str, ...], tuple[int, ...]]]()
        for prior in self.priors.values():
            weights, about = prior.read()
            path, config, names = prior.file, config_of(about, prior.file), tuple(about["classes"])
            _check_agreement(lambda described: described.prior.network, config, path)
            levels = range(about["level"], about["level"] + about.get("levels", 1))
            networks.append(_build_filled(partial(build_prior, config, levels, len(names)), weights, path))
            classes.append((names, tuple(about["class_counts"])))
            if names != classes[0][0]:
                raise InputError(f"{path} was trained on other classes than level 1; delete {prior.path}, train anew")
        return Priors(tuple(networks), *classes[0])

    def sampling_options(self, guidance: float | None = None, levels: int | None = None) -> dict[str, Any]:
        """Return guidance and levels of samples: by default those of the run's sampling.json, else 1 and None (all).

        Raises:
            DamagedFileError: sampling.json is no JSON object with guidance and levels.
        """
        options: dict[str, Any] = {"guidance": 1.0 if guidance is None else guidance, "levels": levels}
        path = self.folder.sampling
        if guidance is None and levels is None and path.is_file():
            try:
                stored = json.loads(path.read_bytes())
                options |= {"guidance": float(stored["guidance"]), "levels": stored.get("levels")}
                if not isinstance(options["levels"], int | None):
                    raise TypeError("levels is no whole number")
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise DamagedFileError(f"{path} is damaged: {one_line(error)}; delete it, or mend it") from error
        return options

    # Earlier states

    def wrote(self, mark: bytes) -> bool:
        """Return whether this state of the run made a file with this fingerprint, or an archive with this digest."""
        with suppress(InputError):
            model = self.entropy_model.load()
            return mark in (bytes.fromhex(model.model), model.fingerprint, model.bare.fingerprint)
        return False

    def earlier_states(self) -> list[Run]:
        """Return the states that `keep_state` has kept, each as a run."""
        return [Run(path.parent) for path in sorted(self.folder.states.glob("*/model.safetensors"))]

    def keep_state(self) -> None:
        """Copy the networks that read files of codes to RUN/states/DIGEST, because training would replace them."""
        if self.path == self.folder.model and self.folder.config.is_file():  # otherwise it can't be trained
            copy_state(self, self.folder)


def copy_state(run: Run, target: RunFolder) -> None:
    """Copy the networks that read files of codes into the states of a run folder, unless they are there."""
    copy = RunFolder(target.states / run.weights_digest)
    pairs = {progressive_folder(copy.path).model: run.progressive, copy.tables: run.entropy_model}
    sources = {path: artifact.file for path, artifact in pairs.items() if artifact.exists() and not artifact.is_stale()}
    try:
        for path, source in {**sources, copy.model: run.path}.items():  # the model last: without it there is no state
            if not path.is_file() or (path.parent.name == "prefixes" and path.read_bytes() != source.read_bytes()):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, source.read_bytes())
    except OSError as error:
        note(f"{copy.path} can't be written ({error.strerror or error}): keep a copy of {run.path} to read these files")


@dataclass(frozen=True)
class Artifact(ABC):
    """A network or an entropy model that was made for one state of a run's autoencoder."""

    run: Run
    path: Path  # a network's folder, or the file of an entropy model

    def __str__(self) -> str:
        return str(self.path.relative_to(self.run.folder.path))

    @property
    def file(self) -> Path:
        """The file that is used."""
        return self.path

    def exists(self) -> bool:
        """Return whether there is a file to use."""
        return self.file.is_file()

    @abstractmethod
    def is_stale(self) -> bool:
        """Return whether it was made for another state. Raises InputError where it can't be read."""

    def require_current(self, made_for: str, state: str) -> None:
        """Raise InputError if it was made for another state of the autoencoder; both are digests."""
        if made_for != state:
            raise InputError(f"{self.file} was {renewal(self.run.name)}")


@dataclass(frozen=True)
class NetworkArtifact(Artifact):
    """A prior or the progressive decoder, in a run folder of its own."""

    kind: str  # "prior" or "prefixes"
    levels: Levels | None = None  # that a prior covers

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def file(self) -> Path:
        return self.folder.model

    @property
    def config(self) -> Config:
        """The configuration of its training, past or to come."""
        if self.folder.config.is_file():
            return self.folder.read_config()
        return config_of(storage.read_meta(self.file), self.file)

    def is_stale(self) -> bool:
        return self.folder.is_stale(self.run.digest)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the weights and the metadata.

        Raises:
            InputError: There is no file, or it is stale.
            DamagedFileError: The file is damaged, or of another kind.
        """
        weights, about = storage.read(self.file)
        needed = {"config", "autoencoder", "step"}
        if self.kind == "prior":
            needed |= {"level", "classes", "class_counts", "bits_per_code"}
        if about.get("kind") != self.kind or not needed <= about.keys():
            raise DamagedFileError(f"{self.file} is no file of the kind {self.kind}")
        self.require_current(about["autoencoder"], self.run.digest)
        return weights, about


@dataclass(frozen=True)
class EntropyModelArtifact(Artifact):
    """The entropy model. It belongs to the weights alone, and stays when a run is exported."""

    def is_stale(self) -> bool:
        return self.exists() and self._read().model != self.run.weights_digest

    def _read(self) -> EntropyModel:
        return read_entropy_model(self.path.read_bytes(), str(self.path))

    def load(self, weights_digest: str | None = None) -> EntropyModel:
        """Return the entropy model of weights (default: the run's); one without networks if none was fitted.

        Raises:
            InputError: It is stale.
            DamagedFileError: It is damaged, or has other grids or symbols than the model.
        """
        state, model = weights_digest or self.run.weights_digest, self.run.config.model
        bare = EntropyModel(str(self.run.name), state, model.geometry, model.num_symbols)
        if not self.exists():
            return bare
        fitted = self._read()
        self.require_current(fitted.model, state)
        if (fitted.geometry, fitted.symbols) != (bare.geometry, bare.symbols):
            raise DamagedFileError(f"{self.path} is damaged: it has other grids or symbols than the model beside it")
        return fitted

    def fit(
        self, root: str | None = None, effort: float = 1.0, shifts: int = 0, device: torch.device | None = None,
        say: Callable[[str], None] = print, small: bool = False,
    ) -> Path:  # fmt: skip
        """Fit the entropy model to the codes of the training split, write it beside the weights, and return its file.

        If the model was trained on mirror images too, their codes are fitted as well. An entropy model of the same
        weights is never fitted again: files of codes that it wrote can't be read without it.

        Args:
            root: Where the data is, if it has moved since training.
            effort: How long to learn, in multiples of the usual time.
            shifts: Number of copies of the images, each shifted by some pixels, to learn from as well.
            device: Where the images are encoded (default: the CPU).
            say: Takes the bits per code of each level on held-out images.
            small: Keep the file to a few kilobytes per level, for a page.

        Raises:
            InputError: The data is missing, another process fits it, or the weights were replaced meanwhile.
        """
        with lock_file(self.path):
            if self._is_fitted(say):
                return self.path
            model, config = self.run.load()
            config, folder = config.with_root(root), self.run.folder
            maps = list[CodeMaps]()
            for name, augment in list_copies(config.data.flip, shifts):
                if folder.config.is_file():
                    of = (model, self.run.digest, config, "train", device, say)
                    maps.append(load_or_extract(folder.codes.with_name(name), *of, augment))
                else:
                    maps.append(extract_codes(model, config, "train", device, augment=augment))
            levels = [np.concatenate(copies) for copies in zip(*(copy.levels for copy in maps), strict=True)]
            bare = EntropyModel(config.name, self.run.weights_digest, config.model.geometry, config.model.num_symbols)
            content = fit(bare, levels, effort, say, len(maps), small).content
            if Run(self.run.name).weights_digest != bare.model:
                raise InputError(f"{self.run.path} was replaced while its entropy model was fitted; fit it again")
            if not self._is_fitted(say):
                with explain_write_errors(self.path):
                    write_atomic(self.path, content)
        return self.path

    def _is_fitted(self, say: Callable[[str], None]) -> bool:
        """Return whether these weights have an entropy model, and say so. Restore it from a kept state if need be."""
        kept = RunFolder(self.run.folder.states / self.run.weights_digest).tables
        if not (self.exists() and not self.is_stale()):
            if not kept.is_file():
                return False
            with explain_write_errors(self.path):
                write_atomic(self.path, kept.read_bytes())
        say(f"{self.path} is of these weights already; without it, files that were made by it can't be read")
        return True


def _check_agreement(part: Callable[[Config], Any], config: Config, path: Path) -> None:
    """Raise InputError if a configuration beside the weights differs from theirs in that part."""
    folder = RunFolder(path.parent)
    for file in (folder.config, folder.config_json):
        if path == folder.model and file.is_file() and part(from_file(file)) != part(config):
            raise InputError(
                f"{file} describes another model than {path.name} was trained as: put back what was changed there, or "
                "train anew in another folder"
            )


def _build_filled(make: Callable[[], _Network], weights: Mapping[str, Tensor], path: Path) -> _Network:
    """Build a network in evaluation mode with the weights of a file.

    The network is built on the meta device first, where tensors take no memory, and only up to the number of parameters
    that the file can fill. So a small file can't make a large network.

    Raises:
        DamagedFileError: The weights do not fit the network.
    """
    unfit, left = DamagedFileError(f"{path}: the weights do not fit their configuration"), 4 * len(weights) + 100

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise unfit

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in make().state_dict().items()}
    finally:
        hook.remove()
    if shapes != {name: tensor.shape for name, tensor in weights.items()}:
        raise unfit
    network = make()
    network.requires_grad_(False).load_state_dict(weights)
    return network.eval()


def stale_notice(name: str | Path) -> list[str]:
    """Return a line that names the stale artifacts of a run and how to renew them; no line if none is stale."""
    try:
        stale = Run(name).stale_artifacts()
    except InputError:
        return []
    return [f"{', '.join(map(str, stale))}: {renewal(name)}"] if stale else []
