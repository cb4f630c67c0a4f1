"""The contract that every system fulfils: image -> codes -> image.

Shapes: (B, C, Y, X) images; codes are a tuple of int64 (B, H_l, W_l), coarse first. Images at this border are uint8
(0..255) or float32 in [0, 1]; inside a model they lie in [-1, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from hrvqvae.config import Config, Grid, ModelConfig
from hrvqvae.config.registry import imported
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError

_HUB = "hrvqvae.checkpoints.export:"  # a room above this one, so it is imported when it is asked for

Encode = Callable[[Tensor], Codes]
"""Images (B, C, Y, X) to codes."""


@dataclass(frozen=True)
class Reconstructed:
    """What a forward pass gives.

    Attributes:
        images: (B, C, Y, X) float32, the reconstruction on the scale [0, 1], not clamped, with its gradient.
        codes: of each level, coarse first.
        losses: every term of the loss by name, a scalar each; training minimizes their sum. "reconstruction" is the
            mean squared error over the original pixels in [-1, 1]; the others are on the same scale.
    """

    images: Tensor
    codes: Codes
    losses: Mapping[str, Tensor]


def unit_images(images: Tensor, channels: int) -> Tensor:
    """Checked images as float32 in [0, 1], same shape. Values are not known while a graph is traced: not checked then.

    Raises:
        InputError: wrong shape, channel count or type, values outside [0, 1], or NaN; the number is named.
    """
    if images.dim() != 4:
        raise InputError(f"images have {images.dim()} dimensions; expected 4: (B, C, Y, X)")
    if images.shape[1] != channels:
        raise InputError(f"images have {images.shape[1]} channels; this model takes {channels}")
    if images.shape[2] < 1 or images.shape[3] < 1:
        raise InputError(f"images are {images.shape[2]}x{images.shape[3]} pixels; at least 1x1 is needed")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise InputError(f"images are {images.dtype}; expected uint8 (0..255) or float32 in [0, 1]")
    if not torch.compiler.is_compiling() and images.numel():
        low, high = (float(value) for value in images.aminmax())
        if not (low >= 0 and high <= 1):  # NaN fails both comparisons
            raise InputError(f"images have values from {low:g} to {high:g}; expected [0, 1] as float, 0..255 as uint8")
    return images.float()


def framed(images: Tensor, padding: int, height: int, width: int) -> Tensor:
    """(B, C, Y, X) in [0, 1] -> (B, C, height, width) in [-1, 1], with `padding` pixels above and to the left.

    The border is repeated. What was added is cropped after decoding and never enters the reconstruction error.
    """
    below, right = height - images.shape[-2] - padding, width - images.shape[-1] - padding
    return pad(images * 2 - 1, (padding, right, padding, below), mode="replicate")


def cropped(decoded: Tensor, padding: int, size: Grid | None) -> Tensor:
    """A decoder's output without what `framed` added, float32, not clamped; None is the largest size there is.

    Raises:
        InputError: the size does not fit.
    """
    largest = (decoded.shape[-2] - 2 * padding, decoded.shape[-1] - 2 * padding)
    height, width = size or largest
    if not (1 <= height <= largest[0] and 1 <= width <= largest[1]):
        raise InputError(f"size {height}x{width} does not fit these codes; at most {largest[0]}x{largest[1]}")
    return decoded[..., padding : padding + height, padding : padding + width].float()


class Autoencoder(nn.Module, ABC):
    """A system that turns images into codes and back.

    Args:
        config: of the model.
        channels: of its images.

    Attributes:
        run_config: the configuration of the run that the model was loaded from; None where it was made in another way.
    """

    run_config: Config | None = None

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.config, self.channels = config, channels

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Numbers of levels that `decode` takes, in order; the last is all of them."""
        return tuple(range(1, len(self.config.num_symbols) + 1))

    @abstractmethod
    def forward(self, images: Tensor) -> Reconstructed:
        """Encode, quantize, decode, with the loss terms. Raises InputError on images outside the contract."""

    @abstractmethod
    def encode(self, images: Tensor) -> Codes:
        """Codes of images. Raises InputError on images outside the contract."""

    @abstractmethod
    def decode(self, codes: Codes, levels: int | None = None, size: Grid | None = None) -> Tensor:
        """Images (B, C, Y, X) float32 in [0, 1] from codes.

        Args:
            codes: of every level.
            levels: how many levels to use, coarse first; None uses all.
            size: height and width in pixels; None gives the largest image of that latent grid.

        Raises:
            InputError: levels out of range or not supported by the system, codes out of range.
        """

    def decode_prefix(self, codes: Codes, levels: Tensor) -> Tensor:
        """As `decode` of the largest size, with the number of levels as a tensor (): the form that a graph can hold.

        All codes are given; those of the levels that are not used do not matter. A system with several prefixes should
        have a cheaper way than this one, which decodes every one of them.

        Raises:
            IndexError: a number of levels that is none of `prefixes`.
        """
        decoded = torch.stack([self.decode(codes, number) for number in self.prefixes])
        return chosen_prefix(decoded, self.prefixes, levels)

    def assignments(self, images: Tensor, codes: Codes) -> tuple[tuple[Tensor, Tensor], ...]:
        """For each level what it quantizes, and what its codes stand for: (B, H_l, W_l, D) each.

        Both are given these codes of the coarser levels. Encoding takes the codes with which the distance between the
        two is least, so this tells a tie from an error. A system that can't say it gives nothing.

        Args:
            images: as for `encode`.
            codes: of every level; they need not be those of the images.
        """
        return ()

    def paths(self, codes: Codes) -> Codes:
        """Number of the codeword that each code stands for among all of its level: same shapes, for usage counts."""
        return codes

    def initialize(self, images: Tensor, generator: torch.Generator, batch_size: int | None = None) -> None:
        """Data-dependent start from the first training images, before the first step; nothing, unless a system has one.

        Args:
            images: as many as the start needs.
            batch_size: images of a training step; counts of codewords are those of a step (None: as many as given).
        """

    def restart_dead_codes(self, images: Tensor, generator: torch.Generator) -> int:
        """Restart dead codewords from a training batch; returns how many. None, unless a system has codewords."""
        return 0

    @classmethod
    def from_pretrained(cls, name: str | Path, beam: int | None = None, **options: Any) -> Self:
        """The autoencoder of a folder, of a model inside the package, or of the hub; in evaluation mode, on the CPU.

        Args:
            name: a path, the name of a model inside the package, or user/name, which the hub is asked for.
            beam: paths that its search keeps at each level when it encodes; None keeps as many as in training.
            options: of the hub: revision, cache_dir, token, local_files_only, force_download.

        Raises:
            InputError: there is none such, it is of another class, it has no linked codebooks for a beam, or the hub
                can't be reached.
        """
        model: Self = imported(f"{_HUB}load_autoencoder")(cls, name, beam, **options)
        return model

    def save_pretrained(self, folder: str | Path, *, config: Config | None = None) -> None:
        """Write config.json, model.safetensors and, where there is none, a model card; no priors.

        Args:
            folder: made if it does not exist.
            config: of the run; None takes `run_config`, or the defaults for this model.

        Raises:
            InputError: it is a run folder, or can't be written.
        """
        imported(f"{_HUB}save_autoencoder")(self, folder, config)

    def push_to_hub(self, name: str, *, config: Config | None = None, **options: Any) -> str:
        """Put what `save_pretrained` writes on the hub as user/name; -> where it is.

        Args:
            options: private, token, commit_message, branch, create_pr.

        Raises:
            InputError: no token, one that may not write there, or the hub can't be reached.
        """
        where: str = imported(f"{_HUB}push_autoencoder")(self, name, config, **options)
        return where


def chosen_prefix(found: Tensor, prefixes: Sequence[int], levels: Tensor) -> Tensor:
    """What belongs to a number of levels: (P, ...) with an entry for each number in `prefixes`, and () -> (...).

    Raises:
        IndexError: the number of levels is none of these. In a graph, whatever runs it raises an error of its own.
    """
    place = torch.full_like(levels, len(prefixes))  # an index that there is not
    for index, number in enumerate(prefixes):
        place = torch.where(levels == number, index, place)
    return found.index_select(0, place.reshape(1))[0]
