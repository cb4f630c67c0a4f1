"""The entropy model of a trained model, and its file, tables.hrvt, which docs/format.md states."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.compression.levels import Layout
from hrvqvae.compression.network import Contexts, EntropyNetwork
from hrvqvae.config import Geometry, Grid
from hrvqvae.utils.errors import DamagedFileError, printable

MAGIC = b"HRVQTAB1"
MOST_SYMBOLS = 4096  # of a level that has a network
MOST_CODES = 1 << 27  # of an image
_MOST_BYTES = 1 << 28
_BODY, _BODY_PER_BYTE = 1 << 22, 8  # most bytes of the unpacked arrays, by the bytes of the file
_CHECK = 4
FINGERPRINT = 3
_KINDS = (("table", "<i1"), ("bias", "<i4"), ("weights", "<i2"), ("offsets", "<i4"))


@dataclass(frozen=True)
class EntropyModel:
    """The entropy model of a trained model, which turns its codes into bytes and back."""

    name: str  # of the trained model, for messages
    model: str  # the digest of its weights, hexadecimal
    geometry: Geometry  # grids of the levels by image size
    symbols: tuple[int, ...]  # values per code of each level, coarse first
    networks: tuple[EntropyNetwork | None, ...] = ()  # None: all symbols have equal frequencies; empty: none was fitted

    @cached_property
    def content(self) -> bytes:
        """The bytes of its file; a model that was read from a file has the bytes of that file."""
        networks = self.networks or (None,) * len(self.symbols)
        header = {
            "name": self.name,
            "model": self.model,
            "geometry": {"unit": self.geometry.unit, "margin": self.geometry.margin, "times": self.geometry.times},
            "symbols": self.symbols,
            "levels": [
                network and {
                    "groups": network.contexts.groups, "features": network.contexts.features,
                    "selecting": network.contexts.selecting, "hidden": len(network.bias), "shift": network.shift,
                }
                for network in networks
            ],
        }  # fmt: skip
        text = json.dumps(header, separators=(",", ":")).encode()
        parts = [getattr(network, name).astype(kind) for network in networks if network for name, kind in _KINDS]
        check = zlib.crc32(text).to_bytes(_CHECK, "little")
        body = zlib.compress(b"".join(part.tobytes() for part in parts) + check, 9)
        return MAGIC + len(text).to_bytes(4, "little") + text + body

    def same_codes(self, other: EntropyModel) -> bool:
        """Return whether both turn the same bytes into the same codes of the same model."""
        if any(self.networks) or any(other.networks):
            return self.content == other.content
        return (self.model, self.geometry, self.symbols) == (other.model, other.geometry, other.symbols)

    @cached_property
    def bare(self) -> EntropyModel:
        """The same entropy model without networks."""
        return dataclasses.replace(self, networks=())

    @cached_property
    def fingerprint(self) -> bytes:
        """The three bytes that every file has, of the digest of `content` or, without networks, of the weights."""
        digest = hashlib.sha256(self.content).digest() if self.networks else bytes.fromhex(self.model)
        return digest[:FINGERPRINT]

    def network(self, level: int) -> EntropyNetwork | None:
        """Return the network of a level, or None."""
        return self.networks[level] if self.networks else None

    def layout(self, size: Grid) -> Layout:
        """Return the layout of the codes of an image of that size. Raises DamagedFileError if there are too many."""
        grids = self.geometry.grids(*size)
        if sum(height * width for height, width in grids) > MOST_CODES:
            raise DamagedFileError(f"an image of {size[0]}x{size[1]} pixels has more than {MOST_CODES} codes")
        return Layout.of(grids, self.symbols)


def read_entropy_model(content: bytes, name: str = "the entropy model") -> EntropyModel:
    """Read an entropy model from the bytes of its file. Raises DamagedFileError if it holds none, or is damaged."""
    try:
        if content[:8] != MAGIC:
            raise DamagedFileError(f"{name} is no entropy model (tables.hrvt) of this version")
        length = int.from_bytes(content[8:12], "little")
        text = content[12 : 12 + length]
        unpack = zlib.decompressobj()
        body = unpack.decompress(content[12 + length :], min(_MOST_BYTES, _BODY + _BODY_PER_BYTE * len(content)))
        if not unpack.eof or unpack.unused_data:
            raise DamagedFileError(f"{name} is damaged: it ends too early, or too late")
        if body[-_CHECK:] != zlib.crc32(text).to_bytes(_CHECK, "little"):
            raise DamagedFileError(f"{name} is damaged: its header does not match its checksum")
        entropy_model = _parsed(json.loads(text.decode()), body[:-_CHECK])
    except DamagedFileError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError, zlib.error) as error:
        raise DamagedFileError(f"{name} is damaged: {' '.join(str(error).split())[:100]}") from error
    vars(entropy_model)["content"] = content  # the digest is of the file, and another zlib may compress otherwise
    return entropy_model


def _parsed(header: dict[str, Any], body: bytes) -> EntropyModel:
    symbols = tuple(int(value) for value in header["symbols"])
    rule = header["geometry"]
    geometry = Geometry(int(rule["unit"]), int(rule["margin"]), tuple(int(value) for value in rule["times"]))
    levels = header["levels"]
    sound = (
        geometry.unit >= 1
        and geometry.margin >= 0
        and all(1 <= value <= 1024 for value in geometry.times)
        and all(1 <= value <= 1 << 24 for value in symbols)
        and re.fullmatch("([0-9a-f]{2}){3,}", header["model"]) is not None
        and 1 <= len(symbols) == len(geometry.times) == len(levels) <= 255
    )
    if not sound or any(about and value > MOST_SYMBOLS for about, value in zip(levels, symbols, strict=True)):
        raise DamagedFileError("the header of the entropy model is not sound")
    networks, place = list[EntropyNetwork | None](), 0
    for level, about in enumerate(levels):
        if about is None:
            networks.append(None)
            continue
        groups = tuple((int(first), int(last)) for first, last in about["groups"])
        features = tuple((int(group), int(dy), int(dx)) for group, dy, dx in about["features"])
        contexts = Contexts(level, symbols[: level + 1], groups, features, int(about["selecting"]))
        hidden, sets = int(about["hidden"]), contexts.sets
        shapes = ((contexts.rows, hidden), (hidden,), (sets, symbols[level], hidden), (sets, symbols[level]))
        arrays = list[NDArray[Any]]()
        for shape, (_, kind) in zip(shapes, _KINDS, strict=True):
            array = np.frombuffer(body, kind, int(np.prod(shape)), place)
            place += array.nbytes
            arrays.append(np.array(array.reshape(shape), np.dtype(kind).newbyteorder("=")))
        networks.append(EntropyNetwork(contexts, arrays[0], arrays[1], arrays[2], arrays[3], int(about["shift"])))
    if place != len(body):
        raise DamagedFileError("the entropy model is longer than its header says")
    return EntropyModel(printable(header["name"]), str(header["model"]), geometry, symbols, tuple(networks))
