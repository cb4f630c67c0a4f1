"""The entropy model of a trained model, and the file of an entropy model, tables.hrvt
(docs/format.md).
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hrvqvae.compression.levels import Layout
from hrvqvae.compression.network import Contexts, EntropyNetwork
from hrvqvae.config import Geometry, Grid
from hrvqvae.utils.errors import DamagedFileError

MAGIC = b"HRVQTAB1"
MOST_SYMBOLS = 4096  # per code of a level with a network
# per image
MOST_PIXELS = 1 << 26
_MOST_CODES = 1 << 27
# the arrays may unpack to so many bytes, plus so many per byte of the file
_MOST_BODY = 1 << 22
_MOST_BODY_PER_BYTE = 8
_CHECK_BYTES = 4
FINGERPRINT_BYTES = 3
_ARRAY_TYPES = (("table", "<i1"), ("bias", "<i4"), ("weights", "<i2"), ("offsets", "<i4"))


@dataclass(frozen=True)
class EntropyModel:
    """The entropy model of a trained model, with which codes are encoded and decoded."""

    name: str  # of the trained model, for messages
    model: str  # hexadecimal digest of the trained model's weights
    geometry: Geometry  # computes the grids of the levels from the size of an image
    symbols: tuple[int, ...]  # values per code of each level, coarse first
    # per level, None where all symbols are equally frequent; () if none was fitted
    networks: tuple[EntropyNetwork | None, ...] = ()

    @cached_property
    def content(self) -> bytes:
        """The bytes of the entropy model's file, as they were read or newly written."""
        levels = list[dict[str, Any] | None]()
        body = bytearray()
        for network in self.networks or [None] * len(self.symbols):
            if network is None:
                levels.append(None)
                continue
            contexts = network.contexts
            levels.append(
                {
                    "groups": contexts.groups,
                    "features": contexts.features,
                    "selecting": contexts.selecting,
                    "hidden": len(network.bias),
                    "shift": network.shift,
                }
            )
            for name, dtype in _ARRAY_TYPES:
                body += getattr(network, name).astype(dtype).tobytes()
        header = {
            "name": self.name,
            "model": self.model,
            "geometry": self.geometry._asdict(),
            "symbols": self.symbols,
            "levels": levels,
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        body += zlib.crc32(text).to_bytes(_CHECK_BYTES, "little")
        return MAGIC + len(text).to_bytes(4, "little") + text + zlib.compress(body, 9)

    @cached_property
    def bare(self) -> EntropyModel:
        """The same entropy model without networks."""
        return replace(self, networks=())

    @cached_property
    def fingerprint(self) -> bytes:
        """The first bytes of the SHA-256 of `content`, or of the digest `model` if no networks were
        fitted.
        """
        digest = bytes.fromhex(self.model)
        if self.networks:
            digest = hashlib.sha256(self.content).digest()
        return digest[:FINGERPRINT_BYTES]

    def layout(self, size: Grid) -> Layout:
        """Return the layout of the codes of an image.

        Raises DamagedFileError if it has too many codes.
        """
        grids = self.geometry.grids(*size)
        if sum(height * width for height, width in grids) > _MOST_CODES:
            raise DamagedFileError(
                f"an image of {size[0]}x{size[1]} pixels has more than {_MOST_CODES} codes"
            )
        return Layout(grids, self.symbols)


def read_entropy_model(content: bytes, name: str = "the entropy model") -> EntropyModel:
    """Return the entropy model of a file's bytes. Raises DamagedFileError for another kind of file
    or a damaged one.
    """
    if content[:8] != MAGIC:
        raise DamagedFileError(f"{name} is no entropy model (tables.hrvt) of this version")
    try:
        length = int.from_bytes(content[8:12], "little")
        text = content[12 : 12 + length]
        unpack = zlib.decompressobj()
        most_bytes = _MOST_BODY + _MOST_BODY_PER_BYTE * len(content)
        body = unpack.decompress(content[12 + length :], most_bytes)
        check = zlib.crc32(text).to_bytes(_CHECK_BYTES, "little")
        if not unpack.eof or unpack.unused_data or body[-_CHECK_BYTES:] != check:
            raise ValueError("its length or its checksum is wrong")
        entropy_model = _parse(json.loads(text.decode()), body[:-_CHECK_BYTES])
    except Exception as error:  # of many types
        raise DamagedFileError(f"{name} is damaged: {error}") from error

    # The cached property is set: another zlib may write other bytes, with another fingerprint.
    vars(entropy_model)["content"] = content
    return entropy_model


def _parse(header: dict[str, Any], body: bytes) -> EntropyModel:
    """Return the entropy model of a header and the bytes of its arrays. Raises any error if the
    file is damaged.
    """
    bytes.fromhex(header["model"])  # raises ValueError
    symbols = tuple(header["symbols"])
    unit, margin, times = (header["geometry"][name] for name in Geometry._fields)
    geometry = Geometry(unit, margin, tuple(times))
    levels = header["levels"]
    if min(unit, *times, *symbols) < 1 or margin < 0:
        raise ValueError("a number of its header is too small")
    if not len(symbols) == len(times) == len(levels):
        raise ValueError("its header has several numbers of levels")
    networks = list[EntropyNetwork | None]()
    offset = 0
    for level, entry in enumerate(levels):
        if entry is None:
            networks.append(None)
            continue
        groups = tuple(map(tuple, entry["groups"]))
        features = tuple(map(tuple, entry["features"]))
        contexts = Contexts(symbols[: level + 1], groups, features, entry["selecting"])
        hidden = entry["hidden"]
        shift = entry["shift"]
        if not 0 <= shift < 31:
            raise ValueError("the shift of a network is not from 0 to 30")
        sets_shape = contexts.sets, symbols[level]
        shapes = {
            "table": (contexts.rows, hidden),
            "bias": (hidden,),
            "weights": (*sets_shape, hidden),
            "offsets": sets_shape,
        }
        arrays = dict[str, Any]()
        for name, dtype in _ARRAY_TYPES:
            shape = shapes[name]
            array = np.frombuffer(body, dtype, math.prod(shape), offset).reshape(shape)
            offset += array.nbytes
            arrays[name] = array.astype(np.dtype(dtype).newbyteorder("="))  # as numba needs
        networks.append(EntropyNetwork(contexts, **arrays, shift=shift))
    if offset != len(body):
        raise ValueError("it is longer than its header says")
    name = str(header["name"])
    return EntropyModel(name, header["model"], geometry, symbols, tuple(networks))
