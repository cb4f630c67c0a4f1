"""The data sets known by name; `config.registry.DATASETS` lists them. Importing these modules needs
no torch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Arrays(NamedTuple):
    """The images of a split, as a data set's reader returns them."""

    images: NDArray[np.uint8]  # (N, C, Y, X)
    labels: NDArray[np.int64]  # (N,), zeros where there are no classes
    classes: tuple[str, ...]  # names, empty where there are no classes
