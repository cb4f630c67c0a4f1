"""The contract that every system fulfils: image -> codes -> image.

Shapes: (B, C, Y, X) images; codes are a tuple of int64 (B, H_l, W_l), coarse first. Images at this border are uint8
(0..255) or float32 in [0, 1]; inside a model they lie in [-1, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from hrvqvae.config import Grid, ModelConfig
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted

Encode = Callable[[Tensor], Codes]  # images (B, C, Y, X)


@dataclass(frozen=True)
class Reconstructed:
    """What a forward pass gives.

    The sum of the losses, scalars, is what training minimizes. "reconstruction" is the mean squared error over the
    original pixels in [-1, 1]; the others are on the same scale.
    """

    images: Tensor  # (B, C, Y, X) float32 around [0, 1], not clamped, with gradient
    codes: Codes
    losses: Mapping[str, Tensor]


def unit_images(images: Tensor, channels: int, *, training: bool = False) -> Tensor:
    """Return images as float32 in [0, 1].

    Values are not checked while a graph is traced, nor in a training step on a GPU, which would wait for the device.

    Raises:
        InputError: wrong shape, channel count or type, values outside [0, 1], or NaN.
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
    waits = training and images.device.type != "cpu"
    if images.numel() and not waits and not torch.compiler.is_compiling():
        low, high = (float(value) for value in images.aminmax())
        if not (low >= 0 and high <= 1):  # NaN fails both comparisons
            raise InputError(f"images have values from {low:g} to {high:g}; expected [0, 1] as float, 0..255 as uint8")
    return images.float()


def framed(images: Tensor, padding: int, height: int, width: int) -> Tensor:
    """(B, C, Y, X) in [0, 1] -> (B, C, height, width) in [-1, 1], with `padding` pixels above and to the left.

    The border is repeated; `cropped` takes off what was added, so that no reconstruction error knows it.
    """
    below, right = height - images.shape[-2] - padding, width - images.shape[-1] - padding
    return pad(images * 2 - 1, (padding, right, padding, below), mode="replicate")


def fitting(size: Grid | None, height: int, width: int, padding: int) -> Grid:
    """The size in pixels, of which None is the largest, of what a decoder gives as height x width with padding.

    Raises InputError where it does not fit.
    """
    largest = (height - 2 * padding, width - 2 * padding)
    height, width = size or largest
    if not (1 <= height <= largest[0] and 1 <= width <= largest[1]):
        raise InputError(f"size {height}x{width} does not fit these codes; at most {largest[0]}x{largest[1]}")
    return height, width


def cropped(decoded: Tensor, padding: int, size: Grid | None) -> Tensor:
    """A decoder's output without what `framed` added, float32, not clamped; size as `fitting`."""
    height, width = fitting(size, decoded.shape[-2], decoded.shape[-1], padding)
    return decoded[..., padding : padding + height, padding : padding + width].float()


class Autoencoder(nn.Module, ABC):
    """A system that turns images into codes and back."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.config, self.channels = config, channels

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Numbers of levels that `decode` takes, in order; the last is all of them."""
        return tuple(range(1, len(self.config.num_symbols) + 1))

    def check_levels(self, levels: int | None) -> int:
        """The number of levels that is asked for, None for all. Raises InputError where `decode` takes not so many."""
        if levels is None:
            return self.prefixes[-1]
        if levels not in self.prefixes:
            raise InputError(f"levels is {levels}; this model decodes {', '.join(map(str, self.prefixes))}")
        return levels

    def prefix(self, codes: Codes, levels: int | None) -> Codes:
        """Codes of so many levels, None for all that there are. Raises as `check_levels`, or where there are fewer."""
        number = self.check_levels(len(codes) if levels is None else levels)
        if len(codes) < number:
            raise InputError(f"levels is {number}, and the codes have {counted(len(codes), 'level')}")
        return codes[:number]

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
            levels: number of levels to use, coarse first; None uses all.
            size: height and width in pixels; None gives the largest image of that latent grid.

        Raises:
            InputError: levels or codes out of range, or a number of levels that is none of `prefixes`.
        """

    def decode_prefix(self, codes: Codes, levels: Tensor) -> Tensor:
        """As `decode` of all codes to the largest size, with the number of levels as a tensor (), as in a graph.

        This one decodes every prefix: a system with several should have a cheaper way.

        Raises:
            IndexError: a number of levels that is none of `prefixes`.
        """
        decoded = torch.stack([self.decode(codes, number) for number in self.prefixes])
        return chosen_prefix(decoded, self.prefixes, levels)

    def codeword_indices(self, codes: Codes) -> Codes:
        """Number of each code's codeword among all of its level: same shapes."""
        return codes

    def initialize(self, images: Tensor, generator: torch.Generator, batch_size: int | None = None) -> None:
        """Data-dependent start from the first training images, if the system has one.

        Args:
            batch_size: images of a training step, which counts of codewords are scaled to; None is all of these.
        """

    def restart_dead_codes(self, images: Tensor, generator: torch.Generator) -> int:
        """Restart dead codewords from a training batch; -> how many."""
        return 0

    def align(self) -> None:
        """Renumber codewords, where that makes codes easier to predict; what codes stand for stays."""


def chosen_prefix(found: Tensor, prefixes: Sequence[int], levels: Tensor) -> Tensor:
    """The entry of (P, ...), one for each number in `prefixes`, that belongs to a number of levels ().

    Raises IndexError where the number is none of these; a graph's runtime raises its own error.
    """
    place = torch.full_like(levels, len(prefixes))  # out of range
    for index, number in enumerate(prefixes):
        place = torch.where(levels == number, index, place)
    return found.index_select(0, place.reshape(1))[0]
