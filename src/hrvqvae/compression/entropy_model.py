"""The entropy model of a trained model, and the file of an entropy model, tables.hrvt
(docs/format.md).
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hrvqvae.compression.levels import Layout
from hrvqvae.compression.network import Contexts, EntropyNetwork
from hrvqvae.config import Geometry, Grid
from hrvqvae.utils.errors import DamagedFileError

MAGIC = b"HRVQTAB1"
MAGIC_2 = b"HRVQTAB2"  # with networks of flags
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
    # of the flags that tell where positions stop, None at the first level; () if no position may
    stops: tuple[EntropyNetwork | None, ...] = ()

    @cached_property
    def first_content(self) -> bytes:
        """The bytes of version 1 of the entropy model's file, which has no stops, as they were read
        or newly written.
        """
        header = {
            "name": self.name,
            "model": self.model,
            "geometry": self.geometry._asdict(),
            "symbols": self.symbols,
        }
        return MAGIC + _pack(header, self.networks or [None] * len(self.symbols))

    @cached_property
    def content(self) -> bytes:
        """The bytes of the entropy model's file. With stops, it begins with version 1 of the file,
        whose fingerprint stays.
        """
        if not self.stops:
            return self.first_content
        length = len(self.first_content).to_bytes(4, "little")
        return MAGIC_2 + length + self.first_content + _pack({}, self.stops)

    @cached_property
    def bare(self) -> EntropyModel:
        """The same entropy model without networks."""
        return replace(self, networks=(), stops=())

    @cached_property
    def fingerprint(self) -> bytes:
        """The first bytes of the SHA-256 of `first_content`, or of the digest `model` if no
        networks were fitted.
        """
        digest = bytes.fromhex(self.model)
        if self.networks:
            digest = hashlib.sha256(self.first_content).digest()
        return digest[:FINGERPRINT_BYTES]

    @cached_property
    def stop_fingerprint(self) -> bytes:
        """The first bytes of the SHA-256 of `content`, for files in which positions stop."""
        return hashlib.sha256(self.content).digest()[:FINGERPRINT_BYTES]

    def with_stops(self, stops: tuple[EntropyNetwork | None, ...]) -> EntropyModel:
        """Return this entropy model with networks of flags. The fingerprint of version 1 stays."""
        model = replace(self, stops=stops)
        vars(model)["first_content"] = self.first_content
        return model

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


def _pack(header: dict[str, Any], networks: Sequence[EntropyNetwork | None]) -> bytes:
    """Return a header and networks as bytes: length of the header, header, compressed body."""
    levels = list[dict[str, Any] | None]()
    body = bytearray()
    for network in networks:
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
    text = json.dumps({**header, "levels": levels}, separators=(",", ":")).encode()
    body += zlib.crc32(text).to_bytes(_CHECK_BYTES, "little")
    return len(text).to_bytes(4, "little") + text + zlib.compress(body, 9)


def _unpack(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the body that `_pack` wrote. Raises any error if they are damaged."""
    length = int.from_bytes(content[:4], "little")
    text = content[4 : 4 + length]
    unpack = zlib.decompressobj()
    most_bytes = _MOST_BODY + _MOST_BODY_PER_BYTE * len(content)
    body = unpack.decompress(content[4 + length :], most_bytes)
    check = zlib.crc32(text).to_bytes(_CHECK_BYTES, "little")
    if not unpack.eof or unpack.unused_data or body[-_CHECK_BYTES:] != check:
        raise ValueError("its length or its checksum is wrong")
    return dict(json.loads(text.decode())), body[:-_CHECK_BYTES]


def read_entropy_model(content: bytes, name: str = "the entropy model") -> EntropyModel:
    """Return the entropy model of a file's bytes. Raises DamagedFileError for another kind of file
    or a damaged one.
    """
    first = content
    rest = None
    if content[:8] == MAGIC_2:
        end = 12 + int.from_bytes(content[8:12], "little")
        first = content[12:end]
        rest = content[end:]
    if first[:8] != MAGIC:
        raise DamagedFileError(f"{name} is no entropy model (tables.hrvt) of this version")
    try:
        entropy_model = _parse(*_unpack(first[8:]))
        # The cached properties are set: another zlib may write other bytes, with another
        # fingerprint.
        vars(entropy_model)["first_content"] = first
        if rest is not None:
            header, body = _unpack(rest)
            networks = _parse_networks(header["levels"], body, entropy_model.symbols, True)
            if networks[0] or not all(networks[1:]):
                raise ValueError("a level has no network of its flags")
            if len(set(entropy_model.geometry.times)) > 1:
                raise ValueError("its levels have several grids")
            entropy_model = entropy_model.with_stops(networks)
    except Exception as error:  # of many types
        raise DamagedFileError(f"{name} is damaged: {error}") from error

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
    if min(unit, *times, *symbols) < 1 or margin < 0:
        raise ValueError("a number of its header is too small")
    if len(symbols) != len(times):
        raise ValueError("its header has several numbers of levels")
    networks = _parse_networks(header["levels"], body, symbols, False)
    return EntropyModel(str(header["name"]), header["model"], geometry, symbols, networks)


def _parse_networks(
    entries: Sequence[Any], body: bytes, symbols: Sequence[int], of_flags: bool
) -> tuple[EntropyNetwork | None, ...]:
    """Return the networks of the levels, None where a level has none. Raises any error if they are
    damaged.
    """
    if len(entries) != len(symbols):
        raise ValueError("its header has several numbers of levels")
    networks = list[EntropyNetwork | None]()
    offset = 0
    for level, entry in enumerate(entries):
        if entry is None:
            networks.append(None)
            continue
        groups = tuple(map(tuple, entry["groups"]))
        features = tuple(map(tuple, entry["features"]))
        known = tuple(symbols[: level + 1])
        contexts = Contexts(known, groups, features, entry["selecting"], of_flags)
        hidden = entry["hidden"]
        shift = entry["shift"]
        if not 0 <= shift < 31:
            raise ValueError("the shift of a network is not from 0 to 30")
        sets_shape = contexts.sets, contexts.num_symbols
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
    return tuple(networks)
