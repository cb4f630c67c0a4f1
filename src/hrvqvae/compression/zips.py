"""A zip of files of codes: each entry is a whole .hrv file with a CRC-32, stored without packing.

The directory of a zip lies at its end. If it is damaged or cut off, entries are found by the header
before each of them.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from hrvqvae.compression import hrv
from hrvqvae.utils.errors import DamagedFileError, InputError, explain_write_errors
from hrvqvae.utils.outputs import replace_file

SUFFIX = ".zip"
OLD_SUFFIX = ".hrva"  # of archives of version 1.0.0
# an entry may unpack to so many bytes, plus so many per byte in the zip
_MOST_BYTES = 1 << 16
_MOST_BYTES_PER_BYTE = 64
# APPNOTE.TXT, 4.3.7: signature, method, CRC-32, bytes in the zip, lengths of name and extra field;
# skipped are version, flags, time and date, and unpacked bytes
_HEADER = struct.Struct("<4s4xH4xII4xHH")
_HEADER_SIGNATURE = b"PK\3\4"
_DIRECTORY_SIGNATURE = b"PK\1\2"  # of each entry in the directory
_END_SIGNATURES = (b"PK\5\6", b"PK\6\6")  # of its end record, the second for large zips
_ENTRY_BYTES = 46  # of an entry in the directory, before name, extra field and comment
_ENTRY_LENGTHS = struct.Struct("<HHH")  # of these three
_SIGNATURES = re.compile(_HEADER_SIGNATURE + b"|" + _DIRECTORY_SIGNATURE)
_IS_UTF_8 = 1 << 11  # of an entry's flags: of its name
_PERMISSIONS = 0o644 << 16
_DIRECTORY = "the directory at its end"  # in the place of a name, for messages

Write = Callable[[str, bytes], None]
"""Takes the name and the content of a file."""


def is_zip(path: Path) -> bool:
    """Return whether a path has the name of a zip. Raises InputError for an archive of 1.0.0."""
    suffix = path.suffix.lower()
    if suffix == OLD_SUFFIX:
        raise InputError(f"{path}: archives are zips now (X.zip); hrvqvae 1.0.0 reads X.hrva")
    return suffix == SUFFIX


@contextmanager
def create_zip(path: Path) -> Iterator[Write]:
    """Yield a function that adds a file to a new zip. After an error, no zip is written."""
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary, ZipFile(temporary, "x") as opened:

            def write(name: str, content: bytes) -> None:
                entry = ZipInfo(name)  # without the time, so that equal files make equal zips
                entry.external_attr = _PERMISSIONS
                opened.writestr(entry, content)

            yield write


def read_zip(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name and the content of each file of codes (.hrv) in a zip; None if it is lost.

    An entry is lost if it does not match its CRC-32, is encrypted, shares bytes with the next
    entry, or unpacks to more than 2^16 bytes plus 64 per byte in the zip. The directory counts as
    an entry if it is lost.

    Raises OSError, and DamagedFileError if nothing can be read.
    """
    names = set[str]()  # of files that were read
    suspects = list[str]()  # names of lost entries, of any suffix: a damaged name may have another
    entries = list[ZipInfo]()
    is_directory_whole = False
    with path.open("rb") as stream:
        with suppress(Exception):  # for a damaged file, `ZipFile` raises errors of many types
            opened = ZipFile(stream)
            entries = opened.infolist()

            # `ZipFile` accepts a directory that has lost entries at its end
            stream.seek(opened.start_dir)
            is_directory_whole = 0 < _count_entries(stream.read()) == len(entries)

        # An entry has the bytes up to the next one. A second entry at its offset shares them, and
        # has no room.
        offsets = sorted({entry.header_offset for entry in entries})
        rooms = {begin: end - begin for begin, end in pairwise([*offsets, path.stat().st_size])}
        for entry in entries:
            encoding = "utf-8" if entry.flag_bits & _IS_UTF_8 else "cp437"
            name = _decode_name(entry.filename.encode(encoding))
            content = _read_entry(opened, entry, rooms.pop(entry.header_offset, 0))
            if content is None:
                suspects.append(name)
            elif holds_codes(name):
                names.add(name)
                yield name, content

        # entries that the directory does not name, or does not name right
        if suspects or not is_directory_whole:
            for name, content in _find_entries(stream):
                if content is None:
                    suspects.append(name)
                elif name not in names:
                    names.add(name)
                    yield name, content
    if not names and not suspects:
        raise DamagedFileError(f"{path} is no zip of files of codes (.hrv), or it is damaged")
    for name in dict.fromkeys(suspects):
        if name not in names:
            yield name, None
    if not is_directory_whole:
        yield _DIRECTORY, None


def _decode_name(name: bytes) -> str:
    """Decode a name as UTF-8, or else as code page 437. Few tools tell which of them they write."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("cp437")


def _count_entries(directory: bytes) -> int:
    """Return the number of entries of a directory, or 0 if they do not end at its end record."""
    count = at = 0
    while directory.startswith(_DIRECTORY_SIGNATURE, at):
        at += _ENTRY_BYTES + sum(_ENTRY_LENGTHS.unpack_from(directory, at + 28))
        count += 1
    return count if directory.startswith(_END_SIGNATURES, at) else 0


def holds_codes(name: str) -> bool:
    """Return whether an entry of this name is a file of codes."""
    # "._x.hrv" in a zip of macOS holds attributes of x.hrv
    return name.lower().endswith(hrv.SUFFIX) and not name.rpartition("/")[2].startswith("._")


def _read_entry(opened: ZipFile, entry: ZipInfo, room: int) -> bytes | None:
    """Return the content of an entry; None if it is lost, b"" if it is sound but no file of codes.

    `room` is the number of bytes up to the next entry.
    """
    most = _MOST_BYTES + _MOST_BYTES_PER_BYTE * entry.compress_size
    if holds_codes(entry.filename):
        known = entry.compress_type in (ZIP_STORED, ZIP_DEFLATED)
        if not known or entry.compress_size > room or entry.file_size > most:
            return None
    try:
        with opened.open(entry) as stream:  # compares the name with that in the entry's header
            if not holds_codes(entry.filename):
                return b""  # so its name is not a damaged name of a file of codes
            # no more than the limit is unpacked; the byte more checks the CRC-32 at the end
            content = stream.read(entry.file_size + 1)
            return content or None  # no file of codes is empty
    except (NotImplementedError, RuntimeError):  # packed in a way that Python lacks, or encrypted
        return None if holds_codes(entry.filename) else b""
    except Exception:  # as for `ZipFile`
        return None


def _find_entries(stream: BinaryIO) -> Iterator[tuple[str, bytes | None]]:
    """Yield entries that are stored without packing, each found by its header."""
    if not stream.seek(0, 2):
        return  # an empty file can't be mapped
    with mmap(stream.fileno(), 0, access=ACCESS_READ) as content:
        # an entry ends at the next entry, or at the directory
        begins = [match.start() for match in _SIGNATURES.finditer(content)]
        for begin, end in pairwise([*begins, len(content)]):
            if end - begin < _HEADER.size:
                continue
            signature, method, check, size, name_length, extra_length = _HEADER.unpack_from(
                content, begin
            )
            name_begin = begin + _HEADER.size
            name_end = name_begin + name_length
            name = _decode_name(content[name_begin:name_end])
            if signature != _HEADER_SIGNATURE or not holds_codes(name):
                continue
            first = name_end + extra_length
            stored = content[first : min(first + size, end)]
            is_whole = method == ZIP_STORED and size and zlib.crc32(stored) == check
            yield name, stored if is_whole else None
