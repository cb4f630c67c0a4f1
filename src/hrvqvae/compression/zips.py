"""A zip of files of codes: each entry is a whole .hrv file with a CRC-32, without packing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

Write = Callable[[str, bytes], None]
"""Takes the name and the content of a file."""


def is_zip(path: Path) -> bool:
    """Return whether a path has the name of a zip."""
    return path.suffix.lower() == SUFFIX


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
    """Yield the name and the content of each file of codes (.hrv) in a zip; None if it is damaged.

    An entry that would unpack to more than 2^16 bytes plus 64 per byte in the zip counts as
    damaged.

    Raises OSError, and DamagedFileError if the zip can't be opened or holds no file of codes.
    """
    with path.open("rb") as stream:
        try:
            opened = ZipFile(stream)
        except Exception as error:  # `ZipFile` raises errors of many types
            raise DamagedFileError(f"{path} is no zip, or it is damaged: {error}") from error
        entries = [entry for entry in opened.infolist() if holds_codes(entry.filename)]
        if not entries:
            raise DamagedFileError(f"{path} has no files of codes (.hrv)")
        if sum(entry.compress_size for entry in entries) > path.stat().st_size:
            raise DamagedFileError(f"{path} is damaged: its entries share bytes")
        for entry in entries:
            yield entry.filename, _read_entry(opened, entry)


def holds_codes(name: str) -> bool:
    """Return whether an entry of this name is a file of codes."""
    # "._x.hrv" in a zip of macOS holds attributes of x.hrv
    return name.lower().endswith(hrv.SUFFIX) and not name.rpartition("/")[2].startswith("._")


def _read_entry(opened: ZipFile, entry: ZipInfo) -> bytes | None:
    """Return the content of an entry; None if it is damaged, encrypted or too large."""
    if entry.file_size > _MOST_BYTES + _MOST_BYTES_PER_BYTE * entry.compress_size:
        return None
    try:
        return opened.read(entry) or None  # no file of codes is empty
    except Exception:  # as for `ZipFile`
        return None
