"""Image files in folders, and the files that a name or a pattern stands for."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hrvqvae.data.images import SUFFIXES, opened_file
from hrvqvae.data.sources import WORDS, Source, decoded, encoded, given_split
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import TEMPORARY
from hrvqvae.utils.progress import note

LISTS = (".txt", ".list", ".tsv")  # of paths of images
_WILDCARD = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_UPWARDS = re.compile(r"^(\.\./|/)+")  # of a path in a list, whose name it is no part of
_MOST_FILES = 1_000_000


class FolderSource(Source):
    """Image files of a folder, by their names below it.

    Labels are the folders that they lie in, below so many others, where every image lies in one.
    """

    def __init__(self, folder: Path, files: Sequence[str], above: int = 0) -> None:
        super().__init__([len(files)])
        self.folder, self._names = folder, encoded(files)
        if all(name.count("/") > above for name in files):
            self.labels = np.array([normal(name).split("/")[above] for name in files])

    def name(self, row: int) -> str:
        return _UPWARDS.sub("", normal(decoded(self._names, row)))

    def where(self, row: int) -> str:
        return str(self.folder / decoded(self._names, row))

    def open(self, row: int) -> Image.Image:
        return opened_file(Path(self.where(row)))


def normal(name: str) -> str:
    """A name as on every machine: some file systems decompose letters with accents."""
    return unicodedata.normalize("NFC", name)


def listed_images(path: Path) -> FolderSource:
    """The images of a list: a path a line, from its own folder, and after a tab a label. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a list of images in UTF-8") from error
    parted = [(name.strip(), label.strip()) for name, _, label in (line.partition("\t") for line in lines)]
    found = [(os.path.normpath(name).replace(os.sep, "/"), label) for name, label in parted if name]
    if not found:
        raise InputError(f"{path} names no image; it has a path a line")
    source = FolderSource(path.parent, [name for name, _ in found])
    source.labels = np.array([label or None for _, label in found])
    return source


def folder_sources(folder: Path) -> dict[str, FolderSource]:
    """Image files of a folder, sorted by name: those of a given split by its words, else all under the empty word.

    `train/` beside `test/`, `val/` or `validation/` is a given split. Where several of the three are there, the first
    in this order is the test split; images elsewhere in the folder are in neither. Beside other folders of images,
    `train/` alone is a class like them, as in CIFAR100. Labels are the folders that the images of a split lie in, where
    all of them lie in one. Without an image there is no source at all.

    Raises:
        InputError: half of a given split, two spellings of one name, or a name that is not UTF-8.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    files = dict[str, str]()
    for file in names_below(folder, SUFFIXES):
        if files.setdefault(normal(file), file) != file:
            raise InputError(f"{folder} has {file} in two spellings of Unicode; rename one of them")
    if not files:
        return {}
    words = {name.split("/")[0] for name in files if "/" in name}
    given = given_split({word if word in WORDS else "" for word in words}, folder)
    found = dict[str, FolderSource]()
    for word in given or ("",):
        start = f"{word}/" if word else ""
        below = sorted(name.removeprefix(start) for name in files if name.startswith(start))
        found[word] = FolderSource(folder / word, [files[f"{start}{name}"].removeprefix(start) for name in below])
    return found


def names_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Names of files with such suffixes at any depth of a folder, in no order.

    Links to folders directly inside are followed, unless they lead back to where they lie. Folders that can't be read
    are left out, with a line in the log. Raises InputError where a name is not UTF-8.
    """

    def unreadable(error: OSError) -> None:
        note(f"{error.filename} can't be read ({error.strerror}); what is in it is left out")

    links = [child for child in folder.iterdir() if child.is_symlink() and child.is_dir()]
    around = [folder.resolve(), *folder.resolve().parents]
    for top in (folder, *(link for link in links if link.resolve() not in around)):
        for where, _, names in os.walk(top, onerror=unreadable):
            below = Path(where).relative_to(folder).as_posix()
            for name in names:
                wanted = name.lower().endswith(suffixes) and not name.startswith(TEMPORARY)
                if wanted and Path(where, name).is_file():
                    found = name if below == "." else f"{below}/{name}"
                    if not (found.isascii() or found.encode("utf-8", "replace").decode() == found):
                        raise InputError(f"{found!r} in {folder} has a name that is not UTF-8; rename it")
                    yield found


def _choices(inner: str) -> list[str]:
    """Inside braces: "08..10" -> 08, 09, 10; "train,test" -> train, test."""
    matched = _RANGE.fullmatch(inner)
    if matched is None:
        return inner.split(",")
    first, last = int(matched[1]), int(matched[2])
    if not first <= last < first + _MOST_FILES:
        raise InputError(f"{{{inner}}} is no range of at most {_MOST_FILES:,} files that goes upwards")
    width = len(matched[1]) if matched[1].startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def named_files(pattern: Path) -> list[Path]:
    """Files that a name stands for: itself, or with {00..99}, {a,b}, *, ? and [abc] those that it matches, in order.

    Raises InputError where a file that it names without a wildcard is missing, or nothing matches.
    """
    if pattern.is_file():
        return [pattern]
    plain, inner = _BRACES.split(str(pattern))[::2], _BRACES.findall(str(pattern))
    choices = itertools.product(*map(_choices, inner))
    names = ["".join(itertools.chain(*zip(plain, (*chosen, ""), strict=True))) for chosen in choices]
    files = list[Path]()
    for name in names:
        if _WILDCARD.search(name):
            path = Path(name)
            found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
            files += sorted(one for one in found if one.is_file() and not one.name.startswith("."))
        elif Path(name).is_file():
            files.append(Path(name))
        else:
            raise InputError(f"{name} is missing; get it, or name those that are there")
    if not files:
        raise InputError(f"no file is named like {pattern}")
    return list(dict.fromkeys(files))
