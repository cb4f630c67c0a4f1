"""Between a model and the files of its codes: which codec a run has, and images to files and back.

RUN/tables.hrvt are the integer models that predict its codes. They belong to the weights alone, so that they stay what
they are when a run is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.codemaps import extract, stored_or_extracted
from hrvqvae.checkpoints.folder import RunFolder, locate
from hrvqvae.checkpoints.loading import load_with_digest
from hrvqvae.checkpoints.stale import require_current
from hrvqvae.compression.fitting import files_of, fit
from hrvqvae.compression.geometry import geometry_of
from hrvqvae.compression.learning import learn_level
from hrvqvae.compression.network import Network
from hrvqvae.compression.stream import MOST_PIXELS, Codec, Picture, read
from hrvqvae.compression.tables import MOST_SYMBOLS, Tables, read_tables
from hrvqvae.config import Config
from hrvqvae.data.batches import same_size
from hrvqvae.models.base import Autoencoder, Encode
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.files import write_atomic
from hrvqvae.utils.quantities import counted

_PIXELS = 1 << 18  # of the images that a network gets at once


def codec_of(run: str | Path, model: Autoencoder, config: Config) -> Codec:
    """What turns codes of a run into files, with its tables where it has some.

    Raises:
        InputError: the tables are of other weights; the command that makes them anew is named.
        DamagedFileError: the tables are damaged.
    """
    weights = storage.weights_digest(model.state_dict())
    bare = Codec(str(run), weights, geometry_of(config.model.latent_grids), config.model.num_symbols)
    path = RunFolder(locate(run).parent).tables
    if not path.is_file():
        return bare
    tables = read_tables(path.read_bytes(), str(path))
    require_current(path, tables.model, weights, run)
    if (tables.geometry, tables.symbols) != (bare.geometry, bare.symbols):
        raise DamagedFileError(f"{path} is damaged: it has other grids or symbols than the model beside it")
    return Codec(bare.name, weights, bare.geometry, bare.symbols, tables)


def make_tables(
    run: str | Path, root: str | None = None, effort: float = 1.0, device: torch.device | None = None,
    say: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Learn the tables of a run from the codes of its training split, and write them beside its weights.

    Args:
        root: where the data is, if it has moved since training.
        effort: how long to learn; 1 is usual.
        say: is told the bits a code of each level that held-out images take.

    Raises:
        InputError: the run or its data is missing, or the tables can't be written.
    """
    model, config, digest = load_with_digest(run)
    config = config.with_root(root)
    folder = RunFolder(locate(run).parent)
    if folder.config.is_file():
        maps = stored_or_extracted(folder.codes, model, digest, config, "train", device, say)
    else:
        maps = extract(model, config, "train", device)
    weights = storage.weights_digest(model.state_dict())
    if folder.tables.is_file() and read_tables(folder.tables.read_bytes(), str(folder.tables)).model == weights:
        say(f"{folder.tables} is of these weights already; without it, files that were made by it can't be read")
        return folder.tables
    symbols = config.model.num_symbols
    networks = list[Network | None]()
    for level, values in enumerate(symbols):
        if values > MOST_SYMBOLS:
            say(f"level {level + 1} has {values} symbols, more than {MOST_SYMBOLS}: coded in log2 {values} bits a code")
            networks.append(None)
            continue
        network, bits = learn_level(maps.levels[: level + 1], symbols[: level + 1], effort)
        say(f"level {level + 1}: {bits:.3f} bits a code on held-out images, of {np.log2(values):.3f}")
        networks.append(network)
    geometry = geometry_of(config.model.latent_grids)
    tables = Tables(config.name, weights, geometry, symbols, tuple(networks))
    try:
        write_atomic(folder.tables, tables.content)
    except OSError as error:
        raise InputError(f"{folder.tables} can't be written ({error.strerror or error})") from error
    return folder.tables


