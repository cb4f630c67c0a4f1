"""The rate: bits of the codes of a split under the priors, and under two count-based baselines without a network.

Where the priors are class-conditional, all bits are given the class, and the bits of the class itself are listed
separately. The baselines count codes in their contexts on other images than those that they code, so they are what a
decoder could reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hrvqvae.checkpoints.codemaps import CodeMaps
from hrvqvae.config import level_names
from hrvqvae.models.base import Autoencoder
from hrvqvae.priors.base import Prior, total_bits
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import tracked

Integers = NDArray[np.int64]
Numbers = NDArray[np.float64]

_BATCH, _CHUNK = 64, 2**20
_HELD_OUT, _HELD_OUT_IMAGES = 10, 1_000  # every tenth counted image, and so many at most, chooses the weights
_WEIGHTS = 2.0 ** np.arange(-6, 21)


@dataclass(frozen=True, kw_only=True)
class LevelRate:
    """Bits a code of one level, mean over the coded images, given the class where there is one.

    Attributes:
        prior: under its prior.
        path: by counts of the code given the path.
        neighbours: by counts of the code given the path and the codes to the left and above.
    """

    prior: float
    path: float
    neighbours: float


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Bits an image, mean over the coded images.

    Attributes:
        prior_bits_per_image: under the priors, given the class where they know classes.
        path_bits_per_image: by counts given the path (and the class).
        neighbours_bits_per_image: by counts given path and neighbours (and the class).
        label_bits_per_image: of the class itself, by its frequency among the counted images; 0 where the priors know
            none. To be added to each of the others for an image whose class is not known.
    """

    prior_bits_per_image: float
    path_bits_per_image: float
    neighbours_bits_per_image: float
    label_bits_per_image: float
    levels: tuple[LevelRate, ...]


class _Counts:
    """How often symbols came in contexts of one kind, gathered chunk by chunk."""

    def __init__(self, symbols: int) -> None:
        self.symbols = symbols
        self._chunks: list[tuple[Integers, Integers]] = []  # sorted pairs of context and symbol, and their counts

    def add(self, context: Integers, codes: Integers) -> None:
        """Count codes (N,) in their contexts (N,)."""
        self._chunks.append(np.unique(context * self.symbols + codes, return_counts=True))

    def look_up(self, context: Integers, codes: Integers) -> tuple[Numbers, Numbers, Numbers]:
        """How often the code came in the context, anything did, and how many different codes did: each (N,)."""
        if len(self._chunks) > 1:
            pairs, place = np.unique(np.concatenate([pairs for pairs, _ in self._chunks]), return_inverse=True)
            counts = np.bincount(place, np.concatenate([counts for _, counts in self._chunks])).astype(np.int64)
            self._chunks = [(pairs, counts)]
        if not self._chunks:
            nothing = np.zeros(len(codes))
            return nothing, nothing, nothing
        pairs, counts = self._chunks[0]
        contexts = pairs // self.symbols
        first = np.flatnonzero(np.diff(contexts, prepend=-1))  # of each context's pairs, which are adjacent
        totals, kinds = np.add.reduceat(counts, first), np.diff(first, append=len(pairs))
        found = _values_at(context * self.symbols + codes, pairs, counts)
        return found, _values_at(context, contexts[first], totals), _values_at(context, contexts[first], kinds)


def _values_at(keys: Integers, known: Integers, values: NDArray[Any]) -> Numbers:
    """The value of each key among the known ones, which are sorted; 0 where it is none of them."""
    place = np.searchsorted(known, keys).clip(max=len(known) - 1)
    return np.where(known[place] == keys, values[place], 0).astype(np.float64)


