"""CRC-8 of bytes: it finds every flipped bit, and every burst of up to eight."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrvqvae.utils.compiled import compiled

_POLYNOMIAL = 0x1D  # x^8 + x^4 + x^3 + x^2 + 1, primitive: two flipped bits less than 255 apart are found as well


def _byte(value: int) -> int:
    for _ in range(8):
        value = (value << 1) ^ (_POLYNOMIAL if value & 0x80 else 0)
    return value & 0xFF


_TABLE = np.array([_byte(value) for value in range(256)], np.uint8)


def crc8(content: bytes | NDArray[np.uint8], register: int = 0) -> int:
    """The register after these bytes, the first bit of each first; 0 in the beginning."""
    return int(_register(np.frombuffer(content, np.uint8), register))


@compiled(error_model="numpy", boundscheck=False)
def _register(content: Any, register: Any) -> Any:
    for byte in content:
        register = np.int64(_TABLE[(register ^ np.int64(byte)) & 0xFF])
    return register
