"""Compress image files to files of codes (.hrv) or a zip of them, and decompress both to PNG."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from hrvqvae.compression import hrv, zips
from hrvqvae.compression.hrv import ImageCodes
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
from hrvqvae.model import Model, find_models
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.grouping import chunk_by_size
from hrvqvae.utils.outputs import Outputs, check_output, write_output
from hrvqvae.utils.progress import note, tracked
from hrvqvae.utils.quantities import counted

T = TypeVar("T")

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

    batches = _chunk(read_images(), lambda pair: pair[1][0].numel())
    return tracked(batches, "compress", len(images), len)


def _chunk(items: Iterable[T], count_pixels: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield batches within both limits."""
    least = _BATCH_PIXELS // _BATCH_IMAGES
    return chunk_by_size(items, lambda item: max(count_pixels(item), least), _BATCH_PIXELS)


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

    Into a folder, each batch is written as soon as it is encoded, and files that exist are skipped:
    a second call goes on where the first was stopped.

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
    outcome = CompressionOutcome({})
    with _open_output(images, paths, out, force) as (write, remaining):
        for batch in _read_batches(model, remaining, outcome, skip):
            places = [image.where for image, _ in batch]
            files = model.compress([pixels for _, pixels in batch], names=places, **options)
            for (image, _), content in zip(batch, files, strict=True):
                write(image.name, content)
                outcome.bytes += len(content)
        if remaining and not outcome.lost:
            raise InputError("no image could be read")
    note_conversions(outcome.lost)
    return outcome


@contextmanager
def _open_output(
    images: Sequence[_NamedImage], paths: Sequence[Path], out: Path, force: bool
) -> Iterator[tuple[zips.Write, Sequence[_NamedImage]]]:
    """Yield a function that writes the file of an image, and the images that have no file yet."""
    if zips.is_zip(out):
        check_output(out, force=force, inputs=paths)
        # as if the zip were a folder: names that differ and stay inside
        outputs = Outputs(out)
        targets = {image.name: outputs.reserve(image.name, hrv.SUFFIX) for image in images}
        with zips.create_zip(out) as write:
            yield (
                lambda name, content: write(targets[name].relative_to(out).as_posix(), content),
                images,
            )
        return

    is_single = out.suffix.lower() == hrv.SUFFIX
    suffixes = [hrv.SUFFIX, zips.SUFFIX]
    outputs = Outputs(out, suffixes, force=force or not is_single, inputs=paths)
    targets = {image.name: outputs.reserve(image.name, hrv.SUFFIX) for image in images}
    missing = [image for image in images if force or not targets[image.name].exists()]
    _note_skipped(len(images) - len(missing), out)
    yield lambda name, content: write_output(targets[name], content), missing


def _note_skipped(count: int, folder: Path) -> None:
    if count:
        existing = counted(count, "file")
        note(f"{folder} has {existing} already; they are kept (--force writes them anew)")


class _CodeFile(NamedTuple):
    place: str  # for messages
    name: str  # of its image
    content: bytes  # empty if it can't be read
    fault: str = ""  # why it can't be read, if there is more to say than that it is damaged


class _Job(NamedTuple):
    """What is known of a file before it is decoded."""

    maker: Model
    pixels: int
    target: Path


def _list_paths(paths: Iterable[Path]) -> list[tuple[Path, str]]:
    """Return the files of codes and zips at paths and in folders, each with the name that its image
    gets. Raises InputError if a folder has none.
    """
    files = []
    for path in dict.fromkeys(paths):
        if not path.is_dir():
            files.append((path, path.stem))
            continue
        names = sorted(find_files(path, (hrv.SUFFIX, zips.SUFFIX)))
        if not names:
            raise InputError(f"{path} has neither files of codes (.hrv) nor zips of them")
        files += [(path / name, name.rpartition(".")[0]) for name in names]
    return files


def _read_files(paths: Iterable[tuple[Path, str]]) -> Iterator[_CodeFile]:
    """Yield the files of codes at paths and in zips, one at a time."""
    for path, name in paths:
        try:
            if not zips.is_zip(path):
                yield _CodeFile(str(path), name, path.read_bytes())
                continue
            for entry, content in zips.read_zip(path):
                stem = entry[: -len(hrv.SUFFIX)] if zips.holds_codes(entry) else entry
                yield _CodeFile(f"{path}: {entry}", stem, content or b"")
        except InputError as error:  # a zip that can't be read
            yield _CodeFile(str(path), name, b"", str(error))
        except PermissionError as error:
            yield _CodeFile(str(path), name, b"", f"{path}: {error.strerror}")


