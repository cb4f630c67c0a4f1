"""Shards of codes back to PNG files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from hrvqvae.checkpoints.folder import shipped
from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.checkpoints.storage import weights_digest
from hrvqvae.compression import images as compression
from hrvqvae.data.batches import same_size
from hrvqvae.data.images import SUFFIXES, check_writable, to_pil, write_image
from hrvqvae.models.base import Autoencoder
from hrvqvae.tokens.shards import Rows, Shards, named_shards
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.files import writable
from hrvqvae.utils.progress import task

_PIXELS = 1 << 18  # of the images that are decoded together


def detokenize(
    shards: Path, out: Path, *, model: str | None = None, levels: int | None = None, device: str = "cpu",
    force: bool = False,
) -> int:  # fmt: skip
    """Write the image of each row of shards as PNG; -> how many.

    Args:
        shards: a folder of shards, or one.
        out: a folder, which gets each image at the path that is its key; its suffix becomes .png, or .png is appended
            where two keys differ by that alone.
        model: by which they were made; None finds it inside the package.
        levels: how many levels to use, coarse first; None uses all.
        force: write over files that are there.

    Raises:
        InputError: shards of another model, levels out of range, two images with one name, or a file that is there or
            can't be written.
        DamagedFileError: a shard is damaged, or a key leads out of the folder.
    """
    opened = named_shards(shards)
    painter = _model_of(opened, shards, model, device)
    used = compression.check_levels(painter, levels)
    written = set[PurePosixPath]()
    with task("detokenize", opened.count) as advance:
        for rows in opened.rows(used):
            names = list[PurePosixPath]()
            for key in rows.keys:
                names.append(_name(key, shards, written))
                written.add(names[-1])
                if (out / names[-1]).exists():
                    check_writable(out / names[-1], force)
            for place, image in _painted(painter, rows, used, str(shards)):
                path = out / names[place]
                with writable(path, "; give another folder"):
                    path.parent.mkdir(parents=True, exist_ok=True)
                write_image(to_pil(image), path, force=force, optimize=False)
                advance(1)
    return len(written)


def _model_of(opened: Shards, path: Path, named: str | None, device: str) -> Autoencoder:
    """The model that is named, or the one inside the package, by which the shards were made."""
    wanted = opened.model
    for name in [named] if named is not None else shipped():
        model, _ = load_with_config(name, device)
        found = weights_digest(model.state_dict())
        if found == wanted:
            return model
        if named is not None:
            raise InputError(f"{path} was made by another model ({wanted[:12]}) than {named} ({found[:12]})")
    raise InputError(f"{path} was made by no model inside the package ({wanted[:12]}): name it with --model RUN")


@torch.inference_mode()
def _painted(model: Autoencoder, rows: Rows, levels: int, whose: str) -> Iterator[tuple[int, Tensor]]:
    """(place, image (C, Y, X)) of every row; those of one size and grid go through the network together."""
    device = next(model.parameters()).device
    sizes = [(*size, *grids) for size, *grids in zip(rows.sizes, *rows.grids, strict=True)]
    for some in same_size(sizes, _PIXELS):
        size, grids = rows.sizes[some[0]], [level[some[0]] for level in rows.grids]
        codes = tuple(
            torch.from_numpy(np.stack([rows.codes[level][place] for place in some]).astype(np.int64))
            .reshape(len(some), *grids[level])
            .to(device)
            for level in range(levels)
        )
        try:
            images = model.decode(codes, levels, size).cpu()
        except InputError as error:
            raise DamagedFileError(f"{whose}: the codes of {rows.keys[some[0]]} fit no image ({error})") from error
        yield from zip(some, images, strict=True)


def _name(key: str, shards: Path, written: set[PurePosixPath]) -> PurePosixPath:
    """The path of an image below the output folder. Raises where it leads out of it, or is another's."""
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts or not path.name or "\\" in key or "\0" in key:
        raise DamagedFileError(f"{shards} has a key that leads out of a folder: {key!r}")
    appended = path.with_name(f"{path.name}.png")
    name = path.with_suffix(".png") if path.suffix.lower() in SUFFIXES else appended
    name = appended if name in written else name  # a.png beside a.jpg
    if name in written:
        raise InputError(f"two images of {shards} would both be {name}; detokenize their shards apart")
    return name
