"""Compress image files to files of codes (.hrv) or a zip of them, and decompress both to PNG."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrvqvae.compression import hrv, zips
from hrvqvae.compression.hrv import ImageCodes
from hrvqvae.compression.images import decode_images
from hrvqvae.config import to_dict
from hrvqvae.data import images as image_formats
from hrvqvae.data.images import (
    OpenImage,
    decode_image,
    note_conversions,
    remove_image_suffix,
    to_pil,
    write_image,
)
from hrvqvae.data.loading import is_shard_path, open_whole
from hrvqvae.data.sources.files import LIST_SUFFIXES, FolderSource, find_names
from hrvqvae.model import Model, find_models
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.grouping import chunk_by_size
from hrvqvae.utils.locks import lock_file
from hrvqvae.utils.outputs import Outputs, check_output, write_output
from hrvqvae.utils.progress import note, tracked
from hrvqvae.utils.quantities import counted

# limits of a batch
_BATCH_IMAGES = 1024
_BATCH_PIXELS = 1 << 26
_UNFINISHED = ".unfinished"  # name of the record of an interrupted call, in a folder of files


class _NamedImage(NamedTuple):
    name: str  # of its file of codes
    where: str  # for messages
    open: OpenImage
    content: Callable[[], bytes]  # as of `Source.content`

    def fingerprint(self) -> str:
        """Return a digest of the name and of what `Source.content` tells of the image."""
        state = hashlib.blake2b(f"{self.name}\0".encode("utf-8", "surrogateescape"), digest_size=8)
        with suppress(OSError):  # as in `Source.digest`
            state.update(self.content())
        return state.hexdigest()


@dataclass
class CompressionOutcome:
    """The outcome of `compress_images`."""

    # of each image that was read, by its place: what conversion to the model's channels lost, or ""
    lost: dict[str, str]
    bytes: int = 0  # total size of the files
    pixels: int = 0  # size of the uncompressed images in bytes


def _find_images(paths: Sequence[Path]) -> list[_NamedImage]:
    """Return all images of files, folders, lists, tars, Parquet files and arrays.

    Names keep their endings where they would be equal without: 0.jpg and 0.png. Raises InputError
    if two images have the same name even so.
    """
    images = []
    seen = set[str]()
    for path in paths:
        zips.is_zip(path)  # refuses archives of version 1.0.0
        suffix = path.suffix.lower()
        is_list = suffix in LIST_SUFFIXES
        is_shards = suffix not in image_formats.SUFFIXES and is_shard_path(path)
        if path.is_dir() or is_list or is_shards:
            source = open_whole(path, labels=False)
        else:
            source = FolderSource(path.parent, [path.name])
        if is_list and not any(Path(source.where(row)).is_file() for row in range(len(source))):
            raise InputError(
                f"{path} is read as a list of images, and {source.where(0)} in it is no file"
            )
        for row in range(len(source)):
            where = source.where(row)
            # A file that is given twice counts once; a name twice in a tar is refused below.
            if where not in seen or not isinstance(source, FolderSource):
                seen.add(where)
                read_content = partial(source.content, row, ending=True)
                images.append(
                    _NamedImage(source.name(row), where, partial(source.open, row), read_content)
                )

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

    # a least size per image limits their number, too
    least = _BATCH_PIXELS // _BATCH_IMAGES

    def size(pair: tuple[_NamedImage, Tensor]) -> int:
        _, pixels = pair
        return max(pixels[0].numel(), least)  # of one channel

    batches = chunk_by_size(read_images(), size, _BATCH_PIXELS)
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

    An interrupted call that writes into a folder goes on when it is repeated; images that have
    changed since are encoded again.

    Args:
        paths: Image files, folders and lists of them (.txt), tars, Parquet files and arrays.
        out: X.hrv for one image; X.zip; otherwise a folder, for one file per image.
        skip: Leave out images that can't be read, with a notice per image.
        options: levels, max_bytes and effort, as for `Model.compress`.

    Raises InputError as `Model.compress` does, or if an image can't be read, a file exists, `out`
    can't be written, or holds files of another interrupted call.
    """
    model.autoencoder.check_levels(options.get("levels"))
    images = _find_images(paths)
    outcome = CompressionOutcome({})
    with _open_output(model, images, paths, out, force, options) as (write, remaining):
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
    model: Model,
    images: Sequence[_NamedImage],
    paths: Sequence[Path],
    out: Path,
    force: bool,
    options: dict[str, Any],
) -> Iterator[tuple[zips.Write, Sequence[_NamedImage]]]:
    """Yield a function that writes the file of an image, and the images that have no file yet."""
    if zips.is_zip(out):
        check_output(out, force=force, inputs=paths)
        # as if the zip were a folder: names that differ and are safe on every system
        outputs = Outputs(out)
        targets = {image.name: outputs.reserve(image.name, hrv.SUFFIX) for image in images}
        with zips.create_zip(out) as write:
            yield (
                lambda name, content: write(targets[name].relative_to(out).as_posix(), content),
                images,
            )
        return

    resumption = Resumption(out / _UNFINISHED, _describe_call(model, paths, options), restart=force)
    may_replace = force or resumption.goes_on
    if resumption.stored and not may_replace:
        raise InputError(
            f"{out} holds files of an interrupted call, by another model, of other images or with"
            " other options; choose another folder, or write all files with --force"
        )
    outputs = Outputs(out, [hrv.SUFFIX, zips.SUFFIX], force=may_replace, inputs=paths)
    targets = {image.name: outputs.reserve(image.name, hrv.SUFFIX) for image in images}
    files = {name: target.relative_to(out).as_posix() for name, target in targets.items()}
    known = resumption.stored.get("files", files)
    if resumption.goes_on:
        # files of images that came since are those of other calls
        for name in files.keys() - known.keys():
            check_output(targets[name])

    def write_file(name: str, content: bytes) -> None:
        write_output(targets[name], content)

    if out in targets.values():  # a single file
        yield write_file, images
        return
    fingerprints = [image.fingerprint() for image in images]
    encoded = {*resumption.stored.get("fingerprints", ())}
    changed = {
        index
        for index, (image, mark) in enumerate(zip(images, fingerprints, strict=True))
        if mark not in encoded or files[image.name] != known.get(image.name)
    }
    details = {"files": files, "fingerprints": fingerprints}
    in_order = [targets[image.name] for image in images]
    with resumption.fill(in_order, changed, force=force, **details) as (missing, start):

        def write_next(name: str, content: bytes) -> None:
            start()
            write_file(name, content)

        yield write_next, [images[index] for index in missing]
    resumption.record.unlink(missing_ok=True)


