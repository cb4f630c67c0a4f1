"""A zip of files of codes: each entry is a whole .hrv file with a CRC-32, without packing."""

import io
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from zipfile import ZipFile, ZipInfo

from hrvqvae.compression import hrv
from hrvqvae.utils.errors import DamagedFileError, explain_write_errors
from hrvqvae.utils.outputs import replace_file

SUFFIX = ".zip"
# an entry may unpack to so many bytes, plus so many per byte in the zip
_MOST_BYTES = 1 << 16
_MOST_BYTES_PER_BYTE = 64
_PERMISSIONS = 0o644 << 16

Read = Callable[[], bytes]
"""Returns the content of an entry. Raises DamagedFileError."""


def write_zip(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write a zip of files, given by name and content. After an error, no zip is written."""
    with (
        explain_write_errors(path),
        replace_file(path) as temporary,
        ZipFile(temporary, "x") as opened,
    ):
        for name, content in files:
            entry = ZipInfo(name)  # without the time, so that equal files make equal zips
            entry.external_attr = _PERMISSIONS
            opened.writestr(entry, content)


def open_zip(path: Path) -> list[tuple[str, Read]]:
    """Return the name of each file of codes (.hrv) in a zip, and a function that reads it.

    Raises OSError, and DamagedFileError if the zip can't be opened or holds no file of codes.
    """
    content = path.read_bytes()
    try:
        opened = ZipFile(io.BytesIO(content))
    except Exception as error:  # `ZipFile` raises errors of many types
        raise DamagedFileError(f"{path} is no zip, or it is damaged: {error}") from error
    entries = [entry for entry in opened.infolist() if _holds_codes(entry.filename)]
    if not entries:
        raise DamagedFileError(f"{path} has no files of codes (.hrv)")
    if sum(entry.compress_size for entry in entries) > len(content):
        raise DamagedFileError(f"{path} is damaged: its entries share bytes")
    return [(entry.filename, partial(_read_entry, path, opened, entry)) for entry in entries]


def _holds_codes(name: str) -> bool:
    # "._x.hrv" in a zip of macOS holds attributes of x.hrv
    return name.lower().endswith(hrv.SUFFIX) and not name.rpartition("/")[2].startswith("._")


def _read_entry(path: Path, opened: ZipFile, entry: ZipInfo) -> bytes:
    place = f"{path}: {entry.filename}"
    if entry.file_size > _MOST_BYTES + _MOST_BYTES_PER_BYTE * entry.compress_size:
        raise DamagedFileError(f"{place} unpacks to too many bytes")
    try:
        return opened.read(entry)
    except Exception as error:  # as for `ZipFile`
        raise DamagedFileError(f"{place} is damaged") from error
