"""Codes in shards as the code maps that priors are trained from, however many they are.

A training step reads images in an order that is drawn, one here and one there, which compressed row groups are slow at.
So the codes are laid out once beside the run as arrays that are mapped into memory, as the codes of its own images are:

RUN/priors/codes/shards-level-1.npy   (N, H_1, W_1) in the smallest unsigned type that holds the symbols of the level
                 shards-labels.npy    (N,) int64
                 shards.json          which shards they were made from, and the names of the classes

The order of the images is that of the shards by name, and of their rows. A row group is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae import distributed
from hrvqvae.checkpoints.codemaps import CodeMaps, array_bytes, read_maps, write_about
from hrvqvae.checkpoints.storage import weights_digest
from hrvqvae.config import Config
from hrvqvae.models.base import Autoencoder
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import locked, remove_temporaries, write_atomic, writing
from hrvqvae.utils.progress import task

if TYPE_CHECKING:
    from hrvqvae.tokens.shards import Rows, Shards  # which need an extra to be imported

_NAME = "shards"


def maps_of_shards(
    folder: Path, path: Path, model: Autoencoder, config: Config, say: Callable[[str], None] = print
) -> CodeMaps:
    """The code maps of shards; laid out in a folder first, unless they lie there.

    Args:
        folder: of the run's codes; made if it does not exist.
        path: a folder of shards, or one.
        model: whose codes they have to be.
        config: of the run; its images' size says which grids the codes have, `data.labels` whether classes are taken.
        say: is told who is waited for, where another process works in the folder.

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
    from hrvqvae.tokens.shards import open_shards

    shards = open_shards(path)
    digest = weights_digest(model.state_dict())
    if shards.about.model != digest:
        raise InputError(
            f"{path} holds codes of another model ({shards.about.model[:12]}) than this run's ({digest[:12]})"
        )
    stats = [(one.name, one.stat()) for one in shards.paths]
    source = {
        "model": digest, "labels": config.data.labels,
        "shards": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }  # fmt: skip
    if read_maps(folder, _NAME, source, config.model.num_symbols) is None:
        try:
            remove_temporaries(folder)
            (folder / f"{_NAME}.json").unlink(missing_ok=True)
            _lay_out(folder, shards, config, source)
        except OSError as error:
            raise InputError(f"the codes can't be written to {folder} ({error.strerror or error})") from error
    return source


def _lay_out(folder: Path, shards: Shards, config: Config, source: dict[str, Any]) -> None:
    symbols, size = config.model.num_symbols, config.data.size
    grids = config.model.latent_grids(size, size)
    kinds = [np.min_scalar_type(number - 1) for number in symbols]
    labels = _Labels(shards, config.data.labels)
    with ExitStack() as stack:
        advance = stack.enter_context(task("lay codes out", shards.count))
        streams = []
        for level, (grid, kind) in enumerate(zip(grids, kinds, strict=True), start=1):
            temporary = stack.enter_context(writing(folder / f"{_NAME}-level-{level}.npy"))
            streams.append(stack.enter_context(temporary.open("xb")))
            header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (shards.count, *grid)}
            np.lib.format.write_array_header_1_0(streams[-1], header)
        for rows in shards.rows(len(symbols)):
            for level, stream in enumerate(streams):
                codes = _checked(rows, level, grids[level], symbols[level], size)
                stream.write(codes.astype(kinds[level]).tobytes())
            labels.add(rows)
            advance(len(rows))
        numbers, classes = labels.found()
    write_atomic(folder / f"{_NAME}-labels.npy", array_bytes(numbers))
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
        wrong = int(codes.max()) if int(codes.max()) >= symbols else int(codes.min())
        raise InputError(f"level {level + 1} has the code {wrong}; this model has codes 0 to {symbols - 1} there")
    return codes


class _Labels:
    """Labels of all images, as numbers of classes."""

    def __init__(self, shards: Shards, wanted: bool) -> None:
        self.named, self.wanted = shards.classes, wanted
        self._parts: list[NDArray[np.int64]] = []
        self._known: dict[str | int, int] = {}
        self._without = 0

    def add(self, rows: Rows) -> None:
        """The labels of some images."""
        labels = rows.labels if self.wanted else [None] * len(rows)
        self._without += sum(label is None for label in labels)
        numbers = [-1 if label is None else self._known.setdefault(label, len(self._known)) for label in labels]
        self._parts.append(np.array(numbers, np.int64))

    def found(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """(N,) numbers of classes, zeros where there are none, and the names."""
        numbers = np.concatenate(self._parts) if self._parts else np.zeros(0, np.int64)
        if self._without == len(numbers):
            return np.zeros_like(numbers), ()
        if self._without:
            raise InputError(f"{self._without:,} of {len(numbers):,} images have no label; label all of them, or none")
        classes = self._classes()
        place = {name: number for number, name in enumerate(classes)}
        order = np.array([place[str(label)] for label in self._known], np.int64)
        return order[numbers], classes

    def _classes(self) -> tuple[str, ...]:
        """Names in the order that the shards say; else in their own order, and numbers as names from 0 on."""
        if self.named and {str(label) for label in self._known} <= set(self.named):
            return self.named
        whole = [label for label in self._known if isinstance(label, int)]
        if len(whole) == len(self._known) and min(whole) >= 0:
            return tuple(map(str, range(max(whole) + 1)))
        return tuple(sorted({str(label) for label in self._known}))