class ContextCode:
    """A code for symbols by their counts in contexts of several kinds, each of which falls back on the one before.

        P(x | context) = (count(x, context) + w P(x | the context before)) / (count(context) + w)
        w = weight * number of different symbols that came in the context       (Witten and Bell 1991, method C)

    The first kind falls back on 1/m. Witten and Bell's weight is 1; here each kind has the one of `_WEIGHTS` that codes
    held-out symbols best. The largest weights ignore the context, so a useless context costs nothing.

    Args:
        symbols: m, values of a symbol.
        contexts: of each kind, how many there are.

    Raises:
        InputError: there are more contexts than can be numbered.
    """

    def __init__(self, symbols: int, contexts: Sequence[int]) -> None:
        if max(contexts) * symbols >= 2**63:
            raise InputError(f"{max(contexts):.1e} contexts of {symbols} symbols are too many to be numbered")
        self.symbols, self._counts = symbols, [_Counts(symbols) for _ in contexts]
        self._weights = [1.0] * len(contexts)

    def count(self, codes: Integers, contexts: Sequence[Integers]) -> None:
        """Count codes (N,) in their context of each kind, (N,) each."""
        for counts, context in zip(self._counts, contexts, strict=True):
            counts.add(context, codes)

    def choose_weights(self, codes: Integers, contexts: Sequence[Integers]) -> None:
        """Take the weights that code these codes best: others than were counted."""
        shares = np.full(len(codes), 1 / self.symbols)
        for kind, (counts, context) in enumerate(zip(self._counts, contexts, strict=True)):
            found = counts.look_up(context, codes)
            tried = [_mixed(shares, *found, weight) for weight in _WEIGHTS]
            best = min(range(len(tried)), key=lambda index: _bits(tried[index]))
            self._weights[kind], shares = float(_WEIGHTS[best]), tried[best]

    def bits(self, codes: Integers, contexts: Sequence[Integers]) -> list[float]:
        """Bits that the codes take in all, by the contexts up to each kind."""
        shares = np.full(len(codes), 1 / self.symbols)
        spent = []
        for counts, context, weight in zip(self._counts, contexts, self._weights, strict=True):
            shares = _mixed(shares, *counts.look_up(context, codes), weight)
            spent.append(_bits(shares))
        return spent


def _mixed(before: Numbers, count: Numbers, total: Numbers, kinds: Numbers, weight: float) -> Numbers:
    """P(x | context) of `ContextCode`; where the context never came, P(x | the context before)."""
    trusted = weight * np.maximum(kinds, 1)
    mixed: Numbers = (count + trusted * before) / (total + trusted)
    return mixed


def _bits(shares: Numbers) -> float:
    return float(-np.log2(shares).sum())


def _shifted(codes: Integers, axis: int, outside: int) -> Integers:
    """The code above each (axis 1), or to its left (axis 2); `outside` where there is none."""
    before = np.full_like(codes, outside)
    if axis == 1:
        before[:, 1:] = codes[:, :-1]
    else:
        before[:, :, 1:] = codes[:, :, :-1]
    return before


