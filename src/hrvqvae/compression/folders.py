"""Image files to files of codes and archives, and back to PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hrvqvae.checkpoints.codemaps import flat_codes
from hrvqvae.checkpoints.folder import shipped
from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.compression import archive
from hrvqvae.compression import images as compression
from hrvqvae.compression.stream import Codec, Picture, read, read_header
from hrvqvae.data.images import SUFFIXES, conversions, decode_image
from hrvqvae.plots import sheets
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.files import write_atomic
from hrvqvae.utils.progress import note, tracked
from hrvqvae.utils.quantities import counted

SUFFIX = ".hrv"
_TOGETHER = 1024  # images that are read, coded and written before the next are; a block of an archive


@dataclass
class Written:
    """What was written of image files.

    Attributes:
        images: how many.
        bytes: of all their files, or of what the archive grew by.
        pixels: bytes of the same images as plain pixels.
    """

    images: int = 0
    bytes: int = 0
    pixels: int = 0
    lost: dict[Path, str] = field(default_factory=dict)


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Image files by the name that their codes get; of folders, all images below them.

    Raises:
        InputError: a folder has no image, or two images would get the same name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        below = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not below:
            raise InputError(f"{path} has no PNG, JPEG or WebP image")
        for one in below:
            name = (one.relative_to(path) if path.is_dir() else Path(one.name)).with_suffix("").as_posix()
            if found.setdefault(name, one) != one:
                raise InputError(f"{found[name]} and {one} would both be named {name}; compress them apart")
    return found


def _read(model: TrainedModel, some: dict[str, Path], written: Written) -> list[Tensor]:
    images = []
    for path in some.values():
        pixels, written.lost[path] = decode_image(path, model.autoencoder.channels, model.config.data.max_pixels)
        images.append(torch.from_numpy(pixels))
        written.pixels += pixels.size
    written.images += len(images)
    return images


def _chunks(named: dict[str, Path]) -> Iterator[dict[str, Path]]:
    pairs = list(named.items())
    for start in range(0, len(pairs), _TOGETHER):
        yield dict(pairs[start : start + _TOGETHER])


def compress_files(
    model: TrainedModel, paths: Sequence[Path], out: Path, levels: int | None = None, max_bytes: int | None = None,
    lmbda: float | None = None, *, say: Callable[[str], None] = note,
) -> Written:  # fmt: skip
    """Write the codes of image files.

    Args:
        paths: image files, and folders of them.
        out: X.hrv for one image; X.hrva, an archive, to which they are appended; else a folder, which gets a file for
            each image.
        levels: how many levels to write; None writes all.
        max_bytes: of a file, as for `TrainedModel.compress`.
        lmbda: as for `TrainedModel.compress`.
        say: is told what was lost when images were converted to the channels of the model.

    Raises:
        InputError: an image can't be read, levels are out of range, an image does not fit, or `out` can't be written.
    """
    named, written = _named(paths), Written()
    if out.suffix == archive.SUFFIX:
        if max_bytes is not None:
            raise InputError("all images of an archive have the same levels: say how many instead of how many bytes")
        encode = model.encoder(lmbda, levels)
        _append(model, named, out, compression.check_levels(model.autoencoder, levels), encode, written)
    else:
        if out.suffix == SUFFIX and len(named) != 1:
            raise InputError(f"{out} takes one image, and there are {len(named)}; name a folder or an archive (.hrva)")
        for some in tracked(_chunks(named), "compress", len(named), len):
            images = _read(model, some, written)
            files = model.compress(images, levels, max_bytes, lmbda, [str(path) for path in some.values()])
            for name, content in zip(some, files, strict=True):
                _write(out if out.suffix == SUFFIX else out / f"{name}{SUFFIX}", content)
                written.bytes += len(content)
    if converted := conversions(written.lost, written.images):
        say(converted)
    return written


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror or error})") from error


def _append(
    model: TrainedModel, named: dict[str, Path], out: Path, levels: int, encode: Callable[[Tensor], Codes],
    written: Written,
) -> None:  # fmt: skip
    for name, path in named.items():
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise InputError(f"{str(path)!r} has a name that is not UTF-8; rename it, or write files (.hrv) instead")
    before = out.stat().st_size if out.exists() else 0
    with archive.appending(out, model.codec) as append:
        for some in tracked(_chunks(named), "compress", len(named), len):
            images = _read(model, some, written)
            encoded = (encode(image[None].to(model.device)) for image in images)
            codes = [row for one in encoded for row in flat_codes(one)]
            append(codes, [(image.shape[-2], image.shape[-1]) for image in images], list(some), levels)
    written.bytes = out.stat().st_size - before


def model_for(path: Path, run: str | None) -> TrainedModel:
    """The model that is named, or else that one inside the package by which a file was made.

    Raises:
        InputError: there is no such model; or none is named, and the file is of none inside the package.
    """
    if run is not None:
        return TrainedModel(run)
    if path.suffix == archive.SUFFIX:
        opened = archive.open_archive(path).codec
        wanted, whose = bytes.fromhex(opened.model), f"{opened.name} (weights {opened.model[:12]})"
        damaged = ""  # its checksum is right
    else:
        header = read_header(_content(path), str(path))
        wanted, whose = header.fingerprint, f"a model whose fingerprint is {header.fingerprint.hex()}"
        damaged = "; or the file is damaged"
    for name in shipped():
        model = TrainedModel(name)
        known = {bytes.fromhex(model.codec.model), *(model.codec.fingerprint(one) for one in (False, True))}
        if wanted in known:
            return model
    raise InputError(f"{path} was made by {whose}, which is none inside the package: name it with --model RUN{damaged}")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error


def read_files(codec: Codec, paths: Sequence[Path], levels: int | None = None) -> list[Picture]:
    """The codes of files of codes. Raises InputError as `codec.stream.read`."""
    return read(codec, [_content(path) for path in paths], levels, [str(path) for path in paths])


def decompress_files(
    model: TrainedModel, paths: Sequence[Path], out: Path, levels: int | None = None, names: Sequence[str] = (),
    *, say: Callable[[str], None] = note,
) -> int:  # fmt: skip
    """Write the images of files of codes and archives as PNG; -> how many.

    Args:
        paths: X.hrv and X.hrva.
        out: Y.png for one image, else a folder.
        levels: how many levels to use, as far as they are there; None uses all.
        names: of the images of archives that are wanted; none names all.
        say: is told which files are cut short or damaged.

    Raises:
        InputError: a file of another model, no such name, or `out` can't be written.
        DamagedFileError: a file has no whole level.
    """
    if levels is not None:
        compression.check_levels(model.autoencoder, levels)
    count = 0
    written = set[Path]()
    total = sum(_images_of(path, names) for path in paths)
    chunks = _chunks_of(model, paths, levels, names, say)
    for path, some, pictures in tracked(chunks, "decompress", total, lambda chunk: len(chunk[1])):
        if out.suffix.lower() == ".png" and len(paths) * len(some) != 1:
            raise InputError(f"{out} takes one image; name a folder")
        images = compression.paint(model.autoencoder, pictures, model.device, levels, [str(path)] * len(some))
        for name, image in zip(some, images, strict=True):
            target = out if out.suffix.lower() == ".png" else out / f"{name}.png"
            if target in written:
                raise InputError(f"two images are named {name}: {target} is written already; use another folder")
            written.add(target)
            if target != out:
                target.parent.mkdir(parents=True, exist_ok=True)
            sheets.save(sheets.to_pil(image), target)
            count += 1
    return count


def _images_of(path: Path, names: Sequence[str]) -> int:
    """How many images of a file are wanted."""
    return len(names) or len(archive.open_archive(path).entries) if path.suffix == archive.SUFFIX else 1


def _chunks_of(
    model: TrainedModel, paths: Sequence[Path], levels: int | None, names: Sequence[str], say: Callable[[str], None]
) -> Iterator[tuple[Path, list[str], list[Picture]]]:
    """File, names and codes of the images of files of codes and archives, some at a time."""
    for path in paths:
        if path.suffix == archive.SUFFIX:
            for some, pictures in _archived(model, path, levels, names, say):
                yield path, some, pictures
            continue
        pictures = read_files(model.codec, [path], levels)
        if pictures[0].fault:
            say(f"{path}: {pictures[0].fault}; decoded from {counted(len(pictures[0].codes), 'whole level')}")
        yield path, [path.stem], pictures


def _archived(
    model: TrainedModel, path: Path, levels: int | None, names: Sequence[str], say: Callable[[str], None]
) -> Iterator[tuple[list[str], list[Picture]]]:
    """Names and codes of the images of an archive, some at a time."""
    opened = archive.open_archive(path)
    if opened.codec.model != model.codec.model:
        raise InputError(
            f"{path} was made by {opened.codec.name} (weights {opened.codec.model[:12]}), not by {model.codec.name} "
            f"({model.codec.model[:12]})"
        )
    if opened.left_over:
        say(f"{path} ends with {counted(opened.left_over, 'byte')} of no whole block; what is before is used")
    numbers = opened.numbers(names) if names else list(range(len(opened.entries)))
    for start in range(0, len(numbers), _TOGETHER):
        some = numbers[start : start + _TOGETHER]
        yield [_safe(opened, number) for number in some], opened.read(some, levels)


def _safe(opened: archive.Archive, number: int) -> str:
    """A name under which an image may be written: below the folder that is asked for, and nowhere else."""
    name = opened.entries[number].name or f"{number:06d}"
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise DamagedFileError(f"{opened.path}: image {number} has a name that leads out of a folder: {name!r}")
    return name


def sheet_of_levels(model: TrainedModel, picture: Picture) -> list[sheets.SheetRow]:
    """A row of pictures: one image by each prefix of its levels that the model decodes."""
    prefixes = [one for one in model.autoencoder.prefixes if one <= len(picture.codes)]
    images = [compression.paint(model.autoencoder, [picture], model.device, one)[0] for one in prefixes]
    sums = np.cumsum(picture.lengths) + picture.header
    captions = [
        f"levels 1-{one}: {sums[one - 1]} bytes" if one > 1 else f"level 1: {sums[0]} bytes" for one in prefixes
    ]
    return [sheets.SheetRow(caption, [image]) for caption, image in zip(captions, images, strict=True)]