def check_levels(model: Autoencoder, levels: int | None) -> int:
    """The number of levels that is asked for. Raises InputError where the model does not decode so many."""
    if levels is None:
        return model.prefixes[-1]
    if levels not in model.prefixes:
        known = ", ".join(map(str, model.prefixes))
        raise InputError(f"levels is {levels}; this model decodes {known}")
    return levels


@torch.inference_mode()
def compress(
    model: Autoencoder, codec: Codec, images: Tensor | Sequence[Tensor], device: torch.device,
    levels: int | None = None, max_bytes: int | None = None, encode: Encode | None = None,
    names: Sequence[str] | None = None,
) -> list[bytes]:  # fmt: skip
    """The file of each image; see `TrainedModel.compress`.

    Args:
        encode: gives the codes in place of the model. Where `max_bytes` is given, `fit` looks for them instead.
    """
    levels = check_levels(model, levels)
    encode = encode or model.encode
    if names is None:
        names = [f"image {number}" for number in range(1, len(images) + 1)]
    if len(names) != len(images):
        raise InputError(f"there are {counted(len(images), 'image')} and {counted(len(names), 'name')}; give one each")
    files: list[bytes] = [b""] * len(images)
    sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
    for numbers in same_size(sizes, _PIXELS):
        batch = torch.stack([images[number] for number in numbers]).to(device)
        if max_bytes is None:
            made = files_of(codec, encode(batch), batch, levels)
        else:
            made = fit(model, codec, batch, levels, max_bytes, [names[number] for number in numbers])
        for number, file in zip(numbers, made, strict=True):
            files[number] = file
    return files


def readable_levels(model: Autoencoder, picture: Picture, levels: int | None, name: str) -> int:
    """How many of a file's levels are decoded: those that are asked for, as far as they are there.

    Raises:
        DamagedFileError: the model decodes no prefix as short as what there is.
    """
    admitted = [one for one in model.prefixes if one <= min(levels or len(picture.codes), len(picture.codes))]
    if not admitted:
        raise DamagedFileError(
            f"{name} has {counted(len(picture.codes), 'whole level')}; this model decodes {model.prefixes[0]} or more "
            "together"
        )
    return admitted[-1]


@torch.inference_mode()
def decompress(
    model: Autoencoder, codec: Codec, files: Sequence[bytes], device: torch.device, levels: int | None = None,
    names: Sequence[str] | None = None, most_pixels: int = MOST_PIXELS,
) -> tuple[list[Tensor], list[Picture]]:  # fmt: skip
    """The image of each file, and what was read of it; see `TrainedModel.decompress`."""
    if levels is not None:
        check_levels(model, levels)
    pictures = read(codec, files, levels, names, most_pixels)
    return paint(model, pictures, device, levels, names), pictures


@torch.inference_mode()
def paint(
    model: Autoencoder, pictures: Sequence[Picture], device: torch.device, levels: int | None = None,
    names: Sequence[str] | None = None,
) -> list[Tensor]:  # fmt: skip
    """The image (C, Y, X) float32 in [0, 1] of each of these codes."""
    names = names or [f"file {number}" for number in range(1, len(pictures) + 1)]
    used = [readable_levels(model, one, levels, name) for one, name in zip(pictures, names, strict=True)]
    images: dict[int, Tensor] = {}
    for one in set(used):
        numbers = [number for number, levels_of in enumerate(used) if levels_of == one]
        for batch in same_size([pictures[number].size for number in numbers], _PIXELS):
            some = [numbers[place] for place in batch]
            codes = tuple(
                torch.from_numpy(np.stack([pictures[number].codes[level] for number in some]).astype(np.int64))
                for level in range(one)
            )
            decoded = model.decode(tuple(code.to(device) for code in codes), one, pictures[some[0]].size)
            images.update(zip(some, decoded.cpu(), strict=True))
    return [images[number] for number in range(len(pictures))]
