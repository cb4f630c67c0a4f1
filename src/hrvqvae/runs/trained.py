"""A trained model as one object: encode, decode, sample, complete."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hrvqvae.config import Config, Grid
from hrvqvae.errors import InputError
from hrvqvae.priors.base import Priors
from hrvqvae.priors.draw import Draw
from hrvqvae.priors.generative import Sampled, kept_parts, sample_images
from hrvqvae.priors.hierarchy import KnownCodes, Sampler, sample_cached
from hrvqvae.quantize import Codes
from hrvqvae.runs.device import resolve_device
from hrvqvae.runs.loading import load_priors, load_with_config
from hrvqvae.systems.base import Autoencoder, unit_images


class TrainedModel:
    """An autoencoder with its configuration and its priors, which are read when they are first needed.

    Images are (B, C, Y, X); codes are a tuple of int64 tensors (B, H_l, W_l), coarse first.

    Attributes:
        run: the run folder, weights file or name that it was loaded from.
        autoencoder: in evaluation mode, on the device.
        config: what it was trained with.
    """

    def __init__(self, run: str | Path, device: str = "cpu") -> None:
        self.run = run
        self.autoencoder: Autoencoder
        self.config: Config
        self.autoencoder, self.config = load_with_config(run, device)
        self._device = resolve_device(device)

    @cached_property
    def priors(self) -> Priors:
        """The prior of each level.

        Raises:
            InputError: a level has no prior; the command that trains it is named.
        """
        return load_priors(self.run)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the priors know."""
        return self.priors.classes

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Codes:
        """Codes of images (B, C, Y, X), uint8 or float32 in [0, 1]. Raises InputError on other images."""
        return self.autoencoder.encode(images.to(self._device))

    @torch.inference_mode()
    def decode(self, codes: Codes, levels: int | None = None, size: Grid | None = None) -> Tensor:
        """Images (B, C, Y, X) float32 in [0, 1] from codes.

        Args:
            codes: of every level, or of those that are used.
            levels: how many levels to use, coarse first; None uses all.
            size: height and width in pixels; None gives the largest image of that latent grid.

        Raises:
            InputError: levels or codes out of range, a size that does not fit.
        """
        return self.autoencoder.decode(tuple(code.to(self._device) for code in codes), levels, size)

    def sample(
        self, count: int = 1, *, class_name: str | int | None = None, seed: int = 0, temperature: float = 1.0,
        top_k: int = 0, top_p: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """New images (count, C, Y, X) float32 in [0, 1], of the size that was trained on.

        Args:
            class_name: name or number of a class; None draws classes as often as they come in training.
            seed: a sample depends on it and on its number alone.
            temperature: below 1 makes likely codes likelier.
            top_k: draw from the k likeliest codes only (0: all).
            top_p: draw from the likeliest codes that reach this probability together (1: all).

        Raises:
            InputError: a level has no prior, an unknown class, a value out of range.
        """
        draw = Draw(temperature=temperature, top_k=top_k, top_p=top_p)
        return self.draw(count, seed=seed, class_name=class_name, draw=draw).images

    def draw(
        self, count: int, *, seed: int = 0, class_name: str | int | None = None, draw: Draw | None = None,
        known: KnownCodes | None = None, sampler: Sampler = sample_cached,
    ) -> Sampled:  # fmt: skip
        """As `sample`, with the class and the codes of each image.

        Args:
            known: codes of one image that each sample keeps.
            sampler: the cached one, or the plain one that it must agree with.
        """
        size = self.config.data.size
        return sample_images(
            self.autoencoder, self.priors, (size, size), count, seed=seed, class_name=class_name, draw=draw,
            known=known, sampler=sampler,
        )  # fmt: skip

    def known_part(self, image: Tensor, keep: str) -> KnownCodes:
        """Codes of an image (C, size, size) and which of them a completion keeps: "top", "left", or a fraction.

        Codes at the border of the kept part have seen a few pixels beyond it, as far as the encoder's filters reach.

        Raises:
            InputError: another image size than was trained on, or `keep` is none of these.
        """
        size = self.config.data.size
        if image.shape[-2:] != (size, size):
            raise InputError(f"the image has {image.shape[-2]}x{image.shape[-1]} pixels; this model completes {size}")
        codes = tuple(code.cpu() for code in self.encode(image[None]))
        return KnownCodes(codes, kept_parts(keep, [(code.shape[1], code.shape[2]) for code in codes]))

    def complete(
        self, image: Tensor, count: int = 1, *, keep: str = "top", class_name: str | int | None = None, seed: int = 0,
        draw: Draw | None = None,
    ) -> Tensor:  # fmt: skip
        """Images (count, C, size, size) that keep the codes of a part of an image (C, size, size); the rest is drawn.

        Raises:
            InputError: as `sample` and `known_part`.
        """
        unit_images(image[None], self.autoencoder.channels)
        known = self.known_part(image, keep)
        return self.draw(count, seed=seed, class_name=class_name, draw=draw, known=known).images


def load(run: str | Path, device: str = "cpu") -> TrainedModel:
    """The trained model of a run folder, of a weights file, or of the name of a model inside the package.

    Raises:
        InputError: there is none.
        DamagedFileError: the weights are damaged or do not fit their configuration.
    """
    return TrainedModel(run, device)
