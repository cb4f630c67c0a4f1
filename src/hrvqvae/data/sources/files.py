"""Image files in folders and lists, and the files that a pattern matches."""

import itertools
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hrvqvae.data.images import SUFFIXES, open_image_file
from hrvqvae.data.sources import (
    ENDING_BYTES,
    HELD_OUT,
    SPLIT_NAMES,
    TRAIN,
    Source,
    decode_name,
    encode_names,
    read_end,
)
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import identify
from hrvqvae.utils.progress import note_once
from hrvqvae.utils.quantities import counted

LIST_SUFFIXES = (".txt", ".list", ".tsv")  # suffixes of lists of paths
OTHER_IMAGES = re.compile(
    r"\.(arw|avif|bmp|cr2|dng|exr|gif|hei[cf]|jfif|jp2|jxl|nef|p[bgp]m|psd|svg|tga|tiff?)"
)
_WILDCARD = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_PARENTS = re.compile(r"^(\.\./|/)+")  # start of a path in a list; an image's name leaves it out
_MAX_FILES = 1_000_000


class FolderSource(Source):
    """Image files, named relative to a folder.

    Labels are the folders at `depth` (0: the top folders) if every file is in such a folder.
    """

    def __init__(self, folder: Path, files: Sequence[str], depth: int = 0) -> None:
        super().__init__([len(files)])
        self.folder = folder
        self._names = encode_names(files)
        outside = sum(name.count("/") <= depth for name in files)
        if not outside:
            self.labels = np.array(
                [sys.intern(normalize(name).split("/")[depth]) for name in files], object
            )
        elif outside < len(files):
            self.unlabelled = f"{counted(outside, 'image')} outside of class folders"

    def name(self, row: int) -> str:
        return _PARENTS.sub("", normalize(decode_name(self._names, row)))

    def where(self, row: int) -> str:
        return str(self.folder / decode_name(self._names, row))

    def open(self, row: int) -> Image.Image:
        return open_image_file(Path(self.where(row)))

    def content(self, row: int, ending: bool) -> bytes:
        path = Path(self.where(row))
        size = path.stat().st_size
        return b"%d %b" % (size, read_end(path, 0, size, ENDING_BYTES)) if ending else b"%d" % size


def normalize(name: str) -> str:
    """Return a name in composed Unicode, since some file systems decompose accented letters."""
    return unicodedata.normalize("NFC", name)


def read_whole_folder(folder: Path, names: Sequence[str]) -> FolderSource:
    """Return the images of a folder in all splits. Labels are the folders inside the splits; if
    there are images outside of the splits, no image has a label.
    """
    tops = [name.split("/")[0].lower() for name in names]
    outside = sum(top not in SPLIT_NAMES for top in tops)
    is_divided = TRAIN in tops and any(name in tops for name in HELD_OUT)
    if not outside or not is_divided:
        return FolderSource(folder, names, depth=0 if outside else 1)
    source = FolderSource(folder, names)
    source.labels = None
    source.unlabelled = f"{counted(outside, 'image')} outside of the splits"
    return source


def read_list(path: Path) -> FolderSource:
    """Return the images of a list in UTF-8: per line a path relative to the list, then optionally a
    tab and a label. If some lines have no label, no image has one.
    """
    try:
        # not by `splitlines`: a name may have other separators of lines
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a list of images in UTF-8") from error
    names = []
    labels = []
    for line in lines:
        name, _, label = line.partition("\t")
        if name.strip():
            names.append(os.path.normpath(name.strip()).replace(os.sep, "/"))
            labels.append(label.strip() or None)
    if not names:
        raise InputError(f"{path} names no image; write a path per line")
    source = FolderSource(path.parent, names)
    # the labels replace the names of folders
    missing = labels.count(None)
    source.labels = None if missing else np.array(labels, object)
    is_mixed = 0 < missing < len(labels)
    source.unlabelled = f"{counted(missing, 'line')} without a label" if is_mixed else ""
    return source


def open_folder(folder: Path) -> dict[str, FolderSource]:
    """Return the sorted image files of a folder by split name; all under "" if its folders do not
    divide them.

    `train/` and the first folder of `HELD_OUT` that has images are splits. Images elsewhere in the
    folder are left out, and a note counts them. One split alone is an error; but beside other
    folders its folder is a class, as `train/` in CIFAR100. Labels are the folders of the images in
    a split. The dictionary is empty if the folder has no images.

    Raises InputError if only one split is there, or a name is not UTF-8 or has two spellings.
    """
    files = dict[str, str]()
    for file in find_names(folder, SUFFIXES):
        if files.setdefault(normalize(file), file) != file:
            raise InputError(f"{folder} has {file} in two spellings of Unicode; rename one of them")
    if not files:
        return {}
    names = sorted(files)
    folder_of_split = dict[str, str]()  # in lower case
    for top in {name.split("/")[0] for name in names if "/" in name}:
        split = top.lower()
        if split not in SPLIT_NAMES:
            split = top = ""
        if folder_of_split.setdefault(split, top) != top:
            raise InputError(
                f"{folder} has {folder_of_split[split]}/ and {top}/; rename one of them"
            )
    # for the error of `find_splits`: the folder of a split that is there
    only = folder / min(folder_of_split.values(), default="")
    splits = find_splits({*folder_of_split}, folder, str(only))
    if splits is None:
        return {"": FolderSource(folder, [files[name] for name in names])}

    sources = {}
    for split in splits:
        prefix = f"{folder_of_split[split]}/"
        inside = [files[name].removeprefix(prefix) for name in names if name.startswith(prefix)]
        sources[split] = FolderSource(folder / prefix, inside)
    if outside := len(files) - sum(map(len, sources.values())):
        train, test = (folder_of_split[split] for split in splits)
        note_once(f"{folder}: {counted(outside, 'image')} outside of {train}/ and {test}/ left out")
    return sources


