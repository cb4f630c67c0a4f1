"""The file of tables: the integer models of all levels, with what a decoder must know of the model beside them.

    8 bytes     HRVQTAB1
    4 bytes     length of the header, little-endian
    header      JSON (UTF-8): name, model, geometry, symbols, levels
    body        zlib: for each level that has a model: table (int8), bias (int32), weights (int16), offsets (int32),
                row-major, little-endian; in the end the CRC-32 of the header

docs/format.md states it for other decoders.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.contexts import Contexts
from hrvqvae.compression.geometry import Geometry
from hrvqvae.compression.network import Network
from hrvqvae.utils.errors import DamagedFileError

MAGIC = b"HRVQTAB1"
MOST_SYMBOLS = 4096  # of a level that has a model
_MOST_BYTES = 1 << 28
_CHECK = 4
_KINDS = (("table", "<i1"), ("bias", "<i4"), ("weights", "<i2"), ("offsets", "<i4"))


@dataclass(frozen=True)
class Tables:
    """Integer models of all levels.

    Attributes:
        name: of the model, for messages.
        model: the digest of its weights, hexadecimal.
        geometry: grids of the levels by image size.
        symbols: values of a code of each level, coarse first.
        networks: the model of each level; None where every symbol is coded alike.
    """

    name: str
    model: str
    geometry: Geometry
    symbols: tuple[int, ...]
    networks: tuple[Network | None, ...]

    @cached_property
    def content(self) -> bytes:
        """The file."""
        header = {
            "name": self.name,
            "model": self.model,
            "geometry": {"unit": self.geometry.unit, "margin": self.geometry.margin, "times": self.geometry.times},
            "symbols": self.symbols,
            "levels": [None if one is None else _described(one) for one in self.networks],
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        arrays = [getattr(one, name).astype(kind) for one in self.networks if one is not None for name, kind in _KINDS]
        check = zlib.crc32(text).to_bytes(_CHECK, "little")
        body = zlib.compress(b"".join(array.tobytes() for array in arrays) + check, 9)
        return MAGIC + len(text).to_bytes(4, "little") + text + body

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the file."""
        return hashlib.sha256(self.content).digest()


def _described(network: Network) -> dict[str, Any]:
    contexts = network.contexts
    return {
        "groups": contexts.groups, "features": contexts.features, "selecting": contexts.selecting,
        "hidden": len(network.bias), "shift": network.shift,
    }  # fmt: skip


def read_tables(content: bytes, name: str = "the file of tables") -> Tables:
    """The tables in a file.

    Raises:
        DamagedFileError: it holds none, or they are not sound.
    """
    try:
        if content[:8] != MAGIC:
            raise DamagedFileError(f"{name} is no file of tables of this version")
        length = int.from_bytes(content[8:12], "little")
        text = content[12 : 12 + length]
        unpack = zlib.decompressobj()
        body = unpack.decompress(content[12 + length :], _MOST_BYTES)
        if not unpack.eof or unpack.unused_data:
            raise DamagedFileError(f"{name} is damaged: it ends too early, or too late")
        if body[-_CHECK:] != zlib.crc32(text).to_bytes(_CHECK, "little"):
            raise DamagedFileError(f"{name} is damaged: its header does not match its checksum")
        return _tables(json.loads(text.decode()), body[:-_CHECK])
    except DamagedFileError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, zlib.error) as error:
        raise DamagedFileError(f"{name} is damaged: {' '.join(str(error).split())[:100]}") from error


def _tables(header: dict[str, Any], body: bytes) -> Tables:
    symbols = tuple(int(one) for one in header["symbols"])
    rule = header["geometry"]
    geometry = Geometry(int(rule["unit"]), int(rule["margin"]), tuple(int(one) for one in rule["times"]))
    sound = geometry.unit >= 1 and geometry.margin >= 0 and all(1 <= one <= 1024 for one in geometry.times)
    sound = sound and all(1 <= one <= 1 << 24 for one in symbols)
    sound = sound and re.fullmatch("([0-9a-f]{2}){3,}", header["model"]) is not None
    levels = header["levels"]
    sound = sound and 1 <= len(symbols) == len(geometry.times) == len(levels) <= 255
    if not sound or any(about and one > MOST_SYMBOLS for about, one in zip(levels, symbols, strict=True)):
        raise DamagedFileError("the header of the tables is not sound")
    networks, place = list[Network | None](), 0
    for level, about in enumerate(levels):
        if about is None:
            networks.append(None)
            continue
        groups = tuple((int(first), int(last)) for first, last in about["groups"])
        features = tuple((int(group), int(dy), int(dx)) for group, dy, dx in about["features"])
        contexts = Contexts(level, symbols[: level + 1], groups, features, int(about["selecting"]))
        hidden = int(about["hidden"])
        shapes = ((contexts.rows, hidden), (hidden,), (contexts.sets, symbols[level], hidden),
                  (contexts.sets, symbols[level]))  # fmt: skip
        arrays = list[NDArray[Any]]()
        for shape, (_, kind) in zip(shapes, _KINDS, strict=True):
            array = np.frombuffer(body, kind, int(np.prod(shape)), place)
            place += array.nbytes
            arrays.append(np.ascontiguousarray(array.reshape(shape), np.dtype(kind).newbyteorder("=")))
        networks.append(Network(contexts, arrays[0], arrays[1], arrays[2], arrays[3], int(about["shift"])))
    if place != len(body):
        raise DamagedFileError("the tables are longer than their header says")
    return Tables(str(header["name"]), str(header["model"]), geometry, symbols, tuple(networks))
