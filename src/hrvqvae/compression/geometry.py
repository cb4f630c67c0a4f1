"""From the size of an image to the grids of its codes, by a rule of three numbers that a file of tables can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hrvqvae.utils.errors import InputError

Grid = tuple[int, int]

_PROBED = 600  # pixels up to which the grids of a system are compared with the rule


@dataclass(frozen=True)
class Geometry:
    """The grid of level l has times[l] * ceil((pixels + margin) / unit) positions a side.

    Attributes:
        unit: pixels of a position of the coarsest grid, a side.
        margin: pixels that an image grows by before it is encoded.
        times: how many times finer each level's grid is than the coarsest, coarse first.
    """

    unit: int
    margin: int
    times: tuple[int, ...]

    def grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """(H, W) of each level for an image of that many pixels, coarse first."""
        rows, columns = (-(-(side + self.margin) // self.unit) for side in (height, width))
        return tuple((times * rows, times * columns) for times in self.times)


def geometry_of(latent_grids: Callable[[int, int], Sequence[Grid]]) -> Geometry:
    """The rule that a system's grids follow.

    Raises:
        InputError: they follow none.
    """
    rows = [[rows for rows, _ in latent_grids(height, 1)] for height in range(1, _PROBED)]
    number = rows[0][0]  # positions of the coarsest level in an image one pixel high
    grows = [height for height in range(2, _PROBED) if rows[height - 1][0] != rows[height - 2][0]]
    if len(grows) < 2:
        raise InputError(
            f"the grids of this system do not grow twice up to {_PROBED - 1} pixels: too coarse for a file"
        )
    unit = grows[1] - grows[0]
    found = Geometry(unit, unit * number + 1 - grows[0], tuple(one // number for one in rows[0]))
    for height, width in ((height, 1 + height * 7 % 97) for height in range(1, _PROBED)):
        if tuple(latent_grids(height, width)) != found.grids(height, width):
            raise InputError("the grids of this system follow no rule that a file of codes can state")
    return found
