"""Image files to files of codes and archives, and back to PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from torch import Tensor

from hrvqvae.compression import archive, hrv
from hrvqvae.compression.archive import Archive
from hrvqvae.compression.hrv import ImageCodes
from hrvqvae.compression.images import decode_images, flat_codes
from hrvqvae.data.image_sets import runs
from hrvqvae.data.images import SUFFIXES, BrokenImageError, Open, conversions, decode_image, to_pil, write_image
from hrvqvae.data.loading import is_stored, open_whole
from hrvqvae.data.sources.files import LISTS, FolderSource
from hrvqvae.model import Model
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.outputs import Outputs, check_output, output_suffix, write_output
from hrvqvae.utils.progress import note, tracked
from hrvqvae.utils.quantities import counted

_IMAGES, _PIXELS = 1024, 1 << 26  # that are read, coded and written before the next are; a block of an archive
T = TypeVar("T")


@dataclass
class Written:
    """What was written of image files: `bytes` of all their files, or that the archive grew by; `pixels`: plain bytes.

    `lost` says for each image what was lost when it was converted to the channels of the model.
    """

    lost: dict[str, str]
    bytes: int = 0
    pixels: int = 0


_Stored = tuple[str, Open]  # where an image lies, and what opens it


def _named(paths: Sequence[Path]) -> dict[str, _Stored]:
    """Images of files, folders, lists, tars, Parquet files and arrays by the name that their codes get.

    Raises InputError: there are none, or two of one name.
    """
    found: dict[str, _Stored] = {}
    for path in paths:
        kind = path.suffix.lower()
        many = path.is_dir() or kind in LISTS or (kind not in SUFFIXES and is_stored(path))
        source = open_whole(path) if many else FolderSource(path.parent, [path.name])
        for row in range(len(source)):
            name, where = source.name(row), source.where(row)
            name = str(PurePosixPath(name).with_suffix("")) if name.lower().endswith(SUFFIXES) else name
            other, _ = found.get(name, (where, None))
            if other != where or (name in found and not isinstance(source, FolderSource)):  # a file may be named twice
                raise InputError(f"{other} and {where} would both be named {name}; compress them apart")
            found[name] = where, partial(source.open, row)
    return found


def _together(items: Iterable[T], area: Callable[[T], int]) -> Iterator[list[T]]:
    """Images in order, as many at a time as are worked on together; `area` is the pixels of one."""
    return runs(items, lambda item: max(area(item), _PIXELS // _IMAGES), _PIXELS)


def _read(model: Model, named: dict[str, _Stored], written: Written, skip: bool) -> Iterator[list[tuple[str, Tensor]]]:
    """The images with their names, as many at a time as are worked on together; `skip` leaves out broken ones."""

    def read() -> Iterator[tuple[str, Tensor]]:
        for name, (where, opens) in named.items():
            try:
                pixels, lost = decode_image(opens, model.autoencoder.channels, model.config.data.max_pixels, name=where)
            except BrokenImageError as error:
                if not skip:
                    raise InputError(f"{error}; leave such images out with --on-error skip") from error
                note(f"{error}; left out")
                continue
            written.lost[where] = lost
            written.pixels += pixels.size
            yield name, torch.from_numpy(pixels)

    images = read()
    return tracked(_together(images, lambda one: math.prod(one[1].shape[1:])), "compress", len(named), len)


def compress_files(
    model: Model, paths: Sequence[Path], out: Path, levels: int | None = None, max_bytes: int | None = None,
    lmbda: float | None = None, also: Sequence[Model] = (), *, force: bool = False, skip: bool = False,
) -> Written:  # fmt: skip
    """Write the codes of image files; notices say what images lost by conversion, and what is there already.

    Args:
        paths: image files, folders and lists of them (.txt), tars, Parquet files and arrays.
        out: X.hrv for one image; X.hrva, an archive, to which those are appended that it has not yet; else a folder,
            which gets a file for each image.
        levels, max_bytes, lmbda: as for `Model.compress`.
        also: models that are tried as well, with `max_bytes`: each file is by the one that has the least error in it.
        force: write over other files (.hrv) that exist.
        skip: leave out images that can't be read, with a notice of each.

    Raises:
        InputError: an image, or with `skip` every image, can't be read, levels are out of range, an image does not fit,
            another file exists already, or `out` can't be written.
    """
    model.autoencoder.check_levels(levels)
    if also and max_bytes is None:
        raise InputError("several models are compared at one size of a file: give --bytes, or one model")
    for one in also:
        one.autoencoder.check_levels(levels)
        if one.autoencoder.channels != model.autoencoder.channels:
            raise InputError(f"{one.run} is for images of {counted(one.autoencoder.channels, 'channel')}: leave it out")
    named, written = _named(paths), Written({})
    if archive.is_archive(out):
        if max_bytes is not None:
            raise InputError("all images of an archive have the same levels: say how many instead of how many bytes")
        _append(model, named, out, levels, lmbda, written, skip)
    else:
        single = bool(output_suffix(out, [hrv.SUFFIX, ".hrva"]))
        if single and len(named) != 1:
            raise InputError(f"{out} takes one image, and there are {len(named)}; name a folder or an archive (.hrva)")
        outputs = Outputs(out, force=force, inputs=paths)
        if single:
            check_output(out, force=force, inputs=paths)
        targets = {name: out if single else outputs.reserve(name, hrv.SUFFIX) for name in named}
        for batch in _read(model, named, written, skip):
            sources = [named[name][0] for name, _ in batch]
            images = [image for _, image in batch]
            settings: dict[str, Any] = {"levels": levels, "max_bytes": max_bytes, "lmbda": lmbda, "names": sources}
            files = _least_error([model, *also], images, settings) if also else model.compress(images, **settings)
            for (name, _), content in zip(batch, files, strict=True):
                write_output(targets[name], content)
                written.bytes += len(content)
    if not written.lost:
        raise InputError("no image could be read")
    if converted := conversions(written.lost):
        note(converted)
    return written


def _least_error(models: Sequence[Model], images: Sequence[Tensor], settings: dict[str, Any]) -> list[bytes]:
    """The file of each image by the model that has the least squared error in it. Raises InputError where none fits."""
    found = [(math.inf, b"")] * len(images)
    for model in models:
        for number, file in enumerate(_fitting(model, images, settings)):
            if isinstance(file, bytes):
                error = float((model.decompress([file])[0] - images[number] / 255).square().mean())
                found[number] = min(found[number], (error, file))
            elif model is models[-1] and not found[number][1]:
                raise file
    return [file for _, file in found]


def _fitting(model: Model, images: Sequence[Tensor], settings: dict[str, Any]) -> list[bytes | InputError]:
    """The file of each image, or why it has none: all at once, or one by one where one has none."""
    try:
        return [*model.compress(images, **settings)]
    except InputError as error:
        if len(images) == 1:
            return [error]
        each = ({**settings, "names": [name]} for name in settings["names"])
        return [file for image, own in zip(images, each, strict=True) for file in _fitting(model, [image], own)]


def _append(
    model: Model, named: dict[str, _Stored], path: Path, levels: int | None, lmbda: float | None,
    written: Written, skip: bool,
) -> None:  # fmt: skip
    for name, (where, _) in named.items():
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise InputError(f"{where!r} has a name that is not UTF-8; rename it, or write files (.hrv) instead")
    encode, used, new = model.encoder(lmbda, levels), model.autoencoder.check_levels(levels), 0
    before, batches = path.stat().st_size if path.exists() else 0, _read(model, named, written, skip)
    first = next(batches, [])  # no archive is made of nothing
    if not first:
        return
    with archive.appending(path, model.entropy_model) as writer:
        if writer.set_aside:
            left = counted(writer.archive.left_over, "byte")
            before -= writer.archive.left_over
            note(f"{path} ended with {left} of no whole block: moved to {writer.set_aside}")
        for batch in chain([first], batches):
            codes = [flat_codes(encode(image[None].to(model.device)))[0] for _, image in batch]
            sizes = [(image.shape[-2], image.shape[-1]) for _, image in batch]
            new += writer.append(codes, sizes, [name for name, _ in batch], used)
    if new < len(written.lost):
        note(f"{path} had {len(written.lost) - new} of {counted(len(written.lost), 'image')} already")
    written.bytes = path.stat().st_size - before


@dataclass(frozen=True)
class _Job:
    """Images of one file of codes by their numbers, with the PNG that each gets; `archive` is None of an .hrv."""

    model: Model
    path: Path
    archive: Archive | None
    targets: dict[int, Path]


def decompress_files(
    models: Sequence[Model], paths: Sequence[Path], out: Path, levels: int | None = None,
    names: Sequence[str] = (), *, force: bool = False,
) -> int:  # fmt: skip
    """Write the images of files of codes and archives as PNG; -> how many. Notices say what is cut short or damaged.

    What is damaged is passed over: all other images are written before the error.

    Args:
        models: of each file.
        paths: X.hrv and X.hrva.
        out: Y.png for one image, else a folder.
        levels: how many levels to use, as far as they are there; None uses all.
        names: of the images of archives that are wanted; none names all.
        force: write over images that exist.

    Raises:
        InputError: a file of another model, no such name, an image exists already, or `out` can't be written.
        DamagedFileError: an image has no whole level, or an archive has damaged blocks.
    """
    for model in models:
        model.autoencoder.check_levels(levels)
    png = bool(output_suffix(out, [".png"]))
    if png:
        check_output(out, force=force)
    outputs = None if png else Outputs(out, force=force)
    jobs = [_job(*one, out, outputs, names) for one in zip(models, paths, strict=True)]
    faults, count = list[str](), 0
    total = sum(len(job.targets) for job in jobs)
    if png and total != 1:
        raise InputError(f"{out} takes one image, and there are {total}; name a folder")
    images = (pair for job in jobs for pair in _decoded(job, levels, faults))
    for target, image in tracked(images, "decompress", total, lambda _: 1):
        write_image(to_pil(image), target)
        count += 1
    for fault in faults[:-1]:
        note(fault)
    if faults:
        raise DamagedFileError(f"{faults[-1]}; {counted(count, 'image')} written" if count else faults[-1])
    return count


def _job(model: Model, path: Path, out: Path, outputs: Outputs | None, names: Sequence[str]) -> _Job:
    if not archive.is_archive(path):
        if names:
            raise InputError(f"{path} is no archive (.hrva), whose images have names; leave --names out")
        return _Job(model, path, None, {0: outputs.reserve(path.stem, ".png") if outputs else out})
    opened = archive.open_archive(path)
    if opened.entropy_model.model != model.entropy_model.model:
        raise InputError(
            f"{path} was made by {opened.entropy_model.name} (weights {opened.entropy_model.model[:12]}), not by "
            f"{model.entropy_model.name} ({model.entropy_model.model[:12]})"
        )
    targets = {}
    for number in opened.find(names) if names else range(len(opened.entries)):
        targets[number] = outputs.reserve(opened.names[number], ".png") if outputs else out
    return _Job(model, path, opened, targets)


def _decoded(job: _Job, levels: int | None, faults: list[str]) -> Iterator[tuple[Path, Tensor]]:
    """Each target with its image; what can't be decoded goes to `faults`."""
    opened, model, least = job.archive, job.model, job.model.autoencoder.prefixes[0]
    if opened and opened.damaged:
        faults.append(f"{job.path}: {counted(opened.damaged, 'byte')} are damaged, with the images in them")
    if opened and opened.left_over:
        note(f"{job.path} ends with {counted(opened.left_over, 'byte')} of no whole block")
    for some in _together(job.targets.items(), lambda one: math.prod(opened.entries[one[0]].size) if opened else 0):
        good = list[tuple[Path, ImageCodes]]()
        for (number, target), one in zip(some, _codes(job, [number for number, _ in some], levels), strict=True):
            name = f"{job.path}: image {opened.names[number]}" if opened else str(job.path)
            if len(one.codes) < least:
                faults.append(f"{name}: {one.fault or 'it ends too early'}")
                continue
            if one.fault:
                note(f"{name}: {one.fault}; decoded from {counted(len(one.codes), 'whole level')}")
            good.append((target, one))
        images = decode_images(model.autoencoder, [one for _, one in good], model.device, levels)
        yield from zip((target for target, _ in good), images, strict=True)


def _codes(job: _Job, numbers: list[int], levels: int | None) -> list[ImageCodes]:
    """Images of a file, as far as they can be read."""
    max_pixels = job.model.config.data.max_pixels
    if job.archive:
        return job.archive.read(numbers, levels, max_pixels)
    try:
        return hrv.read(job.model.entropy_model, [job.path.read_bytes()], levels, [str(job.path)], max_pixels)
    except DamagedFileError as error:
        return [ImageCodes((0, 0), (), fault=str(error).removeprefix(f"{job.path} "))]
