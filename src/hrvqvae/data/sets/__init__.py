"""The data sets known by name; `config.registry.DATASETS` lists them. Nothing here imports torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Arrays(NamedTuple):
    """What a data set's reader gives of a split.

    Attributes:
        images: (N, C, Y, X) uint8.
        labels: (N,) int64, zeros where there are no classes.
        classes: names, empty where there are no classes.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
