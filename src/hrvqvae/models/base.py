"""The interface of every system, which encodes images to codes and decodes codes to images.

Images (B, C, Y, X) are uint8 (0..255) or float32 in [0, 1] outside a model, and float32 in [-1, 1]
inside. Codes are a tuple of int64 tensors (B, H_l, W_l), one per level, coarse first.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from hrvqvae.config import Grid, ModelConfig
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError

Encode = Callable[[Tensor], Codes]  # its argument: images (B, C, Y, X)


def image_size(images: Tensor) -> Grid:
    """Return the height and width of images (..., Y, X) in pixels."""
    return images.shape[-2], images.shape[-1]


@dataclass(frozen=True)
class Reconstructed:
    """The result of a forward pass."""

    images: Tensor  #: reconstructions (B, C, Y, X) float32, not clamped to [0, 1], with gradient
    codes: Codes
    #: Scalars by name; training minimizes their sum. "reconstruction" is the mean squared error
    #: over pixel values in [-1, 1], without padding; the other losses are on the same scale.
    losses: Mapping[str, Tensor]


def to_unit_images(images: Tensor, channels: int, *, training: bool = False) -> Tensor:
    """Return images as float32 in [0, 1]. Raises InputError for a wrong shape, channel count, type
    or value.

    Values are not checked in a traced graph, nor in training on a GPU, where the check would wait
    for the GPU.
    """
    if images.dim() != 4 or images.shape[1] != channels or 0 in images.shape[2:]:
        shape = tuple(images.shape)
        raise InputError(f"images have the shape {shape}; this model takes (B, {channels}, Y, X)")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise InputError(f"images are {images.dtype}; expected uint8 (0..255) or float32 in [0, 1]")
    skip = training and images.device.type != "cpu"
    if images.numel() and not skip and not torch.compiler.is_compiling():
        low, high = (float(value) for value in images.aminmax())
        if not (low >= 0 and high <= 1):  # NaN fails both comparisons
            raise InputError(
                f"images have values from {low:g} to {high:g}; expected [0, 1] as float, 0..255 as"
                " uint8"
            )
    return images.float()


def pad_to_grid(images: Tensor, padding: int, height: int, width: int) -> Tensor:
    """Scale images (B, C, Y, X) from [0, 1] to [-1, 1], and pad them to (B, C, height, width) with
    their border pixels.

    Above and to the left `padding` pixels are added, below and to the right the rest.
    `crop_padding` is the inverse.
    """
    below = height - images.shape[-2] - padding
    right = width - images.shape[-1] - padding
    return pad(images * 2 - 1, (padding, right, padding, below), mode="replicate")


def crop_padding(decoded: Tensor, padding: int, size: Grid) -> Tensor:
    """Return the images of a size that a decoder's output contains, without the padding, in
    float32.
    """
    height, width = size
    return decoded[..., padding : padding + height, padding : padding + width].float()


class Autoencoder(nn.Module, ABC):
    """A system that turns images (B, C, Y, X) into codes, (B, H, W) of each level, and back."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.channels = channels

    @property
    def prefixes(self) -> tuple[int, ...]:
        """The level counts that `decode` accepts, in ascending order; the last count is all
        levels.
        """
        return tuple(range(1, len(self.config.num_symbols) + 1))

    def check_levels(self, levels: int | None) -> int:
        """Return the level count to decode (None: all levels). Raises InputError if `prefixes` does
        not contain it.
        """
        if levels is None:
            return self.prefixes[-1]
        if levels not in self.prefixes:
            raise InputError(
                f"levels is {levels}; this model decodes {', '.join(map(str, self.prefixes))}"
            )
        return levels

    def take_prefix(self, codes: Codes, levels: int | None) -> Codes:
        """Return the codes of the first levels (None: all that are given).

        Raises InputError as `check_levels`, or if the codes have fewer levels.
        """
        count = self.check_levels(len(codes) if levels is None else levels)
        if len(codes) < count:
            raise InputError(f"levels is {count}, and the codes have only {len(codes)}")
        return codes[:count]

    @abstractmethod
    def forward(self, images: Tensor) -> Reconstructed:
        """Encode, quantize and decode images, with the loss terms. Raises InputError as
        `to_unit_images`.
        """

    @abstractmethod
    def encode(self, images: Tensor) -> Codes:
        """Return the codes of images, uint8 or float32 in [0, 1]. Raises InputError for any
        others.
        """

    @abstractmethod
    def decode(self, codes: Codes, levels: int | None = None, size: Grid | None = None) -> Tensor:
        """Return images (B, C, Y, X) float32 in [0, 1] from codes. Raises InputError if a value is
        out of range.

        Args:
            levels: number of levels to decode, coarse first (None: all levels of the codes).
            size: height and width in pixels (None: the largest size of these codes).
        """

    def codeword_indices(self, codes: Codes) -> Codes:
        """Return the index of each code's codeword in its level, in the same shapes."""
        return codes

    def initialize(self, images: Tensor, rng: torch.Generator, weight: float = 1.0) -> None:
        """Initialize codebooks from training images; each latent adds `weight` to the count of its
        codeword.
        """

    def restart_dead_codes(self, images: Tensor, rng: torch.Generator) -> int:
        """Restart dead codewords from this process's part of a training batch, and from those of
        the other processes; return how many were restarted.
        """
        return 0

    def plant(self, config: ModelConfig) -> Self:
        """Return the model of `config` that this model, trained as `config.trained`, becomes."""
        return self
