"""Copy the codes of shards to code maps, from which priors are trained.

Training reads images in random order, which is slow in compressed row groups. So the codes are
copied once to arrays beside the run, which are mapped into memory like those of the run's images
(`checkpoints.codemaps`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae import distributed
from hrvqvae.checkpoints.codemaps import CodeMaps, load_or_write, write_array
from hrvqvae.checkpoints.storage import weights_digest
from hrvqvae.config import Config
from hrvqvae.models.base import Autoencoder
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.outputs import replace_file
from hrvqvae.utils.progress import Say, task

if TYPE_CHECKING:
    from hrvqvae.tokens.shards import Rows, Shards  # importing them needs an extra

_NAME = "shards"


def load_shard_maps(
    folder: Path, path: Path, model: Autoencoder, config: Config, say: Say = print
) -> CodeMaps:
    """Return the code maps of shards, a folder of them or one, and write them to the folder of a
    run's codes if they are missing there, damaged, or of other shards.

    Raises:
        InputError: the shards do not fit the run, only some images have labels, or the folder can't
            be written.
        DamagedFileError: a shard is damaged.
    """
    from hrvqvae.tokens.shards import find_shards

    def open_source() -> tuple[Shards, dict[str, Any]]:
        shards = find_shards(path)
        digest = weights_digest(model.state_dict())
        if shards.model_digest != digest:
            raise InputError(
                f"{path} holds codes of another model than this run's; delete it, and make it anew"
                " with hrvqvae tokenize"
            )
        if not shards.count:
            raise InputError(
                f"{path} holds codes of no image; make shards of images that can be read"
            )
        states = [  # lists, as JSON returns them
            [file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in shards.paths
        ]
        return shards, {"model": digest, "labels": config.data.labels, "shards": states}

    shards, source = distributed.on_rank_zero(open_source)
    write_arrays = partial(_write_arrays, shards, config)
    return load_or_write(folder, _NAME, source, config.model.num_symbols, lambda: write_arrays, say)


def _write_arrays(shards: Shards, config: Config, paths: Sequence[Path]) -> Sequence[str]:
    """Write the codes of each level and the labels to files (.npy), and return the names of the
    classes.
    """
    from hrvqvae.tokens.shards import read_rows

    *level_paths, labels_path = paths
    symbols = config.model.num_symbols
    size = config.data.image_size
    grids = config.model.geometry.grids(*size)
    labels = list[str | int | None]()
    with ExitStack() as stack:
        advance = stack.enter_context(task("lay codes out", shards.count))

        # open a file (.npy) per level, and write its header
        streams = []
        dtypes = [np.min_scalar_type(count - 1) for count in symbols]
        for path, grid, dtype in zip(level_paths, grids, dtypes, strict=True):
            temporary = stack.enter_context(replace_file(path))
            streams.append(stack.enter_context(temporary.open("xb")))
            header = {"descr": dtype.str, "fortran_order": False, "shape": (shards.count, *grid)}
            np.lib.format.write_array_header_1_0(streams[-1], header)

        # append the codes of each row group
        for rows in read_rows(shards.paths, len(symbols)):
            for level, stream in enumerate(streams):
                codes = _stack_codes(rows, level, grids[level], symbols[level], size)
                stream.write(codes.astype(dtypes[level]).tobytes())
            labels += rows.labels if config.data.labels else [None] * len(rows)
            advance(len(rows))

        # after an error inside the block, no file is replaced
        if len(labels) != shards.count:
            raise DamagedFileError(
                f"the shards have {len(labels):,} rows, not {shards.count:,} as their ends say"
            )

        # each image has a label, or none has
        missing = labels.count(None)
        if 0 < missing < len(labels):
            raise InputError(
                f"{missing:,} of {len(labels):,} images have no label; label all of them, or none"
            )
    classes, indices = (
        ((), np.zeros(missing, np.int64)) if missing else _index_classes(labels, shards.classes)
    )
    write_array(labels_path, indices)
    return classes


def _stack_codes(
    rows: Rows, level: int, grid: tuple[int, int], symbols: int, size: tuple[int, int]
) -> NDArray[Any]:
    """Return the codes of a level (N, H, W). Raises InputError if a grid or a code does not fit the
    model.
    """
    for key, image_codes in zip(rows.keys, rows.codes[level], strict=True):
        height, width = image_codes.shape
        if (height, width) != tuple(grid):
            raise InputError(
                f"{key} has a grid of {height}x{width} on level {level + 1}; priors are trained on"
                f" {grid[0]}x{grid[1]}, of images of {size[0]}x{size[1]} pixels: make the shards"
                " without --full-size"
            )
    codes = np.stack(rows.codes[level])
    if int(codes.max()) >= symbols or int(codes.min()) < 0:
        raise InputError(
            f"a code of level {level + 1} is out of range; this model has codes 0 to {symbols - 1}"
            " there"
        )
    return codes


def _index_classes(
    labels: Sequence[Any], classes: tuple[str, ...]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the names of the classes and the class of each label; whole numbers index `classes` if
    they fit.
    """
    values, indices = np.unique(labels, return_inverse=True)
    if classes and values.dtype.kind == "i" and values[0] >= 0 and values[-1] < len(classes):
        return classes, np.array(labels)
    names = tuple(map(str, values))
    classes = classes if set(names) <= set(classes) else names
    return classes, np.array([classes.index(name) for name in names])[indices]
