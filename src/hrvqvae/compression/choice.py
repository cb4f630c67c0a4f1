"""Which of a few codes each position gets, by its error and by the bits that the integer models make of it.

A code costs bits itself, and it changes what the codes around it cost, in whose contexts it stands. Positions are gone
through one after the other. Each one takes, given what all others have, the candidate of the least

    error + weight * bits of all codes of the image

so that the sum over an image never grows (iterated conditional modes: Besag 1986). All levels lie on one grid.

What the codes around would cost takes nearly all of the time. So candidates are looked at in the order of their error
and their own bits, and those that the codes around would have to pay `_MARGIN` bits for are left out. The rows of a
large image are divided into strips; every other strip is gone through first, on all threads, then those between them.
A code reaches less far than a strip, so that what is chosen does not depend on the number of threads.

Shapes: N images, P positions of the grid, K candidates, L levels, n leaves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.costs import EVERY, Codes, Floats, Integers, Models, begin, change
from hrvqvae.utils.compiled import compiled
from hrvqvae.utils.threads import in_parts

_STAGES = (1, 9, EVERY)  # offsets at which codes around are looked at, the nearest first
_MARGINS = (4.0, 2.0)  # bits that they may still save, before each stage
_STRIP = 32  # rows, more than a code and another that it changes can both reach
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}


@compiled(**_OPTIONS)
def _settle(
    first: int, last: int, strips: Integers, places: Integers, images: Codes, numbers: Any, leaves: Codes,
    errors: Floats, chosen: Any, all_weights: Floats, margins: Any, begins: Integers, grids: Integers,
    symbols: Integers, about: Integers, arrays: Any, state: Any,
) -> int:  # fmt: skip
    """Let places have their best candidates, in units first, ..., last - 1: the strips of an image, image by image.

    Args:
        strips: (S, 2), which of `places` each has.
    """
    all_sums, all_sets, all_values, all_bits = state
    spare, after = np.empty(all_sums.shape[3], np.int32), np.empty(all_values.shape[3], np.int64)
    frequencies, own = np.empty(symbols.max(), np.int64), np.empty(numbers.shape[2], np.float64)
    for unit in range(first, last):
        image, strip = unit // len(strips), unit % len(strips)
        codes, sums, sets = images[image], all_sums[image], all_sets[image]
        values, bits, weight = all_values[image], all_bits[image], all_weights[image]
        for index in range(strips[strip, 0], strips[strip, 1]):
            place = places[index]
            now = chosen[image, place]
            for one in range(len(own)):
                own[one] = errors[image, index, one] - errors[image, index, now]
                if weight > 0 and one != now:
                    own[one] += weight * change(
                        place, leaves[numbers[image, place, one]], 0, 1, False, codes, begins, grids, symbols, about,
                        arrays, sums, sets, values, bits, spare, after, frequencies,
                    )  # fmt: skip
            own[now] = np.inf
            best, least = now, 0.0
            for _ in range(len(own) - 1):
                one = int(own.argmin())
                cost = own[one]
                own[one] = np.inf
                if cost >= least + weight * margins[0]:
                    break
                for stage in range(len(margins) if weight > 0 else 0):
                    if cost < least + weight * margins[stage]:
                        cost += weight * change(
                            place, leaves[numbers[image, place, one]], _STAGES[stage], _STAGES[stage + 1], False, codes,
                            begins, grids, symbols, about, arrays, sums, sets, values, bits, spare, after, frequencies,
                        )  # fmt: skip
                if cost < least:
                    best, least = one, cost
            if best != now:
                chosen[image, place] = best
                change(
                    place, leaves[numbers[image, place, best]], 0, EVERY, True, codes, begins, grids, symbols, about,
                    arrays, sums, sets, values, bits, spare, after, frequencies,
                )  # fmt: skip
    return last - first


class Choice:
    """Which of its candidates each position of images has, and the bits that their codes take.

    Bits are those of the levels that have a model; the others take the same whatever is chosen. What a file has beside
    them (header, checks, ends of streams) is not counted.

    Attributes:
        chosen: (N, P), the number of each position's candidate, the first to begin with.
        codes: (N, all codes) of these, level after level.
    """

    def __init__(self, models: Models, leaves: Codes, numbers: Codes) -> None:
        """Begin with the first candidate of each position.

        Args:
            leaves: (n, L), the codes of all levels of each leaf.
            numbers: (N, P, K), the leaves that are candidates.
        """
        self._models, self._leaves, self._numbers = models, leaves, numbers
        count, positions = numbers.shape[:2]
        self.chosen = np.zeros((count, positions), np.int32)
        self.codes = np.ascontiguousarray(leaves[numbers[:, :, 0]].transpose(0, 2, 1)).reshape(count, -1)
        shape = (count, len(models.about), positions)
        hidden, groups = int(models.about[:, 1].max(initial=0)), max(map(len, models.groups), default=0)
        self._state = (
            np.zeros((*shape, hidden), np.int32), np.zeros(shape, np.int32), np.zeros((*shape, groups), np.int32),
            np.zeros(shape, np.float32),
        )  # fmt: skip
        if len(models.about):
            in_parts(count, lambda first, last: int(begin(self.codes, first, last, *self._about, self._state)))

    @property
    def _about(self) -> tuple[Any, ...]:
        layout = self._models.layout
        return layout.begins, layout.grids, layout.symbols, self._models.about, self._models.arrays

    @property
    def bits(self) -> NDArray[np.float64]:
        """Of each image (N,)."""
        bits: NDArray[np.float64] = self._state[3].sum((1, 2), dtype=np.float64)
        return bits

    @property
    def leaves(self) -> Codes:
        """The number of the leaf of each position (N, P)."""
        return np.take_along_axis(self._numbers, self.chosen[:, :, None], 2)[:, :, 0]

    def settle(self, places: Integers, errors: Floats, weights: NDArray[np.floating[Any]]) -> None:
        """Let each of `places`, one after the other, have its best candidate.

        Args:
            places: P' numbers of positions in ascending order.
            errors: (N, P', K) of each candidate.
            weights: (N,), of a bit of each image, in units of its errors.
        """
        if not len(self._models.about):
            self._take_least(places, errors)
            return
        width = int(self._models.layout.grids[0, 1])
        ends = np.searchsorted(places, width * np.arange(0, self.chosen.shape[1] // width + _STRIP, _STRIP))
        strips = np.stack([ends[:-1], ends[1:]], 1)
        worth = weights.astype(np.float32)
        for some in (strips[::2], strips[1::2]):  # which are independent of each other
            some = np.ascontiguousarray(some)

            def run(first: int, last: int, some: Integers = some) -> int:
                return int(_settle(
                    first, last, some, places, self.codes, self._numbers, self._leaves, errors, self.chosen, worth,
                    np.array(_MARGINS), *self._about, self._state,
                ))  # fmt: skip

            in_parts(len(self.codes) * len(some), run)

    def _take_least(self, places: Integers, errors: Floats) -> None:
        """Without models: the candidate of the least error, an image's present one where none is less."""
        least = errors.argmin(-1)
        now = self.chosen[:, places]
        better = np.take_along_axis(errors, least[..., None], 2) < np.take_along_axis(errors, now[..., None], 2)
        self.chosen[:, places] = np.where(better[..., 0], least, now)
        for level, codes in enumerate(self._leaves[self.leaves[:, places]].transpose(2, 0, 1)):
            self.codes[:, self._models.layout.begins[level] + places] = codes
