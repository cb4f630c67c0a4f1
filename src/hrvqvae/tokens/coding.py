"""From images to the rows of a shard: decoded by workers while the model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from hrvqvae import __version__
from hrvqvae.checkpoints.export import without_paths
from hrvqvae.checkpoints.folder import shipped
from hrvqvae.checkpoints.loading import described_config, load_with_config
from hrvqvae.checkpoints.storage import weights_digest
from hrvqvae.config import Grid, to_dict
from hrvqvae.data.batches import in_workers, same_size
from hrvqvae.data.images import decode
from hrvqvae.tokens.images import KeyedImages
from hrvqvae.tokens.shards import ROWS, About, Rows, ShardWriter, kinds_of, new_shard, schema
from hrvqvae.utils.errors import InputError

_READ, _READ_PIXELS = 256, 1 << 20  # most images, and most of their pixels, that a worker decodes at once
_READ_OWN = 8  # the same, of images whose sizes are not known
_PIXELS = {"cpu": 1 << 14, "cuda": 1 << 22}  # that the model gets at once: on a CPU its activations stay in the cache


@dataclass(frozen=True)
class Unit:
    """What becomes one file: a shard, or what could be read later of its broken images.

    Attributes:
        name: of the file.
        places: of its images, in the order of the keys.
        if_any: write it only if an image of it can be read.
    """

    name: str
    places: Sequence[int]
    if_any: bool = False


@dataclass(frozen=True)
class Done:
    """A unit that is on the disk, or of which nothing could be read.

    Attributes:
        name: of its file.
        images: how many it holds.
        broken: (key, why) of the others.
        converted: how many of its images lost something, and what the first of these lost.
    """

    name: str
    images: int
    broken: tuple[tuple[str, str], ...]
    converted: tuple[int, str]


@dataclass(frozen=True)
class _Read:
    """Some images of a unit. Groups of one size: their places among these, and their pixels (B, C, Y, X)."""

    unit: int
    places: Sequence[int]
    groups: list[tuple[list[int], Tensor]]
    broken: list[tuple[int, str]]
    lost: list[str]


class Coder:
    """A model that turns images into codes.

    Attributes:
        name: by which other processes load it too.
        described: its configuration, as it lies beside the weights.
        digest: of its weights.
        symbols: of each level.
        beam: paths that the search keeps at each level; None keeps as many as in training.
    """

    def __init__(self, model: str, device: str = "cpu", beam: int | None = None) -> None:
        """Raises InputError as `load_with_config`."""
        self.name = model if model in shipped() and not Path(model).exists() else str(Path(model).absolute())
        self.model, self.config = load_with_config(model, device, beam)
        self.beam = beam
        self.described = to_dict(without_paths(described_config(model)))
        self.digest = weights_digest(self.model.state_dict())
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = next(self.model.parameters()).device
        self.symbols = self.config.model.num_symbols
        self._kinds = [kind.to_pandas_dtype() for kind in kinds_of(self.symbols)]

    @torch.inference_mode()
    def encode(self, images: Tensor) -> list[NDArray[Any]]:
        """(B, C, Y, X) uint8 -> (B, H_l, W_l) of each level, in the smallest type."""
        parts = []
        sizes = [(images.shape[-2], images.shape[-1])] * len(images)
        for some in same_size(sizes, _PIXELS.get(self.device.type, _PIXELS["cpu"])):
            codes = self.model.encode(images[some].to(self.device))
            parts.append([one.cpu().numpy().astype(kind) for one, kind in zip(codes, self._kinds, strict=True)])
        return [np.concatenate(level) for level in zip(*parts, strict=True)]


class _Reader(Dataset[_Read]):
    """Decodes images, some at a time."""

    def __init__(self, images: KeyedImages, channels: int, size: int | None, max_pixels: int) -> None:
        self.images, self.channels, self.size, self.max_pixels = images, channels, size, max_pixels

    def _decoded(self, place: int) -> tuple[NDArray[np.uint8], str]:
        row, source = int(self.images.rows[place]), self.images.source
        return decode(lambda: source.open(row), source.where(row), self.channels, self.max_pixels, self.size)

    def __getitem__(self, chosen: tuple[int, Sequence[int]]) -> _Read:
        unit, places = chosen
        by_size: dict[Grid, tuple[list[int], list[NDArray[np.uint8]]]] = {}
        broken, losses = list[tuple[int, str]](), list[str]()
        for number, place in enumerate(places):
            try:
                pixels, lost = self._decoded(place)
            except InputError as error:
                broken.append((place, str(error)))
                continue
            numbers, images = by_size.setdefault((pixels.shape[1], pixels.shape[2]), ([], []))
            numbers.append(number)
            images.append(pixels)
            if lost:
                losses.append(lost)
        groups = [(numbers, torch.from_numpy(np.stack(images))) for numbers, images in by_size.values()]
        return _Read(unit, places, groups, broken, losses)


class _Places(Sampler[tuple[int, Sequence[int]]]):
    """Places of images that are decoded at once: never those of two units."""

    def __init__(self, units: Sequence[Unit], at_once: int) -> None:
        self.units, self.at_once = units, at_once

    def __iter__(self) -> Iterator[tuple[int, Sequence[int]]]:
        for number, unit in enumerate(self.units):
            for start in range(0, len(unit.places), self.at_once):
                yield number, unit.places[start : start + self.at_once]


class _Buffer:
    """Rows that are not written yet."""

    def __init__(self, images: KeyedImages, levels: int) -> None:
        self.images, self.levels = images, levels
        self._rows: list[tuple[int, Grid, list[NDArray[Any]]]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, coder: Coder, read: _Read) -> None:
        """The images of one read, in their order."""
        found: dict[int, tuple[int, Grid, list[NDArray[Any]]]] = {}
        for numbers, images in read.groups:
            codes = coder.encode(images)
            size = (images.shape[-2], images.shape[-1])
            for place, number in enumerate(numbers):
                found[number] = (read.places[number], size, [level[place] for level in codes])
        self._rows += [found[number] for number in sorted(found)]

    def take(self, most: int) -> Rows:
        """The first rows."""
        some, self._rows = self._rows[:most], self._rows[most:]
        places = [place for place, _, _ in some]
        codes = [[one[level] for _, _, one in some] for level in range(self.levels)]
        return Rows(
            keys=self.images.keys.take(places).to_pylist(),
            labels=[self.images.label(place) for place in places],
            sizes=[size for _, size, _ in some],
            grids=[[(one.shape[0], one.shape[1]) for one in level] for level in codes],
            codes=[[one.ravel() for one in level] for level in codes],
        )


@dataclass(frozen=True)
class Tokenizer:
    """Writes the shards of a folder.

    Attributes:
        coder: the model.
        images: all of them.
        folder: that gets the shards.
        size: height and width that images are brought to; None keeps their own.
        classes: names of the labels, if they have names.
        workers: processes that decode.
    """

    coder: Coder
    images: KeyedImages
    folder: Path
    size: int | None
    classes: tuple[str, ...]
    workers: int

    def write(self, units: Sequence[Unit], advance: Callable[[int], None] = lambda number: None) -> Iterator[Done]:
        """Write these units, one after the other; -> what has become of each.

        Args:
            advance: is told how many images more are coded.

        Raises:
            OSError: the disk is full. What is written stays, and of the shard at hand nothing is left.
            InputError: a process that decodes was ended from outside.
        """
        config = self.coder.config.data
        at_once = _READ_OWN if self.size is None else max(1, min(_READ, _READ_PIXELS // self.size**2))
        reader = _Reader(self.images, config.channels, self.size, config.max_pixels)
        loader = in_workers(reader, _Places(units, at_once), self.workers)
        for number, reads in groupby(loader, key=lambda read: read.unit):
            yield self._write(units[number], reads, advance)

    def _write(self, unit: Unit, reads: Iterator[_Read], advance: Callable[[int], None]) -> Done:
        rows, count = _Buffer(self.images, len(self.coder.symbols)), 0
        broken, losses, first = list[tuple[str, str]](), 0, ""
        columns = schema(self.coder.symbols, self.images.label_type)
        with ExitStack() as stack:
            writer: ShardWriter | None = None

            def write(number: int) -> None:
                nonlocal writer, count
                writer = writer or stack.enter_context(new_shard(self.folder / unit.name, columns))
                if number:
                    writer.write(rows.take(number))
                    count += number

            for read in reads:
                rows.add(self.coder, read)
                broken += [(self.images.key(place), error) for place, error in read.broken]
                losses, first = losses + len(read.lost), first or next(iter(read.lost), "")
                advance(len(read.places))
                while len(rows) >= ROWS:
                    write(ROWS)
            if len(rows) or not (count or unit.if_any):
                write(len(rows))
            if writer is not None:
                writer.tell(self._about(() if unit.if_any else tuple(broken)))
        return Done(unit.name, count, tuple(broken), (losses, first))

    def _about(self, broken: tuple[tuple[str, str], ...]) -> About:
        return About(self.coder.digest, self.coder.described, self.size, self.classes, __version__, broken)