def find_splits(present: set[str], where: Path, only: str) -> tuple[str, str] | None:
    """Return the names of the train and the test split, or None if `data.split` is to divide the
    images.

    `present` are the names of splits that are there, and "" if there are other images. Raises
    InputError if only one split is there, and no other images; `only` is the `--data` of this
    split.
    """
    test = next((name for name in HELD_OUT if name in present), None)
    if TRAIN in present and test is not None:
        return TRAIN, test
    if present and present <= {*SPLIT_NAMES}:
        missing = "no train" if TRAIN not in present else f"none of {', '.join(HELD_OUT)}"
        raise InputError(
            f"{where} has {' and '.join(sorted(present))}, but {missing}: add it, or give --data"
            f" {only}"
        )
    return None


def find_names(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of files with these suffixes at any depth of a folder, in no order.

    Follow links to folders, except to a folder that contains the link. Skip names that begin with a
    dot and, if the suffixes are those of images, run folders. Notes count images in other formats
    and links to no file, and name run folders and folders that can't be read. Raises InputError if
    a name is not UTF-8.
    """
    others = Counter[str]()
    dangling = []
    of_images = suffixes == SUFFIXES
    for file in _walk(folder, {identify(path) for path in folder.resolve().parents}, of_images):
        suffix = Path(file.name).suffix.lower()
        if suffix in suffixes and not file.is_file():
            dangling.append(file.path)
        elif suffix in suffixes:
            name = Path(file.path).relative_to(folder).as_posix()
            if name.encode("utf-8", "replace").decode() != name:  # surrogates became ?
                raise InputError(f"{name!r} in {folder} has a name that is not UTF-8; rename it")
            yield name
        elif of_images and OTHER_IMAGES.fullmatch(suffix):
            others[suffix] += 1
    if others:
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(others.items()))
        note_once(f"{folder}: images left out: {counts}; convert them to PNG, JPEG or WebP")
    if dangling:
        links = counted(len(dangling), "link")
        note_once(
            f"{folder}: {links} to files that are not there left out, such as {min(dangling)}; get"
            " the files"
        )


def _walk(
    folder: Path, above: set[tuple[int, int]], skip_runs: bool, is_root: bool = True
) -> Iterator[os.DirEntry[str]]:
    """Yield the files, and the links to no file, at any depth of a folder.

    `above` identifies the folders that contain this one. A link to one of them is not followed.
    """
    try:
        above = above | {identify(folder)}
        with os.scandir(folder) as scanned:
            entries = [entry for entry in scanned if not entry.name.startswith(".")]
        is_run = {"config.yaml", "metrics.jsonl"} <= {entry.name for entry in entries}
        if is_run and skip_runs and not is_root:
            note_once(f"{folder} is a run folder; its pictures are left out")
            return
    except OSError as error:
        note_once(f"{error.filename} can't be read ({error.strerror}); its files are left out")
        return
    for entry in entries:
        try:
            is_folder = entry.is_dir()
            is_file = entry.is_file()
        except OSError as error:  # a link to itself, or into a folder that can't be read
            note_once(f"{error.filename} can't be read ({error.strerror}); it is left out")
            continue
        if is_file or (entry.is_symlink() and not is_folder):
            yield entry
        elif is_folder and not (entry.is_symlink() and identify(entry.path) in above):
            yield from _walk(Path(entry.path), above, skip_runs, is_root=False)


def _expand_braces(inner: str) -> list[str]:
    """Return the names that the inside of braces stands for: 08, 09, 10 for "08..10", a and b for
    "a,b".
    """
    matched = _RANGE.fullmatch(inner)
    if matched is None:
        return inner.split(",")
    first = int(matched[1])
    last = int(matched[2])
    if not first <= last < first + _MAX_FILES:
        raise InputError(
            f"{{{inner}}} is no range of at most {_MAX_FILES:,} files in ascending order"
        )
    width = len(matched[1]) if matched[1].startswith("0") else 0
    return [f"{value:0{width}d}" for value in range(first, last + 1)]


def match_files(pattern: Path) -> list[Path]:
    """Return the files that match a name or a pattern, in order.

    A pattern has braces ({00..99}, {a,b}) or wildcards (*, ?, [abc]). Raises InputError if no file
    matches, or a name without wildcards is no file.
    """
    if pattern.is_file():
        return [pattern]
    # `split` returns a, "1,2" and b of a{1,2}b: texts and, between them, the insides of braces.
    *before_braces, last = _BRACES.split(str(pattern))[::2]
    files = list[Path]()
    for choices in itertools.product(*map(_expand_braces, _BRACES.findall(str(pattern)))):
        name = "".join(itertools.chain(*zip(before_braces, choices, strict=True))) + last
        if _WILDCARD.search(name):
            path = Path(name)
            try:  # glob takes no absolute pattern
                matches = [*Path(path.anchor).glob(str(path.relative_to(path.anchor)))]
            except ValueError as error:
                raise InputError(
                    f"{pattern} can't be matched ({error}); write * for any part of a name"
                ) from error
            files += sorted(
                match for match in matches if match.is_file() and not match.name.startswith(".")
            )
        elif Path(name).is_file():
            files.append(Path(name))
        else:
            raise InputError(f"{name} is missing; get it, or name the files that are there")
    if not files:
        raise InputError(f"no file is named like {pattern}")
    return list(dict.fromkeys(files))
