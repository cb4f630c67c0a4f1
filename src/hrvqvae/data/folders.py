"""Image files in folders: which files there are, their splits, and their classes."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.data.images import SUFFIXES, open_image_file
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import note_once
from hrvqvae.utils.quantities import counted

TRAIN = "train"
# Names of the split that is not trained on: the first of these that is there is the test split.
HELD_OUT = ("test", "val", "valid", "validation", "dev")
SPLITS = (TRAIN, *HELD_OUT)
_SAMPLED = 64  # images of a set whose content is part of its digest


class Source:
    """Stored images in a fixed order, each at a row. Worker processes get a copy.

    Attributes:
        labels: (N,) texts or whole numbers; "" or -1 for an image without a label.
        class_names: Names of the classes, if labels are their numbers.
    """

    labels: NDArray[Any]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        """Return the name of an image, whose hash decides the image's split."""
        raise NotImplementedError

    def where(self, row: int) -> str:
        """Return the place of an image, for messages."""
        raise NotImplementedError

    def open(self, row: int) -> Image.Image:
        """Open an image. Raises the errors of the decoder and the file system."""
        raise NotImplementedError

    def size(self, row: int) -> int:
        """Return the size of an image in bytes; 0 if it can't be told fast."""
        return 0

    def content(self, row: int) -> bytes:
        """Return bytes that change if the image changes."""
        raise NotImplementedError

    def digest(self, rows: NDArray[np.int64]) -> str:
        """Return a digest of the names and sizes of images, and of the content of 64 of them."""
        state = hashlib.blake2b(digest_size=16)
        interval = -(-len(rows) // _SAMPLED)
        for index, row in enumerate(map(int, rows)):
            state.update(self.name(row).encode(errors="surrogateescape") + b"\0")
            with suppress(Exception):  # an image that can't be read is reported when it is decoded
                state.update(f"{self.size(row)}\0".encode())
                if index % interval == 0:
                    state.update(self.content(row))
        return state.hexdigest()


class FolderSource(Source):
    """Image files, named by their paths in a folder. Their labels are its top folders."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self.folder = folder
        # An array is not copied in forked processes, as a list would be.
        self._files = np.array([os.fsencode(file) for file in files])
        self.labels = np.array([file.partition("/")[0] if "/" in file else "" for file in files])

    def path(self, row: int) -> Path:
        """Return the path of an image."""
        return self.folder / self.name(row)

    def name(self, row: int) -> str:
        return os.fsdecode(self._files[row])

    def where(self, row: int) -> str:
        return str(self.path(row))

    def open(self, row: int) -> Image.Image:
        return open_image_file(self.path(row))

    def size(self, row: int) -> int:
        return self.path(row).stat().st_size

    def content(self, row: int) -> bytes:
        return self.path(row).read_bytes()


def open_folder(folder: Path) -> dict[str, FolderSource]:
    """Return the images of a folder by split; all under "" if its folders do not divide them.

    The splits are `train` and the first of `HELD_OUT` that is there. The dictionary is empty if the
    folder has no image. Raises InputError if only one split is there, and nothing else.
    """
    files = sorted(find_files(folder))
    if not files:
        return {}
    whole = FolderSource(folder, files)
    tops = {*whole.labels.tolist()}
    folders = {top.lower(): top for top in sorted(tops) if top.lower() in SPLITS}
    splits = choose_splits({*folders}, folder, has_others=len(folders) < len(tops))
    if splits is None:
        return {"": whole}

    sources = {}
    for split in splits:
        prefix = f"{folders[split]}/"
        inside = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
        sources[split] = FolderSource(folder / prefix, inside)
    left_out = len(files) - sum(map(len, sources.values()))
    if left_out:
        note_once(f"{folder}: {left_out:,} images outside of {' and '.join(splits)} are left out")
    return sources


def choose_splits(names: set[str], where: object, has_others: bool) -> tuple[str, str] | None:
    """Return the names of the training and the test split; None if `data.split` is to divide all.

    Raises InputError if there is only one split, and no other images.
    """
    test = next((name for name in HELD_OUT if name in names), None)
    if TRAIN in names and test:
        return TRAIN, test
    if names and not has_others:
        missing = f"none of {', '.join(HELD_OUT)}" if TRAIN in names else f"no {TRAIN}"
        raise InputError(
            f"{where} has {' and '.join(sorted(names))}, but {missing}: add it, or give the folder"
            " in it"
        )
    return None


def find_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Return the paths of the files with these suffixes at any depth of a folder, in no order.
    Names that begin with a dot are left out, and so are folders of runs with their pictures. If
    there are such files, a notice counts the others by their endings.
    """
    # unlike `Path.rglob`, it follows links and leaves out what begins with a dot
    names = [
        name.replace(os.sep, "/")
        for name in glob("**/*", root_dir=folder, recursive=True)  # noqa: PTH207
    ]
    mark = "metrics.jsonl"
    runs = tuple(name.removesuffix(mark) for name in names if name.endswith(f"/{mark}"))
    names = [name for name in names if not name.startswith(runs)]
    found = [name for name in names if name.lower().endswith(suffixes)]
    others = [path for name in sorted({*names} - {*found}) if (path := folder / name).is_file()]
    if found and others:
        counts = Counter(path.suffix.lower() or "without an ending" for path in others)
        listed = ", ".join(f"{count:,} {ending}" for ending, count in counts.most_common(8))
        note_once(f"{folder}: {counted(len(others), 'other file')} left out: {listed}")
    return found
