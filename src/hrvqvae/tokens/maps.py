"""Codes in shards as the code maps that priors are trained from, however many they are.

A training step reads images in a drawn order, which compressed row groups are slow at. So the codes are laid out once
beside the run as arrays that are mapped into memory, as those of its own images are (`checkpoints.codemaps`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae import distributed
from hrvqvae.checkpoints.codemaps import CodeMaps, read_maps, write_about, write_array
from hrvqvae.checkpoints.storage import weights_digest
from hrvqvae.config import Config
from hrvqvae.models.base import Autoencoder
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import locked, remove_temporaries, writable, writing
from hrvqvae.utils.progress import task

if TYPE_CHECKING:
    from hrvqvae.tokens.shards import Rows, Shards  # which need an extra to be imported

_NAME = "shards"


def maps_of_shards(
    folder: Path, path: Path, model: Autoencoder, config: Config, say: Callable[[str], None] = print
) -> CodeMaps:
    """The code maps of shards of a model's codes; laid out in the folder first, unless they lie there.

    Args:
        folder: of the run's codes; made if it does not exist.
        path: a folder of shards, or one.
        say: takes a line where another process works in the folder and is waited for.

    Raises:
        InputError: no shards, those of another model, codes of images of another size, labels of some images only, or
            the folder can't be written.
        DamagedFileError: a shard is damaged, or holds codes that the model has not.
    """
    with distributed.context_on_rank_zero(lambda: locked(folder, wait=say)):
        source = distributed.on_rank_zero(lambda: _laid_out(folder, path, model, config))
        found = read_maps(folder, _NAME, source, config.model.num_symbols)
    if found is None:
        raise InputError(f"the codes in {folder} can't be read; every process has to see that folder")
    return found


def _laid_out(folder: Path, path: Path, model: Autoencoder, config: Config) -> dict[str, Any]:
    """Lay the codes of shards out, unless they lie there; -> what tells these from others."""
    from hrvqvae.tokens.shards import named_shards

    shards = named_shards(path)
    digest = weights_digest(model.state_dict())
    if shards.model != digest:
        raise InputError(f"{path} holds codes of another model than this run's")
    states = [[one.name, one.stat().st_size, one.stat().st_mtime_ns] for one in shards.paths]
    source = {"model": digest, "labels": config.data.labels, "shards": states}
    if read_maps(folder, _NAME, source, config.model.num_symbols) is None:
        with writable(f"the folder of codes {folder}"):
            remove_temporaries(folder)
            (folder / f"{_NAME}.json").unlink(missing_ok=True)
            _lay_out(folder, shards, config, source)
    return source


def _lay_out(folder: Path, shards: Shards, config: Config, source: dict[str, Any]) -> None:
    symbols, size = config.model.num_symbols, config.data.size
    grids = config.model.latent_grids(size, size)
    numbers, known, count = np.full(shards.count, -1, np.int64), dict[str | int, int](), 0
    with ExitStack() as stack:
        advance = stack.enter_context(task("lay codes out", shards.count))
        streams, kinds = [], [np.min_scalar_type(number - 1) for number in symbols]
        for level, (grid, kind) in enumerate(zip(grids, kinds, strict=True), start=1):
            temporary = stack.enter_context(writing(folder / f"{_NAME}-level-{level}.npy"))
            streams.append(stack.enter_context(temporary.open("xb")))
            header = {"descr": kind.str, "fortran_order": False, "shape": (shards.count, *grid)}
            np.lib.format.write_array_header_1_0(streams[-1], header)
        for rows in shards.rows(len(symbols)):
            some = slice(count, count := count + len(rows))
            for level, stream in enumerate(streams):
                codes = _checked(rows, level, grids[level], symbols[level], size)
                stream.write(codes.astype(kinds[level]).tobytes())
            if config.data.labels:
                numbers[some] = [-1 if one is None else known.setdefault(one, len(known)) for one in rows.labels]
            advance(len(rows))
        without = int((numbers < 0).sum())
        if known and without:
            raise InputError(f"{without:,} of {count:,} images have no label; label all of them, or none")
        classes, order = _classes(list(known), shards.classes)
    write_array(folder / f"{_NAME}-labels.npy", order[numbers] if known else np.zeros(count, np.int64))
    write_about(folder, _NAME, source, len(symbols), classes)


def _checked(rows: Rows, level: int, grid: tuple[int, int], symbols: int, size: int) -> NDArray[Any]:
    """The codes of a level, one after the other."""
    for key, found in zip(rows.keys, rows.grids[level], strict=True):
        if found != tuple(grid):
            raise InputError(
                f"{key} has a grid of {found[0]}x{found[1]} on level {level + 1}; priors are trained on "
                f"{grid[0]}x{grid[1]}, of images of {size}x{size} pixels: make the shards without --full-size"
            )
    codes = np.concatenate(rows.codes[level])
    if int(codes.max()) >= symbols or int(codes.min()) < 0:
        raise InputError(f"a code of level {level + 1} is out of range; this model has codes 0 to {symbols - 1} there")
    return codes


def _classes(labels: Sequence[str | int], named: tuple[str, ...]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """(names of the classes, the number of each label): numbers index the names that the shards say, if they do.

    Names that they don't say are in their own order, and numbers are names from 0 on.
    """
    whole = [label for label in labels if isinstance(label, int)]
    if labels and len(whole) == len(labels) and min(whole) >= 0 and (not named or max(whole) < len(named)):
        return named or tuple(map(str, range(max(whole) + 1))), np.array(whole, np.int64)
    names = {str(label) for label in labels}
    classes = named if names <= set(named) else tuple(sorted(names))
    place = {name: number for number, name in enumerate(classes)}
    return classes if labels else (), np.array([place[str(label)] for label in labels], np.int64)
