"""Compress image files to files of codes (.hrv) or a zip of them, and decompress both to PNG."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrvqvae.checkpoints.entropy import load_entropy_model
from hrvqvae.checkpoints.folder import list_models, open_run
from hrvqvae.compression import hrv, zips
from hrvqvae.compression.images import decode_images
from hrvqvae.data.folders import find_files
from hrvqvae.data.images import SUFFIXES, BrokenImageError, decode_image, to_pil, write_image
from hrvqvae.model import Model
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.grouping import chunk_by_size
from hrvqvae.utils.outputs import Outputs, Record, check_output, write_output
from hrvqvae.utils.progress import note, tracked
from hrvqvae.utils.quantities import counted

# Values of the images of a batch. Its files are written as soon as it is done, so that little is
# lost by Ctrl-C.
_BATCH_VALUES = 1 << 17


@dataclass
class CompressionOutcome:
    """The outcome of `compress_images`."""

    images: int = 0
    bytes: int = 0  # total size of the files
    pixels: int = 0  # size of the uncompressed images in bytes


def check_exist(paths: Iterable[Path]) -> None:
    """Raise InputError if there is no file or folder of one of the paths."""
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: there is no such file")


def _list_files(paths: Iterable[Path], suffixes: tuple[str, ...]) -> dict[Path, str]:
    """Return the files at paths and in folders, each with its name below the folder. Raises
    InputError if a folder has no file with one of the suffixes.
    """
    files = {}
    for path in paths:
        if not path.is_dir():
            files[path] = path.name
            continue
        names = sorted(find_files(path, suffixes))
        if not names:
            kind = "images" if suffixes == SUFFIXES else "files of codes"
            raise InputError(f"{path} has no {kind}")
        files |= {path / name: name for name in names}
    return files


def _find_images(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the image files at paths and in folders, by name.

    Names keep their endings where they would be equal without: 0.jpg and 0.png. Raises InputError
    if two images have the same name even so.
    """
    files = _list_files(paths, SUFFIXES)
    counts = Counter(map(_remove_suffix, files.values()))
    images = dict[str, Path]()
    for path, file_name in files.items():
        stem = _remove_suffix(file_name)
        name = stem if counts[stem] == 1 else file_name
        if name in images:
            raise InputError(
                f"{images[name]} and {path} would both be named {name}; compress them apart"
            )
        images[name] = path
    return images


def _read_images(model: Model, paths: Iterable[Path], skip: bool) -> Iterator[tuple[Path, Tensor]]:
    """Yield the path and the pixels of each image. With `skip`, images that can't be read are left
    out with a notice.
    """
    for path in paths:
        try:
            pixels = decode_image(path, model.autoencoder.channels, model.config.data.max_pixels)
        except BrokenImageError as error:  # or there is no such file
            if not skip:
                advice = "leave such images out with --on-error skip"
                raise InputError(f"{error}; {advice}") from error
            note(f"{error}; left out")
        else:
            yield path, torch.from_numpy(pixels)


def compress_images(
    model: Model,
    paths: Sequence[Path],
    out: Path,
    *,
    force: bool = False,
    skip: bool = False,
    **options: Any,
) -> CompressionOutcome:
    """Compress image files.

    Each batch is written as soon as it is encoded, and a second call goes on where the first was
    stopped (`Record`). The files of X.zip are written to the folder X.zip.parts
    until all of them are done.

    Args:
        paths: Image files and folders.
        out: X.hrv for one image; X.zip; otherwise a folder, for one file per image.
        force: Replace files that exist.
        skip: Leave out images that can't be read, with a notice per image.
        options: levels, max_bytes and effort, as for `Model.compress`.

    Raises InputError as `Model.compress` does, or if an image can't be read, X.hrv or X.zip exists,
    the files were begun otherwise, or `out` can't be written.
    """
    model.autoencoder.check_levels(options.get("levels"))
    images = _find_images(paths)
    suffix = out.suffix.lower()
    folder = out
    if suffix == zips.SUFFIX:  # its files are first collected in a folder
        check_output(out, force=force, inputs=paths)
        folder = out.with_name(f"{out.name}.parts")
        outputs = Outputs(folder)
    else:
        outputs = Outputs(out, hrv.SUFFIX, force=force, inputs=paths)
    targets = {path: outputs.reserve(name, hrv.SUFFIX) for name, path in images.items()}
    made_with = {"autoencoder": model.run.digest, "beam": model.beam, **options}
    record = Record(folder / f"{hrv.SUFFIX}.json", made_with)
    missing = [*targets] if force else record.select_missing(targets, Path)

    if missing:
        model.fit_entropy_model()  # before the bar: its time is not that of an image
    outcome = CompressionOutcome()
    pairs = _read_images(model, missing, skip)
    batches = chunk_by_size(pairs, lambda pair: pair[1].numel(), _BATCH_VALUES)
    for batch in tracked(batches, "compress", len(missing), len):
        names = [str(path) for path, _ in batch]
        pixels = [image for _, image in batch]
        files = model.compress(pixels, names=names, **options)
        if suffix != hrv.SUFFIX:
            record.write()
        for (path, _), content in zip(batch, files, strict=True):
            write_output(targets[path], content)
        outcome.images += len(files)
        outcome.bytes += sum(map(len, files))
        outcome.pixels += sum(image.numel() for image in pixels)
    if missing and not outcome.images:
        raise InputError("no image could be read")

    if suffix == zips.SUFFIX:
        written = [path for path in targets.values() if path.exists()]
        entries = [path.relative_to(folder).as_posix() for path in written]
        zips.write_zip(out, zip(entries, map(Path.read_bytes, written), strict=True))
        shutil.rmtree(folder)
    return outcome


