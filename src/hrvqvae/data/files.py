"""File formats of published data sets: IDX (MNIST), and pickles that hold numpy arrays alone (CIFAR10)."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hrvqvae.utils.errors import DamagedFileError


def unpacked(path: Path) -> bytes:
    """Content of a file, decompressed where its name ends in .gz.

    Raises:
        DamagedFileError: it can't be read or decompressed.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); get it again") from error


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Array of bytes in an IDX file, plain or gzip.

    Raises:
        DamagedFileError: it is cut short, or not an IDX file of bytes.
    """
    raw = unpacked(path)
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DamagedFileError(f"{path} is not an IDX file of bytes; delete it and get it again")
    num_dims = raw[3]
    shape = struct.unpack_from(f">{num_dims}I", raw, 4) if len(raw) >= 4 + 4 * num_dims else ()
    array = np.frombuffer(raw, np.uint8, offset=min(len(raw), 4 + 4 * num_dims)).copy()
    if not shape or array.size != int(np.prod(shape)):
        raise DamagedFileError(
            f"{path} is cut short ({array.size} bytes for shape {shape}); delete it and get it again"
        )
    return array.reshape(shape)


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """An array of bytes as an IDX file, uncompressed: the form that published checksums are of."""
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def gzip_bytes(content: bytes) -> bytes:
    """gzip without a time stamp, so that equal content gives equal files."""
    return gzip.compress(content, compresslevel=6, mtime=0)


def digest(content: bytes, kind: str) -> str:
    """Hexadecimal md5 or sha256, as the checksums of data sets are published."""
    return hashlib.new(kind, content, usedforsecurity=False).hexdigest()


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy arrays and plain containers; any other class in the file is an error, and none of it runs."""

    _modules = ("numpy.core.multiarray", "numpy._core.multiarray")

    def find_class(self, module: str, name: str) -> Any:
        if module in self._modules and name == "_reconstruct":
            return np.ndarray.__reduce__(np.empty(0))[0]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, coding: text.encode("latin1")
        raise DamagedFileError(f"the file holds {module}.{name}; only numpy arrays are admitted")


def read_arrays(stream: BinaryIO | bytes) -> Any:
    """Object of a pickle that may hold numpy arrays, numbers, strings and containers, nothing else.

    Raises:
        DamagedFileError: it holds anything else, or is cut short.
    """
    source = io.BytesIO(stream) if isinstance(stream, bytes) else stream
    try:
        return _ArraysOnly(source, encoding="latin1").load()
    except DamagedFileError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise DamagedFileError(f"the file of arrays is damaged: {error}") from error
