"""Compress image files to files of codes (.hrv) or archives (.hrva), and decompress both to PNG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hrvqvae.compression import archive, hrv
from hrvqvae.compression.archive import Archive
from hrvqvae.compression.hrv import ImageCodes
from hrvqvae.compression.images import decode_images, flat_codes
from hrvqvae.data import images as image_formats
from hrvqvae.data.batches import chunk_by_size
from hrvqvae.data.images import (
    BrokenImageError,
    OpenImage,
    decode_image,
    note_conversions,
    to_pil,
    write_image,
)
from hrvqvae.data.loading import is_shard_path, open_whole
from hrvqvae.data.sources.files import LIST_SUFFIXES, FolderSource, find_names
from hrvqvae.model import Model
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.outputs import Outputs, safe_name, write_output
from hrvqvae.utils.progress import note, tracked
from hrvqvae.utils.quantities import counted

# limits of a batch, which is one block of an archive
_BATCH_IMAGES = 1024
_BATCH_PIXELS = 1 << 26
# Per name of the output: the place of the image, for messages, and a function that opens the image.
_ImagesByName = dict[str, tuple[str, OpenImage]]


@dataclass
class CompressionOutcome:
    """The outcome of `compress_files`."""

    lost: dict[str, str]  # per image, by its place: what conversion to the model's channels lost
    bytes: int = 0  # total size of the files, or growth of the archive
    pixels: int = 0  # size of the uncompressed images in bytes


def _find_images(paths: Sequence[Path]) -> _ImagesByName:
    """Return all images of files, folders, lists, tars, Parquet files and arrays. Two images must
    not share a name.
    """
    images: _ImagesByName = {}
    for path in paths:
        suffix = path.suffix.lower()
        is_shards = suffix not in image_formats.SUFFIXES and is_shard_path(path)
        is_collection = path.is_dir() or suffix in LIST_SUFFIXES or is_shards
        source = (
            open_whole(path, labels=False)
            if is_collection
            else FolderSource(path.parent, [path.name])
        )
        if suffix in LIST_SUFFIXES and not Path(source.where(0)).is_file():
            raise InputError(
                f"{path} is read as a list of images, and {source.where(0)} in it is no file"
            )
        for row in range(len(source)):
            name = image_formats.remove_image_suffix(source.name(row))
            where = source.where(row)
            earlier, _ = images.get(name, (where, None))  # a file may be given twice, a tar may not
            if earlier != where or (name in images and not isinstance(source, FolderSource)):
                raise InputError(
                    f"{earlier} and {where} would both be named {name}; compress them apart"
                )
            images[name] = where, partial(source.open, row)
    return images


def _read_batches(
    model: Model, images: _ImagesByName, outcome: CompressionOutcome, skip: bool
) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield batches of (name, image) within both limits. With `skip`, broken images are left out
    with a notice.
    """
    channels = model.autoencoder.channels
    max_pixels = model.config.data.max_pixels

    def read_images() -> Iterator[tuple[str, Tensor]]:
        for name, (where, open_image) in images.items():
            try:
                pixels, lost = decode_image(open_image, channels, max_pixels, name=where)
            except BrokenImageError as error:
                if not skip:
                    again = " --force, which writes all files again" if outcome.bytes else ""
                    raise InputError(
                        f"{error}; leave such images out with --on-error skip{again}"
                    ) from error
                note(f"{error}; left out")
                continue
            outcome.lost[where] = lost
            outcome.pixels += pixels.size
            yield name, torch.from_numpy(pixels)

    size = lambda pair: max(math.prod(pair[1].shape[1:]), _BATCH_PIXELS // _BATCH_IMAGES)  # noqa: E731
    return tracked(chunk_by_size(read_images(), size, _BATCH_PIXELS), "compress", len(images), len)


def compress_files(
    model: Model,
    paths: Sequence[Path],
    out: Path,
    levels: int | None = None,
    max_bytes: int | None = None,
    lmbda: float | None = None,
    *,
    force: bool = False,
    skip: bool = False,
) -> CompressionOutcome:
    """Compress image files. Report images that lost something by conversion, or that the archive
    has already.

    Args:
        paths: Image files, folders and lists of them (.txt), tars, Parquet files and arrays.
        out: X.hrv for one image; X.hrva, an archive to append to; otherwise a folder, for one file
        per image. levels, max_bytes, lmbda: As for `Model.compress`.
        skip: Leave out images that can't be read, with a notice per image.

    Raises InputError as `Model.compress` does, or if an image can't be read, a file exists or `out`
    can't be written.
    """
    model.autoencoder.check_levels(levels)
    outputs = Outputs(out, [hrv.SUFFIX, archive.SUFFIX], force=force, inputs=paths)
    images = _find_images(paths)
    outcome = CompressionOutcome({})
    batches = _read_batches(model, images, outcome, skip)
    if archive.is_archive(out):
        if force:
            raise InputError(
                f"{out} is an archive, and images are appended to it: leave out --force"
            )
        if max_bytes is not None:
            raise InputError(
                "images of one call have the same levels in an archive: say how many instead of how"
                " many bytes"
            )
        _append(model, batches, out, levels, lmbda, outcome)
    else:
        targets = {name: outputs.reserve(name, hrv.SUFFIX) for name in images}
        for batch in batches:
            sources = [images[name][0] for name, _ in batch]
            files = model.compress([image for _, image in batch], levels, max_bytes, lmbda, sources)
            for (name, _), content in zip(batch, files, strict=True):
                write_output(targets[name], content)
                outcome.bytes += len(content)
    if not outcome.lost:
        raise InputError("no image could be read")
    note_conversions(outcome.lost)
    return outcome


def _append(
    model: Model,
    batches: Iterator[list[tuple[str, Tensor]]],
    path: Path,
    levels: int | None,
    lmbda: float | None,
    outcome: CompressionOutcome,
) -> None:
    encode = model.encoder(lmbda, levels)
    used_levels = model.autoencoder.check_levels(levels)
    appended = 0
    old_size = path.stat().st_size if path.exists() else 0
    first_batch = next(batches, [])  # so that no empty archive is written
    if not first_batch:
        return
    model.run.keep_state()
    with archive.appending(path, model.entropy_model) as writer:
        if writer.set_aside:
            left_over = counted(writer.archive.left_over, "byte")
            old_size -= writer.archive.left_over
            note(
                f"{path} ended with {left_over} of an unfinished block, moved to {writer.set_aside}"
            )
        for batch in chain([first_batch], batches):
            codes = [flat_codes(encode(image[None].to(model.device)))[0] for _, image in batch]
            sizes = [(image.shape[-2], image.shape[-1]) for _, image in batch]
            appended += writer.append(
                codes, sizes, [_archived_name(name) for name, _ in batch], used_levels
            )
    if appended < len(outcome.lost):
        note(
            f"{path} had {len(outcome.lost) - appended} of {counted(len(outcome.lost), 'image')}"
            " already"
        )
    outcome.bytes = path.stat().st_size - old_size


def _archived_name(name: str) -> str:
    """Return the name that an archive stores: `name` with bytes that are not UTF-8 escaped, or a
    short safe name.
    """
    encoded = name.encode(errors="backslashreplace")
    return encoded.decode() if len(encoded) <= archive.MOST_NAME else safe_name(name)


class _Job(NamedTuple):
    """A file to decompress, and the PNG to write per image, by the index of the image in the
    file.
    """

    model: Model
    path: Path
    archive: Archive | None  # None for an .hrv
    targets: dict[int, Path]


def list_files_of_codes(paths: Iterable[Path]) -> list[tuple[Path, str]]:
    """Return the files of codes and archives at paths and in folders, each with the name that its
    image gets.

    Raises InputError if a folder has none.
    """
    files = list[tuple[Path, str]]()
    for path in paths:
        if not path.is_dir():
            files.append((path, path.stem))
            continue
        names = sorted(find_names(path, (".hrv", ".hrva")))
        if not names:
            raise InputError(f"{path} has neither files of codes (.hrv) nor archives (.hrva)")
        files += [(path / name, name.rpartition(".")[0]) for name in names]
    return files


def decompress_files(
    models: Sequence[Model],
    files: Sequence[tuple[Path, str]],
    out: Path,
    levels: int | None = None,
    names: Sequence[str] = (),
    *,
    force: bool = False,
) -> int:
    """Decompress files of codes and archives to PNG, and return the number of images.

    Args:
        models: The model that made each file.
        files: As `list_files_of_codes` returns them.
        out: Y.png for one image, else a folder.
        levels: Largest number of levels to use (default: all).
        names: Images of archives to write (default: all).

    Raises:
        InputError: Another model made a file, a name is unknown, an image exists already, or `out`
            can't be written.
        DamagedFileError: A file is damaged. Its undamaged images and levels are decompressed first.
    """
    for model in models:
        model.autoencoder.check_levels(levels)
    outputs = Outputs(out, [".png"], force=force, inputs=[path for path, _ in files])
    jobs = [
        _make_job(model, *file, outputs, names) for model, file in zip(models, files, strict=True)
    ]
    faults = list[str]()
    count = 0
    images = (pair for job in jobs for pair in _decode_job(job, levels, faults))
    for target, image in tracked(
        images, "decompress", sum(len(job.targets) for job in jobs), lambda _: 1
    ):
        write_image(to_pil(image), target)
        count += 1
    for fault in faults[:-1]:
        note(fault)
    if faults:
        raise DamagedFileError(
            f"{faults[-1]}; {counted(count, 'image')} written" if count else faults[-1]
        )
    return count


def _make_job(model: Model, path: Path, name: str, outputs: Outputs, names: Sequence[str]) -> _Job:
    if not archive.is_archive(path):
        if names:
            raise InputError(
                f"{path} is no archive (.hrva), whose images have names; leave --names out"
            )
        return _Job(model, path, None, {0: outputs.reserve(name, ".png")})
    opened = archive.open_archive(path)
    if opened.entropy_model.model != model.entropy_model.model:
        raise InputError(
            f"{path} was made by {opened.entropy_model.name} (weights"
            f" {opened.entropy_model.model[:12]}), not by {model.entropy_model.name}"
            f" ({model.entropy_model.model[:12]})"
        )
    indices = (
        dict.fromkeys(opened.find(names)) if names else range(len(opened.entries))
    )  # each image once
    return _Job(
        model,
        path,
        opened,
        {index: outputs.reserve(opened.names[index], ".png") for index in indices},
    )


def _decode_job(job: _Job, levels: int | None, faults: list[str]) -> Iterator[tuple[Path, Tensor]]:
    """Yield each target with the image to write; append messages about damage to `faults`."""
    opened = job.archive
    model = job.model
    max_pixels = job.model.config.data.max_pixels
    faults += [f"{job.path}: {line}" for line in opened.damage] if opened else []
    count_pixels = lambda index: math.prod(opened.entries[index].size) if opened else 0  # noqa: E731
    for group in chunk_by_size(job.targets, count_pixels, hrv.TOGETHER):
        if opened:
            images_codes = opened.read(group, levels, max_pixels)
        else:
            name = str(job.path)
            content = job.path.read_bytes()
            try:
                images_codes = hrv.read(model.entropy_model, [content], levels, [name], max_pixels)
            except DamagedFileError as error:
                images_codes = [ImageCodes((0, 0), (), fault=str(error).removeprefix(f"{name} "))]
        decodable = list[tuple[Path, ImageCodes]]()
        for index, codes in zip(group, images_codes, strict=True):
            name = f"{job.path}: image {opened.names[index]}" if opened else str(job.path)
            if (
                len(codes.codes) < model.autoencoder.prefixes[0]
            ):  # the smallest number of levels that it decodes
                faults.append(f"{name}: {codes.fault or 'it ends too early'}")
                continue
            if codes.fault:
                faults.append(
                    f"{name}: {codes.fault}; decoded from"
                    f" {counted(len(codes.codes), 'whole level')}"
                )
            decodable.append((job.targets[index], codes))
        images = decode_images(
            model.autoencoder, [codes for _, codes in decodable], model.device, levels
        )
        yield from zip((target for target, _ in decodable), images, strict=True)
