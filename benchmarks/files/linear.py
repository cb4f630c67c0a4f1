"""The best that a linear transform does: principal components of blocks, uniform steps, ideal
static code lengths.

The components are learned on four fifths of the training images. How often each number comes, what
it costs and what it is decoded as is counted on the other fifth, which the components have not
seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product, starmap

import numpy as np
from numpy.typing import NDArray

from benchmarks.files.curves import Count, FileCodec, Images, Shape
from hrvqvae.utils.errors import InputError

Floats = NDArray[np.float32]
_SIDES = (2, 4, 7, 8, 14, 16, 28, 32)  # of blocks that are tried, in pixels
_STEPS = tuple(float(step) for step in np.geomspace(0.08, 1.6, 13))
# added to a magnitude before it is cut to a whole number: 0.5 is the nearest, less spends fewer
# bits
_ROUNDING = 0.4
_PRIOR_COUNT = 0.05  # of a number that was not seen
# most blocks to learn from, to count; least for each pixel value
_VECTORS = 200_000
_COUNTED = 40_000
_PER_VALUE = 5


def to_blocks(images: Images, side: int) -> Images:
    """(N, C, Y, X) -> (N, blocks, C * side * side), row by row."""
    count, channels, height, width = images.shape
    cut = images.reshape(count, channels, height // side, side, width // side, side)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * side * side)


def from_blocks(blocks: NDArray[np.generic], shape: Shape) -> NDArray[np.generic]:
    """(N, blocks, C * side * side) -> (N, C, Y, X)."""
    channels, height, width = shape
    side = round((blocks.shape[2] / channels) ** 0.5)
    cut = blocks.reshape(-1, height // side, width // side, channels, side, side)
    return cut.transpose(0, 3, 1, 4, 2, 5).reshape(-1, *shape)


def _unit(pixels: Images) -> Floats:
    """0 to 255 -> [0, 1]."""
    return np.divide(pixels, 255, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of blocks, and coefficients of blocks that they were not learned from.

    Attributes:
        side: of a block, in pixels.
        mean: (D,); basis: (D, D), the strongest component first.
        held_out: (N, D) coefficients.
    """

    side: int
    mean: Floats
    basis: Floats
    held_out: Floats

    @classmethod
    def learn(cls, images: Images, side: int) -> Components:
        """From training images (N, C, Y, X)."""
        order = np.random.default_rng(0)
        apart = np.arange(len(images)) % 5 == 4

        def draw(which: NDArray[np.bool_], most: int) -> Floats:
            blocks = to_blocks(images[which], side).reshape(-1, images.shape[1] * side * side)
            return _unit(blocks[order.permutation(len(blocks))[:most]])

        vectors = draw(~apart, _VECTORS)
        mean = vectors.mean(0)
        vectors -= mean
        basis = np.linalg.eigh(vectors.T @ vectors / len(vectors))[1][:, ::-1].astype(np.float32)
        return cls(
            side, mean, basis, np.matmul(draw(apart, _COUNTED) - mean, basis, dtype=np.float32)
        )


@dataclass(frozen=True, eq=False)
class LinearSetting:
    """Components, and the step that their coefficients are divided by."""

    components: Components
    step: float

    def __str__(self) -> str:
        return f"blocks of {self.components.side}, step {self.step:.3f}"

    def quantize(self, coefficients: NDArray[np.floating]) -> NDArray[np.int64]:
        """Whole numbers of steps."""
        sizes = np.floor(np.abs(coefficients) / self.step + _ROUNDING)
        return np.asarray(np.sign(coefficients) * sizes, np.int64)

    @cached_property
    def tables(self) -> tuple[NDArray[np.int64], NDArray[np.float64], Floats]:
        """Largest number of each coefficient (D,); bits and decoded value of each number, (D, 2 *
        largest + 1).
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
    """Principal components of square blocks of the training images: the two largest sizes that
    there is data for.

    A "file" holds the number of its setting and its whole numbers, 16 bits each. It counts as long
    as an ideal coder would make it: with the static frequencies of held-out images for each
    coefficient, without any header.
    """

    def __init__(self, train: Images, steps: Sequence[float] = _STEPS) -> None:
        """From training images (N, C, Y, X).

        Raises:
            InputError: they are too few, or can't be cut into blocks.
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
        """Of the largest setting: components that are in use and tables of two values a number, 16
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

    def _read(self, file: bytes) -> tuple[LinearSetting, NDArray[np.int64]]:
        """Setting of a file, and the places of its numbers in the tables (blocks, D)."""
        values = np.frombuffer(file, np.int16).astype(np.int64)
        setting: LinearSetting = self.settings[values[0]]
        largest = setting.tables[0]
        return setting, values[1:].reshape(-1, len(largest)) + largest.max()

    def ideal_bytes(self, file: bytes) -> float:
        """Length of the file in an ideal coder, in bytes, which need not be whole."""
        setting, places = self._read(file)
        return float(setting.tables[1][np.arange(places.shape[1]), places].sum()) / 8

    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        images = []
        for file in files:
            setting, places = self._read(file)
            components = setting.components
            coefficients = setting.tables[2][np.arange(places.shape[1]), places]
            pixels = coefficients @ components.basis.T + components.mean
            images.append(from_blocks(pixels[None], shape)[0])
        return (np.stack(images).clip(0, 1) * 255).round().astype(np.uint8)
