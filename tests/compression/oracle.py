"""docs/format.md in plain Python, slow and written apart: the frequencies, and the encoder with whole numbers."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
POWERS = [int(one) for one in re.search(r"P\[i\] is .*?```\n(.*?)```", PAGE, re.DOTALL)[1].split()]  # type: ignore[index]

Maps = list[list[list[int]]]


def encoded(symbols: Sequence[int], frequencies: Callable[[int], Sequence[int]]) -> bytes:
    """Symbols as bytes. `low` is one whole number as long as the stream, so that nothing is carried."""
    low, width, shifted = 0, 1 << 48, 0
    for number, symbol in enumerate(symbols):
        counts = frequencies(number)
        part = width // sum(counts)
        low += part * sum(counts[:symbol])
        width = part * counts[symbol]
        while width <= 1 << 40:
            low, width, shifted = low << 8, width << 8, shifted + 1
    for number in range(7):
        step = 1 << (48 - 8 * number)
        value = -(-low // step) * step
        if value + step <= low + width:
            return (value >> (48 - 8 * number)).to_bytes(shifted + number, "big")
    raise AssertionError("six bytes are always enough")


class TablesFile:
    """A file of tables."""

    def __init__(self, content: bytes) -> None:
        assert content[:8] == b"HRVQTAB1"
        length = int.from_bytes(content[8:12], "little")
        self.about = json.loads(content[12 : 12 + length])
        self.levels: list[Any] = []
        body, at = zlib.decompress(content[12 + length :]), 0
        for level, about in enumerate(self.about["levels"]):
            self.levels.append(about)
            if about is not None:
                rows = sum(self.values(level, group) + 1 for group, _, _ in about["features"]) + 256
                sets = self.values(level, about["selecting"]) if about["selecting"] >= 0 else 1
                symbols, hidden = self.about["symbols"][level], about["hidden"]
                for name, kind, shape in (
                    ("table", "<i1", (rows, hidden)), ("bias", "<i4", (hidden,)),
                    ("weights", "<i2", (sets, symbols, hidden)), ("offsets", "<i4", (sets, symbols)),
                ):  # fmt: skip
                    array = np.frombuffer(body, kind, math.prod(shape), at)
                    at += array.nbytes
                    about[name] = array.reshape(shape).tolist()
        assert body[at:] == zlib.crc32(content[12 : 12 + length]).to_bytes(4, "little")

    def values(self, level: int, group: int) -> int:
        first, last = self.about["levels"][level]["groups"][group]
        return math.prod(self.about["symbols"][first : last + 1])

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        rule = self.about["geometry"]
        rows, columns = (math.ceil((side + rule["margin"]) / rule["unit"]) for side in (height, width))
        return [(times * rows, times * columns) for times in rule["times"]]

    def _value(self, level: int, group: int, grids: Any, codes: Maps, y: int, x: int) -> int:
        """The value of a group at a row and column of its grid."""
        first, last = self.about["levels"][level]["groups"][group]
        height, width = grids[last]
        if not (0 <= y < height and 0 <= x < width):
            return self.values(level, group)
        value = 0
        for one in range(first, last + 1):
            code = codes[one][y * grids[one][0] // height][x * grids[one][1] // width]
            value = value * self.about["symbols"][one] + code
        return value

    def frequencies(self, level: int, grids: Any, codes: Maps, y: int, x: int) -> list[int]:
        about, symbols = self.about["levels"][level], self.about["symbols"][level]
        if about is None:
            return [1] * symbols
        height, width = grids[level]

        def at(group: int, dy: int, dx: int) -> int:
            rows, columns = grids[about["groups"][group][1]]
            return self._value(level, group, grids, codes, y * rows // height + dy, x * columns // width + dx)

        rows, start = [], 0
        for group, dy, dx in about["features"]:
            rows.append(start + at(group, dy, dx))
            start += self.values(level, group) + 1
        rows.append(start + 16 * (16 * y // height) + 16 * x // width)
        chosen = at(about["selecting"], 0, 0) if about["selecting"] >= 0 else 0
        hidden = [
            max(0, about["bias"][h] + sum(about["table"][row][h] for row in rows)) for h in range(about["hidden"])
        ]
        scores = [
            about["offsets"][chosen][k] + sum(w * u for w, u in zip(about["weights"][chosen][k], hidden, strict=True))
            for k in range(symbols)
        ]
        below = [(max(scores) - score) // 2 ** about["shift"] for score in scores]
        return [1 + (POWERS[t % 64] // 2 ** (t // 64) if t < 17 * 64 else 0) for t in below]
