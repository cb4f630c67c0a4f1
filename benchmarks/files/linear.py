"""A linear transform as a codec: principal components of blocks, uniform steps, ideal code lengths.

The components are learned from four fifths of the training images. Frequencies, code lengths and
decoded values of the quantized coefficients are counted on the other fifth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product, starmap

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.files.curves import Count, FileCodec, Images, Shape
from hrvqvae.utils.errors import InputError

Floats = NDArray[np.float32]
_SIDES = (2, 4, 7, 8, 14, 16, 28, 32)  # of blocks, in pixels
_STEPS = tuple(float(step) for step in np.geomspace(0.08, 1.6, 13))
# added to a magnitude before it is cut to a whole number: 0.5 rounds to the nearest, and less needs
# fewer bits
_ROUNDING = 0.4
_PRIOR_COUNT = 0.05  # added to the count of each number
_VECTORS = 200_000  # largest number of blocks to learn from
_COUNTED = 40_000  # largest number of blocks to count
_PER_VALUE = 5  # smallest number of blocks per value of the components


def to_blocks(images: Images, side: int) -> Images:
    """Return the blocks of images (N, C, Y, X) row by row: (N, blocks, C * side * side)."""
    return torch.pixel_unshuffle(torch.from_numpy(images), side).flatten(2).mT.numpy()


def from_blocks(blocks: NDArray[np.generic], shape: Shape) -> NDArray[np.generic]:
    """Return the images (N, C, Y, X) of blocks (N, blocks, C * side * side)."""
    channels, height, width = shape
    side = round((blocks.shape[2] / channels) ** 0.5)
    grid = torch.from_numpy(blocks).mT.reshape(len(blocks), -1, height // side, width // side)
    return torch.pixel_shuffle(grid, side).numpy()


def _unit(pixels: Images) -> Floats:
    """Return pixels of 0 to 255 on the scale [0, 1]."""
    return np.divide(pixels, 255, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of blocks, and the coefficients of other blocks.

    Attributes:
        side: of a block, in pixels.
        mean: of the blocks (D,).
        basis: (D, D), the strongest component first.
        held_out: coefficients (N, D) of blocks that the components were not learned from.
    """

    side: int
    mean: Floats
    basis: Floats
    held_out: Floats

    @classmethod
    def learn(cls, images: Images, side: int) -> Components:
        """Learn components from training images (N, C, Y, X)."""
        rng = np.random.default_rng(0)
        is_held_out = np.arange(len(images)) % 5 == 4

        def draw(images: Images, limit: int) -> Floats:
            blocks = np.concatenate(to_blocks(images, side))
            return _unit(blocks[rng.permutation(len(blocks))[:limit]])

        vectors = draw(images[~is_held_out], _VECTORS)
        mean = vectors.mean(0)
        vectors -= mean
        basis = np.linalg.eigh(vectors.T @ vectors / len(vectors))[1][:, ::-1].astype(np.float32)
        held_out = np.matmul(draw(images[is_held_out], _COUNTED) - mean, basis, dtype=np.float32)
        return cls(side, mean, basis, held_out)


