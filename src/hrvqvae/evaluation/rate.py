"""The rate under priors: bits that the codes of a split take, and two yardsticks that need no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hrvqvae.priors.base import Prior, total_bits
from hrvqvae.runs.codemaps import CodeMaps
from hrvqvae.systems.base import Autoencoder

_BATCH, _CHUNK = 64, 4_096
_DENSE = 2**24  # contexts and symbols that are counted in a table; more are sorted


@dataclass(frozen=True, kw_only=True)
class LevelRate:
    """Bits a code of one level.

    Attributes:
        prior: under its prior, mean over the split.
        path: entropy of the training codes given their path.
        neighbours: entropy of the training codes given their path and the codes to the left and above.
    """

    prior: float
    path: float
    neighbours: float


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Bits an image: under the priors on the split, and of the two yardsticks, which come from the training codes."""

    prior_bits_per_image: float
    path_bits_per_image: float
    neighbours_bits_per_image: float
    levels: tuple[LevelRate, ...]


class ContextCounts:
    """How often codes come together with a context, gathered chunk by chunk."""

    def __init__(self, symbols: int) -> None:
        self.symbols = symbols
        self._counts: dict[int, int] = {}
        self._table = np.zeros(0, np.int64)

    def add(self, context: NDArray[np.int64], codes: NDArray[np.int64]) -> None:
        """Count a chunk; both arrays of one shape."""
        joint = context.ravel() * self.symbols + codes.ravel()
        if joint.max() < _DENSE:
            some = np.bincount(joint, minlength=len(self._table))
            some[: len(self._table)] += self._table
            self._table = some
        else:
            for key, number in zip(*np.unique(joint, return_counts=True), strict=True):
                self._counts[int(key)] = self._counts.get(int(key), 0) + int(number)

    def entropy(self) -> float:
        """H(code | context) in bits."""
        dense = np.nonzero(self._table)[0]
        keys = np.concatenate([dense, np.fromiter(self._counts, np.int64, len(self._counts))])
        sparse = np.fromiter(self._counts.values(), np.int64, len(self._counts))
        counts = np.concatenate([self._table[dense], sparse]).astype(np.float64)
        _, place = np.unique(keys // self.symbols, return_inverse=True)
        _, same = np.unique(keys, return_inverse=True)
        together, alone = (np.bincount(one, counts).astype(np.float64) for one in (same, place))
        return _entropy(together) - _entropy(alone)


def _entropy(counts: NDArray[np.float64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _shifted(codes: NDArray[np.int64], axis: int, outside: int) -> NDArray[np.int64]:
    """The code above each (axis 1), or to its left (axis 2); `outside` where there is none."""
    before = np.full_like(codes, outside)
    if axis == 1:
        before[:, 1:] = codes[:, :-1]
    else:
        before[:, :, 1:] = codes[:, :, :-1]
    return before


def yardsticks(maps: CodeMaps, model: Autoencoder, symbols: Sequence[int]) -> list[tuple[float, float]]:
    """(entropy given the path, given path and left and upper neighbour) of each level, in bits a code.

    The path is the codeword of the next coarser level at the same place; level 1 has none.
    """
    paths_only, with_neighbours = ([ContextCounts(size) for size in symbols] for _ in range(2))
    for start in range(0, len(maps), _CHUNK):
        codes = maps.read(np.arange(start, min(start + _CHUNK, len(maps))))[0]
        paths = model.paths(codes)
        for level, size in enumerate(symbols):
            code = codes[level].numpy()
            context = np.zeros_like(code)
            if level:
                rows, columns = (code.shape[axis] // paths[level - 1].shape[axis] for axis in (1, 2))
                context = paths[level - 1].numpy().repeat(rows, 1).repeat(columns, 2)
            paths_only[level].add(context, code)
            around = (context * (size + 1) + _shifted(code, 2, size)) * (size + 1) + _shifted(code, 1, size)
            with_neighbours[level].add(around, code)
    return [(one.entropy(), other.entropy()) for one, other in zip(paths_only, with_neighbours, strict=True)]


def measure_rate(
    priors: Sequence[Prior], model: Autoencoder, maps: CodeMaps, train: CodeMaps, device: torch.device
) -> Rate:
    """Bits that the codes of a split (`maps`) take, beside the yardsticks of the training codes; in float32."""
    symbols = [prior.level.symbols for prior in priors]
    levels, per_image = [], [0.0, 0.0, 0.0]
    for level, (prior, (path, neighbours)) in enumerate(zip(priors, yardsticks(train, model, symbols), strict=True)):
        prior.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        spent = 0.0
        for start in range(0, len(maps), _BATCH):
            codes, labels = maps.read(np.arange(start, min(start + _BATCH, len(maps))))
            coarser = [paths.to(device) for paths in model.paths(codes[:level])]
            label = labels.to(device) if prior.level.classes else None
            spent += total_bits(prior, codes[level].to(device), coarser, label)
        prior.cpu()
        positions = prior.level.grid[0] * prior.level.grid[1]
        rate = LevelRate(prior=spent / len(maps) / positions, path=path, neighbours=neighbours)
        levels.append(rate)
        for index, value in enumerate((rate.prior, rate.path, rate.neighbours)):
            per_image[index] += value * positions
    return Rate(
        prior_bits_per_image=per_image[0], path_bits_per_image=per_image[1], neighbours_bits_per_image=per_image[2],
        levels=tuple(levels),
    )  # fmt: skip
