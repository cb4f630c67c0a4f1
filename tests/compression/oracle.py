"""docs/format.md in plain Python, slow and written apart: its numbers, and the encoder with whole numbers."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
POWERS = [int(one) for one in re.search(r"P\[i\] is .*?```\n(.*?)```", PAGE, re.DOTALL)[1].split()]  # type: ignore[index]


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