@dataclass(frozen=True, eq=False)
class LinearSetting:
    """Components, and the step by which their coefficients are divided."""

    components: Components
    step: float

    def __str__(self) -> str:
        return f"blocks of {self.components.side}, step {self.step:.3f}"

    def quantize(self, coefficients: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return coefficients as whole numbers of steps."""
        sizes = np.floor(np.abs(coefficients) / self.step + _ROUNDING)
        return np.asarray(np.sign(coefficients) * sizes, np.int64)

    @cached_property
    def tables(self) -> tuple[NDArray[np.int64], NDArray[np.float64], Floats]:
        """Return the largest number of each coefficient (D,), and the bits and the decoded value of
        each number (D, 2 * largest + 1).
        """
        held_out = self.components.held_out
        quantized = self.quantize(held_out)
        largest = np.abs(quantized).max(0)
        middle = int(largest.max())
        shape = (len(largest), 2 * middle + 1)
        cells = (quantized + middle + np.arange(shape[0]) * shape[1]).ravel()
        counts = np.bincount(cells, minlength=math.prod(shape)).reshape(shape).astype(np.float64)
        sums = np.bincount(cells, held_out.ravel(), math.prod(shape)).reshape(shape)
        steps = np.arange(-middle, middle + 1)
        means = sums / np.maximum(counts, 1)
        decoded = np.where(counts > 0, means, steps * self.step).astype(np.float32)
        counts += _PRIOR_COUNT
        used = np.abs(steps) <= largest[:, None]
        total = np.where(used, counts, 0).sum(1, keepdims=True)
        return largest, np.where(used, np.log2(total / counts), np.inf), decoded


class Linear(FileCodec):
    """Principal components of square blocks, in the two largest sizes that the training images
    suffice for.

    A "file" holds the index of its setting and the quantized coefficients, 16 bits each. Its size
    is that of an ideal coder, which has the frequencies of held-out images for each coefficient and
    writes no header.
    """

    def __init__(self, train: Images, steps: Sequence[float] = _STEPS) -> None:
        """Learn from training images (N, C, Y, X). Raises InputError if they are too few, or can't
        be cut into blocks.
        """
        count, channels, height, width = train.shape
        sides = [
            side
            for side in _SIDES
            if height % side == width % side == 0
            and 0.8 * count * height * width >= _PER_VALUE * channels * side**4
        ]
        if not sides:
            raise InputError(
                f"a linear transform can't be learned from {count} images of {width}x{height}"
                f" pixels: too few, or not to be cut into blocks of {_SIDES[0]} to {_SIDES[-1]};"
                " leave it out with --no-linear"
            )
        components = [Components.learn(train, side) for side in sides[-2:]]
        self.settings = tuple(starmap(LinearSetting, product(components, steps)))
        self.counts = (Count("PCA, ideal codes", self.ideal_bytes, whole=False),)

    @property
    def model_bytes(self) -> int:  # type: ignore[override]
        """Bytes of the largest setting: components in use, and tables of two values per number, 16
        bits each.
        """
        sizes = []
        for setting in self.settings:
            largest = setting.tables[0]
            used = largest[largest > 0]
            sizes.append(2 * len(largest) * (len(used) + 1) + 4 * int((2 * used + 1).sum()))
        return max(sizes)

    def encode(self, images: Images, setting: LinearSetting) -> list[bytes]:
        components = setting.components
        largest = setting.tables[0]
        blocks = _unit(to_blocks(images, components.side))
        coefficients = (blocks - components.mean) @ components.basis
        quantized = setting.quantize(coefficients).clip(-largest, largest).astype(np.int16)
        head = np.int16(self.settings.index(setting)).tobytes()
        return [head + image.tobytes() for image in quantized]

    def _read(self, file: bytes) -> tuple[LinearSetting, tuple[NDArray[np.int64], ...]]:
        """Return the setting of a file, and the places of its numbers in the tables."""
        values = np.frombuffer(file, np.int16).astype(np.int64)
        setting: LinearSetting = self.settings[values[0]]
        largest = setting.tables[0]
        columns = values[1:].reshape(-1, len(largest)) + largest.max()
        return setting, (np.arange(len(largest)), columns)

    def ideal_bytes(self, file: bytes) -> float:
        """Return the bytes of a file in an ideal coder, not rounded."""
        setting, places = self._read(file)
        return float(setting.tables[1][places].sum()) / 8

    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        images = []
        for file in files:
            setting, places = self._read(file)
            components = setting.components
            coefficients = setting.tables[2][places]
            pixels = coefficients @ components.basis.T + components.mean
            images.append(from_blocks(pixels[None], shape)[0])
        return (np.stack(images).clip(0, 1) * 255).round().astype(np.uint8)