class ContextCounts:
    """The codes of every level by counts: given the path, and given the path and the neighbours; and the class.

    The path is the codeword of the next coarser level at the same place; level 1 has none. A level's kinds of context
    are the path; path and class; path, left and upper code; all of these. Without classes the second and last are
    left out.

    Args:
        symbols: m of each level.
        coarser: codewords of each level but the finest, the number of its paths.
        classes: how many there are, 0 where codes are not given the class.

    Raises:
        InputError: there are more contexts than can be numbered.
    """

    def __init__(self, model: Autoencoder, symbols: Sequence[int], coarser: Sequence[int], classes: int) -> None:
        self.model, self.symbols = model, symbols
        self._label_counts = (1, classes) if classes else (1,)
        self._codes = []
        for size, paths in zip(symbols, (1, *coarser), strict=True):
            kinds = (paths, paths * (size + 1) ** 2)
            self._codes.append(ContextCode(size, [kind * labels for kind in kinds for labels in self._label_counts]))

    def _levels(self, maps: CodeMaps, images: Integers) -> Iterator[tuple[ContextCode, Integers, list[Integers]]]:
        """The code of each level, with the codes of some images and their contexts."""
        codes, labels = maps.read(images)
        paths = self.model.paths(codes)
        label = labels.numpy()[:, None, None]
        for level, size in enumerate(self.symbols):
            code = codes[level].numpy()
            path = np.zeros_like(code)
            if level:
                rows, columns = (code.shape[axis] // paths[level - 1].shape[axis] for axis in (1, 2))
                path = paths[level - 1].numpy().repeat(rows, 1).repeat(columns, 2)
            around = (path * (size + 1) + _shifted(code, 2, size)) * (size + 1) + _shifted(code, 1, size)
            kinds = [kind * labels + label % labels for kind in (path, around) for labels in self._label_counts]
            yield self._codes[level], code.ravel(), [kind.ravel() for kind in kinds]

    def count(self, maps: CodeMaps) -> None:
        """Count the codes of these images, after some of them have chosen the weights."""
        every = np.arange(len(maps))
        held_out = every[:: max(_HELD_OUT, len(maps) // _HELD_OUT_IMAGES)]
        for images in _in_chunks(maps, np.setdiff1d(every, held_out)):
            for code, symbols, contexts in self._levels(maps, images):
                code.count(symbols, contexts)
        for code, symbols, contexts in self._levels(maps, held_out):
            code.choose_weights(symbols, contexts)
            code.count(symbols, contexts)

    def bits(self, maps: CodeMaps) -> list[tuple[float, float]]:
        """Bits of each level in all, given the path, and given path and neighbours; none of the images is counted."""
        spent = np.zeros((len(self.symbols), 2))
        for images in _in_chunks(maps, np.arange(len(maps))):
            for level, (code, symbols, contexts) in enumerate(self._levels(maps, images)):
                bits = code.bits(symbols, contexts)
                spent[level] += bits[len(self._label_counts) - 1], bits[-1]
        return [(float(path), float(neighbours)) for path, neighbours in spent]


def _in_chunks(maps: CodeMaps, images: Integers) -> list[Integers]:
    """The images, so many at a time that their codes of a level take a few megabytes."""
    at_once = max(1, _CHUNK // max(level[0].size for level in maps.levels))
    return [images[start : start + at_once] for start in range(0, len(images), at_once)]


def label_bits(counted: Integers, coded: Integers, classes: int) -> float:
    """Mean bits of the labels `coded` by the frequency of each among `counted`, each class counted once more."""
    counts = np.bincount(counted, minlength=classes) + 1
    return float(-np.log2(counts[coded] / counts.sum()).mean())


def _bits_under(prior: Prior, model: Autoencoder, coded: CodeMaps, device: torch.device) -> list[float]:
    """Bits that codes take under a prior, in float32, summed, of each level that it covers."""
    prior.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first, count = prior.level.number - 1, len(prior.levels)
    spent = np.zeros(count)
    title = f"bits of {level_names(range(first, first + count))} under {'its' if count == 1 else 'their'} prior"
    starts = range(0, len(coded), _BATCH)
    for start in tracked(starts, title, len(coded), lambda start: min(_BATCH, len(coded) - start)):
        codes, labels = coded.read(np.arange(start, min(start + _BATCH, len(coded))))
        coarser = [paths.to(device) for paths in model.paths(codes[:first])]
        own = [one.to(device) for one in codes[first : first + count]]
        spent += total_bits(prior, own, coarser, labels.to(device) if prior.level.classes else None)
    prior.cpu()
    return [float(bits) for bits in spent]


def measure_rate(
    priors: Sequence[Prior], model: Autoencoder, coded: CodeMaps, counted: CodeMaps, device: torch.device
) -> Rate:
    """Bits that codes take under the priors, in float32, and by the baselines.

    Args:
        coded: of the images whose bits are measured.
        counted: of the images that the baselines count: none of those.

    Raises:
        InputError: there are more contexts than can be numbered.
    """
    levels = [level for prior in priors for level in prior.levels]
    classes = levels[0].classes
    baselines = ContextCounts(model, [level.symbols for level in levels], levels[-1].coarser, classes)
    baselines.count(counted)
    spent = [bits for prior in priors for bits in _bits_under(prior, model, coded, device)]
    rates, per_image = [], np.zeros(3)
    for level, of_prior, by_counts in zip(levels, spent, baselines.bits(coded), strict=True):
        an_image = np.array([of_prior, *by_counts]) / len(coded)
        prior_bits, path, neighbours = (an_image / np.prod(level.grid)).tolist()
        rates.append(LevelRate(prior=prior_bits, path=path, neighbours=neighbours))
        per_image += an_image
    return Rate(
        prior_bits_per_image=float(per_image[0]), path_bits_per_image=float(per_image[1]),
        neighbours_bits_per_image=float(per_image[2]),
        label_bits_per_image=label_bits(counted.labels, coded.labels, classes) if classes else 0.0, levels=tuple(rates),
    )  # fmt: skip
