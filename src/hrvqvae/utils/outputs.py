"""Output files: their names, what they may replace, and writing them whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path

from hrvqvae.utils.errors import InputError, explain_write_errors, printable
from hrvqvae.utils.locks import lock_file
from hrvqvae.utils.progress import note

TEMPORARY = ".writing-"
_LONGEST_PART, _LONGEST_NAME = 180, 800  # bytes of a file's name without its suffix, and of a path below the folder
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\.|$)", re.IGNORECASE)
_UNSAFE = re.compile(r'[\\:*?"<>|\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]')


# Names


def safe_name(name: str) -> str:
    """Return a relative path with / that every system can write: "a_b" for "../a:b", "_NUL" for "NUL"."""
    parts = [_safe_part(part) for part in name.split("/") if part not in ("", ".", "..")]
    safe = "/".join(parts) or "unnamed"
    return _shortened(safe.rpartition("/")[2], safe) if len(safe.encode()) > _LONGEST_NAME else safe


def _safe_part(part: str) -> str:
    safe = "".join("_" if unicodedata.category(c) == "Cc" else c for c in _UNSAFE.sub("_", part))
    if safe.startswith("."):  # hidden, or a temporary file
        safe = f"_{safe[1:]}"
    if safe[-1] in ". ":  # Windows drops them
        safe = f"{safe[:-1]}_"
    if _RESERVED.match(safe):
        safe = f"_{safe}"
    return _shortened(safe, part) if len(safe.encode()) > _LONGEST_PART else safe


def _shortened(safe: str, name: str) -> str:
    """Cut a name, and add a digest of the whole name to tell it from others."""
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=6).hexdigest()
    return f"{safe.encode()[: _LONGEST_PART - 13].decode(errors='ignore')}-{digest}"


def _folded(name: str) -> str:
    """Return a key that is equal for names that are one file on macOS or Windows."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _folders(name: str) -> list[str]:
    """Return the keys of the folders that a path names."""
    return list(accumulate(_folded(name).split("/")[:-1], "{}/{}".format))


# What may be written


def check_output(path: Path, *, force: bool = False, inputs: Iterable[Path] = (), suffix: str = "") -> None:
    """Check that a file may be written, before anything is computed for it.

    Raises:
        InputError: The file exists and `force` is not given, is one of the inputs, is a folder, can't be written, or
            has another suffix.
    """
    if suffix and path.suffix.lower() != suffix:
        raise InputError(f"{path} must end in {suffix}")
    _check_replaceable(path, force, _identities(inputs))
    folder = next(parent for parent in path.resolve().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InputError(f"{path} can't be written: {folder} is no folder that may be written")


def _identities(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """Return what is equal for two names of one file, as by a link."""
    return {(about.st_dev, about.st_ino) for about in (path.stat() for path in paths if path.exists())}


def _check_replaceable(path: Path, force: bool, inputs: set[tuple[int, int]]) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    if not path.exists():
        return
    if _identities([path]) & inputs:
        raise InputError(f"{path} is an input and is never overwritten; choose another output")
    if not force:
        raise InputError(f"{path} exists already; choose another output, or overwrite it with --force")


class Outputs:
    """The files that a command writes: one file, or files below a folder.

    Args:
        out: The file, if it ends in one of the suffixes; else the folder, which need not exist.
        suffixes: Such as [".png"]; empty if `out` is always a folder.
        force: Replace files that exist.
        inputs: Files that are never replaced.
    """

    def __init__(
        self, out: Path, suffixes: Sequence[str] = (), *, force: bool = False, inputs: Iterable[Path] = ()
    ) -> None:
        suffix = out.suffix.lower()
        if suffixes and suffix and suffix not in suffixes and not out.is_dir():
            raise InputError(f"{out} must end in {' or '.join(suffixes)}, or be a folder that exists")
        self._single = suffix in suffixes and bool(suffix)
        self._out, self._force, self._inputs = out, force, _identities(inputs)
        self._place = out.resolve()
        self._files, self._folders = dict[str, int](), set[str]()  # a file, and how many have its name; see `_folded`
        self._told = False

    def reserve(self, name: str, suffix: str) -> Path:
        """Return the path of an output: the file, or `safe_name(name)` and the suffix below the folder.

        Names that would be one file on some system, by case or Unicode form, are numbered: x, x-2, x-3. Raises
        InputError as `check_output`, for a symbolic link out of the folder, and for a second output to one file.
        """
        if self._single:
            if self._files:
                raise InputError(f"{self._out} takes one image, and there are more; name a folder")
            self._files[name] = 1
            _check_replaceable(self._out, self._force, self._inputs)
            return self._out
        safe = safe_name(name)
        if any(folder in self._files for folder in _folders(safe)):
            safe = safe.replace("/", "_")
        unique = f"{safe}{suffix}"
        plain = folded = _folded(unique)
        while folded in self._files or folded in self._folders:
            self._files[plain] = self._files.get(plain, 1) + 1
            unique = f"{safe}-{self._files[plain]}{suffix}"
            folded = _folded(unique)
        self._files[folded] = 1
        self._folders.update(_folders(unique))
        if unique != f"{name}{suffix}" and not self._told:
            self._told = True
            change = f"{printable(name)} is {unique}"
            note(f"names are changed so that they differ, and every system can write them: {change}")
        path = self._out / unique
        if not path.resolve().is_relative_to(self._place):
            raise InputError(f"{path} leads out of {self._out} by a symbolic link; remove the link")
        _check_replaceable(path, self._force, self._inputs)
        return path


# Writing


@contextmanager
def replace_file(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Give a temporary name to write a file under, which is renamed at the end: the file is whole or as it was.

    The file that a symbolic link leads to is replaced, not the link. Without `flush`, a machine that loses power may
    leave neither the old nor the new file. Raises OSError if the disk is full or the folder can't be written.
    """
    path = path.resolve()
    suffix = path.suffix if len(path.suffix) <= 12 else ""  # libraries choose a format by it
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}{suffix}")
    try:
        yield temporary
        if flush:
            with temporary.open("r+b") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if flush:
        with suppress(OSError):  # not every file system lets a folder be flushed
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises OSError as `replace_file`."""
    with replace_file(path) as temporary, temporary.open("xb") as stream:
        stream.write(content)


def write_output(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and make its folder. Raises InputError if it can't be written."""
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)


@contextmanager
def create_folder(path: Path) -> Iterator[Path]:
    """Give a new, empty folder to write into, which is renamed at the end; after an error nothing is left of it.

    Raises:
        InputError: The folder exists already, or can't be written.
        InUseError: Another process writes it.
    """
    if path.exists():  # as . and / do, which have no name
        raise InputError(f"{path} exists already; choose another folder")
    path = path.resolve()
    temporary = path.with_name(f"{TEMPORARY}{hashlib.blake2b(path.name.encode(), digest_size=4).hexdigest()}")
    with lock_file(path):
        try:
            with explain_write_errors(path):
                shutil.rmtree(temporary, ignore_errors=True)  # what a killed writer left
                temporary.mkdir(parents=True)
                yield temporary
                temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a folder. Only the process that has its lock may do so."""
    for left in folder.glob(f"{TEMPORARY}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
