"""A trained model as one object: encode, decode, compress, decompress, sample, complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from hrvqvae.checkpoints import hub
from hrvqvae.checkpoints.entropy_model import load_entropy_model
from hrvqvae.checkpoints.export import export, push_run
from hrvqvae.checkpoints.folder import shipped
from hrvqvae.checkpoints.loading import load_priors, load_with_config
from hrvqvae.compression import hrv
from hrvqvae.compression import images as compression
from hrvqvae.compression.archive import is_archive, open_archive
from hrvqvae.compression.entropy_model import EntropyModel, geometry_of
from hrvqvae.compression.rate_distortion import RateDistortion
from hrvqvae.config import Config, Grid
from hrvqvae.models.base import Autoencoder, framed, unit_images
from hrvqvae.priors.base import Priors
from hrvqvae.priors.generative import KnownCodes, Sampled, Sampler, kept_parts, sample_cached, sample_images
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.quantize import Codes
from hrvqvae.utils.device import resolve_device
from hrvqvae.utils.errors import InputError


class Model:
    """An autoencoder in evaluation mode with its configuration, and its priors, which are read when they are needed.

    Images are (B, C, Y, X); codes are a tuple of int64 tensors (B, H_l, W_l), coarse first.
    """

    def __init__(self, run: str | Path, device: str = "cpu", beam: int | None = None) -> None:
        self.run = run
        self.autoencoder: Autoencoder
        self.config: Config
        self.autoencoder, self.config = load_with_config(run, device, beam)
        self.device = resolve_device(device)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu", beam: int | None = None, **options: Any) -> Self:
        """As `load`, and user/name from the hub, with its options: those of `hub.fetch`."""
        return cls(hub.found_or_fetched(name, **options), device, beam)

    def save_pretrained(self, folder: str | Path, *, licence: str | None = None) -> None:
        """Write a new folder of the model, its priors, config.json and a model card. Raises InputError as `export`."""
        export(self.run, Path(folder), licence=licence)

    def push_to_hub(self, name: str, *, licence: str | None = None, **options: Any) -> str:
        """Put what `save_pretrained` writes on the hub as user/name, with the options of `hub.push`; -> where it is."""
        return push_run(self.run, name, licence=licence, **options)

    @cached_property
    def priors(self) -> Priors:
        """The priors of all levels. Raises InputError where one is missing or stale."""
        return load_priors(self.run)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the priors."""
        return self.priors.classes

    @cached_property
    def entropy_model(self) -> EntropyModel:
        """The entropy model, by which files are written and read. Raises InputError where it is stale or damaged."""
        return load_entropy_model(self.run, self.autoencoder, self.config)

    @torch.inference_mode()
    def encode(self, images: Tensor, lmbda: float | None = None) -> Codes:
        """Codes of images (B, C, Y, X), uint8 or float32 in [0, 1].

        Args:
            lmbda: rate-distortion trade-off: squared error, summed over an image's pixel values in [0, 1], + lmbda *
                bits is minimized, for a hundred times the work. None gives the usual codes. Without an entropy model
                all codes of a level cost the same bits.

        Raises:
            InputError: other images; a lambda that is not from 0 to 1e6, or one for a model of several latent grids or
                of more than 65,536 leaves.
        """
        return self.encoder(lmbda)(images.to(self.device))

    def encoder(self, lmbda: float | None = None, levels: int | None = None) -> Callable[[Tensor], Codes]:
        """The function of `encode`, for images on the device; a lambda weighs the bits of so many levels, None all."""
        if lmbda is None:
            return self.autoencoder.encode
        if not 0 <= lmbda <= 1e6:
            raise InputError(f"the lambda is {lmbda!r}; it must be from 0 to 1e6")
        used = self.autoencoder.check_levels(levels)
        return partial(RateDistortion(self.autoencoder, self.entropy_model, used).encode, lmbda=lmbda)

    @torch.inference_mode()
    def decode(self, codes: Codes, levels: int | None = None, size: Grid | None = None) -> Tensor:
        """Images (B, C, Y, X) float32 in [0, 1] from codes, a prefix of levels by the progressive decoder if any.

        Args:
            codes: of every level, or of those that are used.
            levels: how many to use, coarse first; None uses all.
            size: height and width in pixels; None gives the largest image of that latent grid.

        Raises:
            InputError: levels or codes out of range, a size that does not fit.
        """
        return self.autoencoder.decode(tuple(code.to(self.device) for code in codes), levels, size)

    def compress(
        self, images: Tensor | Sequence[Tensor], levels: int | None = None, max_bytes: int | None = None,
        lmbda: float | None = None, names: Sequence[str] | None = None,
    ) -> list[bytes]:  # fmt: skip
        """The file of codes (.hrv) of each image: docs/format.md.

        Args:
            images: (B, C, Y, X), or images (C, Y, X) of any sizes, uint8 or float32 in [0, 1].
            levels: how many to write, coarse first; None writes all.
            max_bytes: of a file: the levels of these and the codes with the least error in so many bytes, for some
                hundred times the work. Where the model takes no lambda, the most levels that fit.
            lmbda: as for `encode`, of these levels alone.
            names: of the images, for messages; None counts them from 1.

        Raises:
            InputError: as `encode`; levels out of range, an image that does not fit, a lambda beside `max_bytes`.
        """
        if lmbda is not None and max_bytes is not None:
            raise InputError("give max_bytes or a lambda, not both")
        encode = self.encoder(lmbda, levels)
        return compression.compress(
            self.autoencoder, self.entropy_model, images, self.device, levels, max_bytes, encode, names
        )

    def decompress(
        self, files: Sequence[bytes], levels: int | None = None, max_pixels: int | None = None
    ) -> list[Tensor]:
        """The image (C, Y, X) of each file of codes, float32 in [0, 1]; of a damaged file, of its whole levels.

        Args:
            levels: how many to use at most, coarse first; None uses all.
            max_pixels: of an image; None takes `data.max_pixels` of the configuration.

        Raises:
            InputError: levels out of range, or a file of another model.
            DamagedFileError: a file has no whole level, is none, or is of a larger image.
        """
        self.autoencoder.check_levels(levels)
        codes = hrv.read(self.entropy_model, files, levels, max_pixels=max_pixels or self.config.data.max_pixels)
        return compression.decode_images(self.autoencoder, codes, self.device, levels)

    def sample(
        self, count: int = 1, *, class_name: str | int | None = None, seed: int = 0, temperature: float = 1.0,
        top_k: int = 0, top_p: float = 1.0, guidance: float = 1.0, levels: int | None = None,
    ) -> Tensor:  # fmt: skip
        """New images (count, C, Y, X) float32 in [0, 1], of the size that was trained on; see `SamplingParams`.

        Args:
            class_name: name or number of a class; None draws classes as often as they come in training.
            seed: a sample depends on it and on its number alone.

        Raises:
            InputError: a level has no prior, or one that can't be guided; an unknown class, a value out of range.
        """
        params = SamplingParams(
            temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance, levels=levels
        )  # fmt: skip
        return self.draw(count, seed=seed, class_name=class_name, params=params).images

    def draw(
        self, count: int, *, seed: int = 0, class_name: str | int | None = None, params: SamplingParams | None = None,
        known: KnownCodes | None = None, sampler: Sampler = sample_cached,
    ) -> Sampled:  # fmt: skip
        """As `sample`, with the class and the codes of each image; the known codes are kept."""
        size = self.config.data.size
        return sample_images(
            self.autoencoder, self.priors, (size, size), count, seed=seed, class_name=class_name, params=params,
            known=known, sampler=sampler,
        )  # fmt: skip

    def known_part(self, image: Tensor, keep: str | Tensor) -> KnownCodes:
        """Codes of an image (C, size, size), and which of them a completion keeps: see `complete`."""
        size = self.config.data.size
        for what, one in {"image": image, "mask": keep}.items():
            if isinstance(one, Tensor) and one.shape[-2:] != (size, size):
                raise InputError(f"the {what} has {one.shape[-2]}x{one.shape[-1]} pixels; this model completes {size}")
        codes = tuple(code.cpu() for code in self.encode(image[None]))
        grids = [(code.shape[1], code.shape[2]) for code in codes]
        if isinstance(keep, Tensor):  # as the image is framed before it is encoded
            where = geometry_of(self.config.model.latent_grids)
            height, width = (where.unit * side for side in min(grids))
            keep = framed(keep.reshape(1, 1, size, size).float(), where.margin // 2, height, width)[0, 0] > 0
        return KnownCodes(codes, kept_parts(keep, grids))

    def complete(
        self, image: Tensor, count: int = 1, *, keep: str | Tensor = "top", class_name: str | int | None = None,
        seed: int = 0, params: SamplingParams | None = None,
    ) -> Tensor:  # fmt: skip
        """Images (count, C, size, size) that keep the codes of a part of an image (C, size, size); the rest is drawn.

        Codes at the border of that part have seen a few pixels beyond it.

        Args:
            keep: "top", "left", the upper fraction in (0, 1), or a mask (size, size) bool. Codes are drawn in raster
                order, and don't see what is kept after them.

        Raises:
            InputError: as `sample`; an image of another size than was trained on, or another `keep`.
        """
        unit_images(image[None], self.autoencoder.channels)
        known = self.known_part(image, keep)
        return self.draw(count, seed=seed, class_name=class_name, params=params, known=known).images


def load(run: str | Path, device: str = "cpu", beam: int | None = None) -> Model:
    """The trained model of a run folder, of a weights file, or of the name of a model inside the package.

    Args:
        beam: paths that its search keeps at each level when it encodes: less error, for more time (docs/results.md).
            None keeps as many as in training.

    Raises:
        InputError: there is none, or it has no linked codebooks, which a beam searches.
        DamagedFileError: the weights are damaged or do not fit their configuration.
    """
    return Model(run, device, beam)


_REPLACED = {  # digests of weights, and fingerprints, of models and entropy models that the package had
    "98bf4f8a25166b29625d84e56c414a3c": "treevq-cifar10 of commit c72954c and before",
    "28c828": "treevq-cifar10 of commit c72954c and before",
    "98bf4f": "treevq-cifar10 of commit c72954c and before",
    "f3e67b": "treevq-cifar10 of commit d7e4885 and before",
    "89340fa544030c869ed8a6e4c3ae4250": "treevq-mnist of commit c83e58b and before",
    "f679c4": "treevq-mnist of commit c83e58b and before",
    "89340f": "treevq-mnist of commit c83e58b and before",
    "a97cb9": "treevq-mnist of commit d7e4885 and before",
}


def models_of_files(paths: Sequence[Path], run: str | None) -> list[Model]:
    """For each file of codes the model that is named, or that inside the package by which it was made.

    Raises InputError: there is none.
    """
    load = cache(Model)
    return [load(run) if run is not None else _model_of_file(path, load) for path in paths]


def _model_of_file(path: Path, load: Callable[[str], Model]) -> Model:
    if is_archive(path):
        entropy_model = open_archive(path).entropy_model
        wanted, whose = bytes.fromhex(entropy_model.model), f"{entropy_model.name} (weights {entropy_model.model[:12]})"
    else:
        wanted = hrv.read_header(path.read_bytes(), str(path)).fingerprint
        whose = f"a model whose fingerprint is {wanted.hex()} (or the file is damaged)"
    for name in shipped():
        model = load(name)
        if wanted in (
            bytes.fromhex(model.entropy_model.model),
            model.entropy_model.fingerprint,
            model.entropy_model.bare.fingerprint,
        ):
            return model
    if wanted.hex() in _REPLACED:
        raise InputError(f"{path} was made by the {_REPLACED[wanted.hex()]}: a copy of that version reads it")
    raise InputError(f"{path} was made by {whose}, which is none inside the package: name it with --model RUN")