def decompress_files(
    paths: Sequence[Path],
    out: Path,
    model: str | None = None,
    levels: int | None = None,
    *,
    force: bool = False,
) -> int:
    """Decompress files of codes to PNG, and return the number of images that were written.

    Each batch is written as soon as it is decoded. Images that exist in a folder are skipped.

    Args:
        paths: Files of codes, zips of them, or folders of both.
        out: Y.png for one image, else a folder.
        model: The run that made the files (default: the models inside the package).
        levels: Largest number of levels to use (default: all).

    Raises:
        InputError: Another model made a file, Y.png exists, or `out` can't be written.
        DamagedFileError: A file is damaged. Undamaged files and levels are decompressed
            first.
    """
    listed = _list_paths(paths)
    may_exist = force or out.suffix.lower() != ".png"
    outputs = Outputs(out, [".png"], force=may_exist, inputs=[path for path, _ in listed])

    # First find what can be read, and who made it, before anything is written. Then read all files
    # again, so that their contents need not stay in memory.
    faults = []
    headers = {}  # by the place of the file among those that are read: place, name, header
    for index, file in enumerate(_read_files(listed)):
        try:
            if not file.content:
                raise DamagedFileError(file.fault or f"{file.place} is damaged")
            headers[index] = file.place, file.name, hrv.read_header(file.content, file.place)
        except DamagedFileError as error:
            faults.append(str(error))
    marks = [(place, header.fingerprint) for place, _, header in headers.values()]
    makers, unknown = find_models(marks, model)
    faults += unknown
    jobs = {}
    num_skipped = 0
    for maker, (index, (_, name, header)) in zip(makers, headers.items(), strict=True):
        if maker:
            maker.autoencoder.check_levels(levels)
            target = outputs.reserve(name, ".png")
            if target.exists() and not force:
                num_skipped += 1
            else:
                jobs[index] = _Job(maker, math.prod(header.size), target)
    _note_skipped(num_skipped, out)

    count = 0
    files = enumerate(_read_files(listed))
    pairs = ((jobs[index], file) for index, file in files if index in jobs)
    chunks = _chunk(pairs, lambda pair: pair[0].pixels)
    images = (pair for chunk in chunks for pair in _decode_files(chunk, levels, faults))
    for target, image in tracked(images, "decompress", len(jobs), lambda _: 1):
        write_image(to_pil(image), target)
        count += 1
    for fault in faults[:-1]:
        note(fault)
    if faults:
        written = f"; {counted(count, 'image')} written" if count else ""
        raise DamagedFileError(f"{faults[-1]}{written}")
    return count


def _decode_files(
    pairs: Sequence[tuple[_Job, _CodeFile]], levels: int | None, faults: list[str]
) -> Iterator[tuple[Path, Tensor]]:
    """Yield each target with the image to write; append messages about damage to `faults`."""
    for maker in dict.fromkeys(job.maker for job, _ in pairs):
        made = [(job, file) for job, file in pairs if job.maker is maker]
        targets = []
        decodable = []
        all_codes = _read_codes(maker, [file for _, file in made], levels)
        for (job, file), codes in zip(made, all_codes, strict=True):
            num_whole = len(codes.codes)
            if num_whole < maker.autoencoder.prefixes[0]:  # the fewest levels that it decodes
                faults.append(f"{file.place}: {codes.fault or 'it ends too early'}")
                continue
            if codes.fault:
                levels_used = counted(num_whole, "whole level")
                faults.append(f"{file.place}: {codes.fault}; decoded from {levels_used}")
            targets.append(job.target)
            decodable.append(codes)
        images = decode_images(maker.autoencoder, decodable, maker.device, levels)
        yield from zip(targets, images, strict=True)


def _read_codes(model: Model, files: Sequence[_CodeFile], levels: int | None) -> list[ImageCodes]:
    """Return the codes of files; those of a file that is refused have only a fault."""
    contents = [file.content for file in files]
    places = [file.place for file in files]
    max_pixels = model.config.data.max_pixels
    try:
        return hrv.read(model.entropy_model, contents, levels, places, max_pixels)
    except InputError as error:
        if len(files) > 1:  # one of them is refused: read each alone to learn which
            return [codes for file in files for codes in _read_codes(model, [file], levels)]
        return [ImageCodes((0, 0), (), fault=str(error).removeprefix(f"{places[0]} "))]