def _describe_call(model: Model, paths: Sequence[Path], options: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies a call: the model, the options and the paths of the images."""
    return {
        "entropy model": hashlib.blake2b(model.entropy_model.content, digest_size=16).hexdigest(),
        "model": to_dict(model.config.model),  # with the beam
        "images": [str(path.resolve()) for path in paths],
        **options,
    }


class Resumption:
    """Lets a repeated call go on where the first stopped, in a folder of files.

    A record in the folder names the call.

    Attributes:
        stored: the record; empty if there is none that can be read.
        goes_on: whether the record names this call, so that its files are kept; with `restart`,
            not before the first file is written.
    """

    def __init__(self, record: Path, call: dict[str, Any], *, restart: bool = False) -> None:
        self.record = record
        self.restart = restart
        self.call = json.loads(json.dumps(call))  # as it is read back: lists for tuples
        self.stored = dict[str, Any]()
        with suppress(OSError, ValueError, TypeError):
            self.stored = dict(json.loads(record.read_bytes()))
        self.goes_on = self.stored.get("options") == self.call and not restart

    @contextmanager
    def fill(
        self, paths: Sequence[Path], stale: Collection[int] = (), *, force: bool, **details: Any
    ) -> Iterator[tuple[list[int], Callable[[], None]]]:
        """Yield the indices of the files that are missing, and a function to call when the first of
        them can be written: it writes the record, with `details`.

        Files at the indices `stale` count as missing, and are replaced; with `force`, those of
        another call too. Notes count the files at the beginning, and where the call is interrupted.
        The function raises InputError if another call writes into the folder.
        """
        folder = self.record.parent
        total = counted(len(paths), "file")
        missing = [
            index
            for index, path in enumerate(paths)
            if index in stale or not (self.goes_on and path.is_file())
        ]
        replaced = set[Path]()
        if force or self.goes_on:
            replaced = {paths[index] for index in missing if paths[index].is_file()}
        if len(missing) < len(paths):
            note(f"{folder} has {len(paths) - len(missing):,} of {total} already")

        with ExitStack() as lock:

            @cache
            def start() -> None:
                lock.enter_context(lock_file(self.record))
                for index in missing:
                    if paths[index].is_file() and paths[index] not in replaced:
                        raise InputError(
                            f"another call has written {paths[index]} meanwhile; choose another"
                            " folder"
                        )

                # Remove the files of another call before the record names this one: a further call
                # would take them for files of this call.
                for path in replaced:
                    path.unlink(missing_ok=True)
                write_output(self.record, json.dumps({"options": self.call, **details}).encode())
                self.goes_on = True

            try:
                yield missing, start
            except (KeyboardInterrupt, SystemExit):
                if self.goes_on:
                    count = sum(path.is_file() for path in paths)
                    command = "the same command" + " without --force" * self.restart
                    note(f"{folder} has {count:,} of {total}; {command} goes on")
                raise


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
        names = sorted(find_names(path, (hrv.SUFFIX, zips.SUFFIX, zips.OLD_SUFFIX)))
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
        except InputError as error:  # a zip that can't be read, or an archive of version 1.0.0
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
    """Decompress files of codes to PNG, and return the number of images.

    Args:
        paths: Files of codes, zips of them, or folders of both.
        out: Y.png for one image, else a folder.
        model: The run that made the files (default: the models inside the package).
        levels: Largest number of levels to use (default: all).

    Raises:
        InputError: Another model made a file, an image exists already, or `out` can't be written.
        DamagedFileError: A file is damaged, or an archive of version 1.0.0. Undamaged files and
            levels are decompressed first.
    """
    listed = _list_paths(paths)
    outputs = Outputs(out, [".png"], force=force, inputs=[path for path, _ in listed])

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
    for maker, (index, (_, name, header)) in zip(makers, headers.items(), strict=True):
        if maker:
            maker.autoencoder.check_levels(levels)
            jobs[index] = _Job(maker, math.prod(header.size), outputs.reserve(name, ".png"))

    count = 0
    files = enumerate(_read_files(listed))
    pairs = ((jobs[index], file) for index, file in files if index in jobs)
    chunks = chunk_by_size(pairs, lambda pair: pair[0].pixels, hrv.BATCH_PIXELS)
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