class _CodeFile(NamedTuple):
    path: Path  # of the file, or of the zip that holds it
    place: str  # for messages
    name: str  # of its image
    read: Callable[[], bytes]


def _find_codes(paths: Iterable[Path], faults: list[str]) -> list[_CodeFile]:
    """Return the files of codes at paths, in folders and in zips. Zips that can't be read are added
    to `faults`. Raises InputError as `_list_files`.
    """
    files = []
    for path, name in _list_files(paths, (hrv.SUFFIX, zips.SUFFIX)).items():
        if path.suffix.lower() != zips.SUFFIX:
            files.append(_CodeFile(path, str(path), _remove_suffix(name), path.read_bytes))
            continue
        try:
            entries = zips.open_zip(path)
        except DamagedFileError as error:
            faults.append(str(error))
            continue
        for entry, read in entries:
            files.append(_CodeFile(path, f"{path}: {entry}", _remove_suffix(entry), read))
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

    Each image is written as soon as it is decoded. A second call goes on (`Record`).

    Args:
        paths: Files of codes, zips of them, or folders of both.
        out: Y.png for one image, else a folder.
        model: The run that made the files (default: the models inside the package).
        levels: Largest number of levels to use (default: all).

    Raises:
        InputError: The levels are out of range, Y.png exists, the images were begun otherwise, or
            `out` can't be written.
        DamagedFileError: A file is damaged, or another model made it. Undamaged files and levels
            are decompressed all the same.
    """
    faults = list[str]()
    files = _find_codes(paths, faults)
    outputs = Outputs(out, ".png", force=force, inputs=paths)
    targets = {file: outputs.reserve(file.name, ".png") for file in files}
    record = Record(out / ".png.json", {"levels": levels})
    missing = [*targets] if force else record.select_missing(targets, attrgetter("path"))
    makers = dict[bytes, str]()  # names of models, by the fingerprints of their files
    for name in list_models() if model is None else [model]:
        entropy_model = load_entropy_model(open_run(name))
        makers[entropy_model.fingerprint] = makers[entropy_model.bare.fingerprint] = name
    open_model = cache(Model)
    foreign = []  # files of other models

    count = 0
    for file in tracked(missing, "decompress", len(missing), lambda _: 1):
        try:
            content = file.read()
            fingerprint = hrv.read_header(content, file.place).fingerprint
            if fingerprint not in makers:
                foreign.append(file.place)
                continue
            maker = open_model(makers[fingerprint])
            max_pixels = maker.config.data.max_pixels
            (codes,) = hrv.read(maker.entropy_model, [content], levels, [file.place], max_pixels)
            (image,) = decode_images(maker.autoencoder, [codes], maker.device, levels)
        except DamagedFileError as error:
            faults.append(str(error))
            continue
        if codes.fault:
            faults.append(f"{file.place}: {codes.fault}")
        if out.suffix.lower() != ".png":
            record.write()
        write_image(to_pil(image), targets[file])
        count += 1
    if foreign:
        faults.append(
            f"{foreign[0]} was made by another model than {model or 'those of the package'}, or is"
            f" damaged ({counted(len(foreign), 'such file')}); name its run with --model RUN"
        )
    for earlier in faults[:-1]:
        note(earlier)
    if faults:
        written = f"; {counted(count, 'image')} written" if count else ""
        raise DamagedFileError(f"{faults[-1]}{written}")
    return count
