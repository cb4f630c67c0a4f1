"""Compress image files to files of codes (.hrv) or a zip of them, and decompress both to PNG."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrvqvae.compression import hrv, zips
from hrvqvae.compression.images import decode_images
from hrvqvae.data.datasets import is_stored
from hrvqvae.data.folders import FolderSource, Source, find_files
from hrvqvae.data.images import (
    OpenImage,
    decode_image,
    note_conversions,
    remove_image_suffix,
    to_pil,
    write_image,
)
from hrvqvae.data.loading import open_whole
from hrvqvae.model import Model, find_model
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.grouping import chunk_by_size
from hrvqvae.utils.outputs import Outputs, check_output, write_output
from hrvqvae.utils.progress import note, tracked
from hrvqvae.utils.quantities import counted

# Limits of a batch. Its files are written as soon as it is done, so that little is lost by Ctrl-C.
_BATCH_IMAGES = 16
_BATCH_PIXELS = 1 << 20


class _NamedImage(NamedTuple):
    name: str  # of its file of codes
    where: str  # for messages
    open: OpenImage


@dataclass
class CompressionOutcome:
    """The outcome of `compress_images`."""

    # of each image that was read, by its place: what conversion to the model's channels lost, or ""
    lost: dict[str, str]
    bytes: int = 0  # total size of the files
    pixels: int = 0  # size of the uncompressed images in bytes


def check_exist(paths: Iterable[Path]) -> None:
    """Raise InputError if there is no file or folder of one of the paths."""
    for path in paths:
        if not (path.exists() or is_stored(str(path))):
            raise InputError(f"{path}: there is no such file")


def _find_images(paths: Sequence[Path]) -> list[_NamedImage]:
    """Return all images of files and folders, and of Parquet, tar and Arrow files.

    Names keep their endings where they would be equal without: 0.jpg and 0.png. Raises InputError
    if two images have the same name even so.
    """
    images = []
    seen = set[str]()
    for path in paths:
        source: Source = FolderSource(path.parent, [path.name])
        if path.is_dir() or is_stored(str(path)):
            source = open_whole(path)
        for row in range(len(source)):
            where = source.where(row)
            if where in seen:  # a file that is given twice counts once
                continue
            seen.add(where)
            images.append(_NamedImage(source.name(row), where, partial(source.open, row)))

    counts = Counter(remove_image_suffix(image.name) for image in images)
    by_name = dict[str, _NamedImage]()
    for image in images:
        stem = remove_image_suffix(image.name)
        name = stem if counts[stem] == 1 else image.name
        earlier = by_name.setdefault(name, image._replace(name=name))
        if earlier.open is not image.open:  # another image has this name
            raise InputError(
                f"{earlier.where} and {image.where} would both be named {name}; compress them apart"
            )
    return list(by_name.values())


def _read_batches(
    model: Model, images: Sequence[_NamedImage], outcome: CompressionOutcome, skip: bool
) -> Iterator[list[tuple[_NamedImage, Tensor]]]:
    """Yield batches of images within both limits. With `skip`, images that can't be read are left
    out with a notice.
    """
    channels = model.autoencoder.channels
    max_pixels = model.config.data.max_pixels

    def read_images() -> Iterator[tuple[_NamedImage, Tensor]]:
        for image in images:
            try:
                pixels, lost = decode_image(image.open, channels, max_pixels, name=image.where)
            except InputError as error:  # broken, or there is no such file
                if not skip:
                    advice = "leave such images out with --on-error skip"
                    raise InputError(f"{error}; {advice}") from error
                note(f"{error}; left out")
            else:
                outcome.lost[image.where] = lost
                outcome.pixels += pixels.size
                yield image, torch.from_numpy(pixels)

    least = _BATCH_PIXELS // _BATCH_IMAGES
    batches = chunk_by_size(
        read_images(), lambda pair: max(pair[1][0].numel(), least), _BATCH_PIXELS
    )
    return tracked(batches, "compress", len(images), len)


def compress_images(
    model: Model,
    paths: Sequence[Path],
    out: Path,
    *,
    force: bool = False,
    skip: bool = False,
    **options: Any,
) -> CompressionOutcome:
    """Compress image files. Report images that lost something by conversion.

    Each batch is written as soon as it is encoded, and files that exist are skipped: a second call
    goes on where the first was stopped. The files of X.zip are written to the folder X.zip.parts
    until all of them are done.

    Args:
        paths: Image files and folders, and Parquet, tar and Arrow files.
        out: X.hrv for one image; X.zip; otherwise a folder, for one file per image.
        force: Replace files that exist.
        skip: Leave out images that can't be read, with a notice per image.
        options: levels, max_bytes and effort, as for `Model.compress`.

    Raises InputError as `Model.compress` does, or if an image can't be read, X.hrv or X.zip exists,
    or `out` can't be written.
    """
    model.autoencoder.check_levels(options.get("levels"))
    images = _find_images(paths)
    if zips.is_zip(out):
        check_output(out, force=force, inputs=paths)
        folder = out.with_name(f"{out.name}.parts")
        outputs = Outputs(folder, force=True)
    else:
        folder = out
        may_exist = force or out.suffix.lower() != hrv.SUFFIX
        outputs = Outputs(out, [hrv.SUFFIX, zips.SUFFIX], force=may_exist, inputs=paths)
    targets = {image.name: outputs.reserve(image.name, hrv.SUFFIX) for image in images}
    missing = [image for image in images if force or not targets[image.name].exists()]
    _note_skipped(len(images) - len(missing), folder)

    outcome = CompressionOutcome({})
    for batch in _read_batches(model, missing, outcome, skip):
        places = [image.where for image, _ in batch]
        files = model.compress([pixels for _, pixels in batch], names=places, **options)
        for (image, _), content in zip(batch, files, strict=True):
            write_output(targets[image.name], content)
            outcome.bytes += len(content)
    if missing and not outcome.lost:
        raise InputError("no image could be read")

    if zips.is_zip(out):
        written = [path for path in targets.values() if path.exists()]
        names = (path.relative_to(folder).as_posix() for path in written)
        zips.write_zip(out, zip(names, map(Path.read_bytes, written), strict=True))
        shutil.rmtree(folder)
    note_conversions(outcome.lost)
    return outcome


def _note_skipped(count: int, folder: Path) -> None:
    if count:
        existing = counted(count, "file")
        note(f"{folder} has {existing} already; they are kept (--force writes them anew)")


class _CodeFile(NamedTuple):
    place: str  # for messages
    name: str  # of its image
    read: Callable[[], bytes]


def _list_files(paths: Iterable[Path], faults: list[str]) -> list[_CodeFile]:
    """Return the files of codes at paths, in folders and in zips. Zips that can't be read are added
    to `faults`. Raises InputError if a folder has neither files nor zips.
    """
    listed = []
    for path in dict.fromkeys(paths):
        if not path.is_dir():
            listed.append((path, path.name))
            continue
        names = sorted(find_files(path, (hrv.SUFFIX, zips.SUFFIX)))
        if not names:
            raise InputError(f"{path} has neither files of codes (.hrv) nor zips of them")
        listed += [(path / name, name) for name in names]

    files = []
    for path, name in listed:
        if not zips.is_zip(path):
            files.append(_CodeFile(str(path), _remove_suffix(name), path.read_bytes))
            continue
        try:
            entries = zips.open_zip(path)
        except DamagedFileError as error:
            faults.append(str(error))
            continue
        for entry, read in entries:
            files.append(_CodeFile(f"{path}: {entry}", _remove_suffix(entry), read))
    return files


def _remove_suffix(name: str) -> str:
    return name.rpartition(".")[0] or name


def decompress_files(
    paths: Sequence[Path],
    out: Path,
    model: str | None = None,
    levels: int | None = None,
    *,
    force: bool = False,
) -> int:
    """Decompress files of codes to PNG, and return the number of images that were written.

    Each image is written as soon as it is decoded. Images that exist in a folder are skipped.

    Args:
        paths: Files of codes, zips of them, or folders of both.
        out: Y.png for one image, else a folder.
        model: The run that made the files (default: the models inside the package).
        levels: Largest number of levels to use (default: all).

    Raises:
        InputError: The levels are out of range, Y.png exists, or `out` can't be written.
        DamagedFileError: A file is damaged, or another model made it. Undamaged files and levels
            are decompressed all the same.
    """
    faults = list[str]()
    files = _list_files(paths, faults)
    may_exist = force or out.suffix.lower() != ".png"
    outputs = Outputs(out, [".png"], force=may_exist, inputs=paths)
    targets = [outputs.reserve(file.name, ".png") for file in files]
    pairs = zip(files, targets, strict=True)
    missing = [(file, target) for file, target in pairs if force or not target.exists()]
    _note_skipped(len(files) - len(missing), out)

    # each model of the package is loaded once
    find_maker: Callable[[bytes], Model | None] = cache(find_model)
    if model is not None:
        maker = Model(model)
        find_maker = cache(lambda _: maker)

    count = 0
    for file, target in tracked(missing, "decompress", len(missing), lambda _: 1):
        try:
            image, fault = _decode_file(file, find_maker, levels)
        except DamagedFileError as error:
            faults.append(str(error))
            continue
        write_image(to_pil(image), target)
        count += 1
        if fault:
            faults.append(fault)
    for fault in faults[:-1]:
        note(fault)
    if faults:
        written = f"; {counted(count, 'image')} written" if count else ""
        raise DamagedFileError(f"{faults[-1]}{written}")
    return count


def _decode_file(
    file: _CodeFile, find_maker: Callable[[bytes], Model | None], levels: int | None
) -> tuple[Tensor, str]:
    """Return the image of a file, and what is wrong with finer levels. Raises DamagedFileError if
    it has no whole level or its model is unknown.
    """
    content = file.read()
    fingerprint = hrv.read_header(content, file.place).fingerprint
    maker = find_maker(fingerprint)
    if maker is None:
        raise DamagedFileError(
            f"{file.place} was made by a model whose fingerprint is {fingerprint.hex()} (or the"
            " file is damaged), which is not inside the package: name it with --model RUN"
        )
    max_pixels = maker.config.data.max_pixels
    (codes,) = hrv.read(maker.entropy_model, [content], levels, [file.place], max_pixels)
    (image,) = decode_images(maker.autoencoder, [codes], maker.device, levels, [file.place])
    if not codes.fault:
        return image, ""
    levels_used = counted(len(codes.codes), "whole level")
    return image, f"{file.place}: {codes.fault}; decoded from {levels_used}"
