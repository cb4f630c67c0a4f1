"""Divide items into lists of limited size, so that memory stays limited."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def slices(items: Any, size: int) -> list[Any]:
    """Return slices of `size` items of a sequence or an array, in order; the last may be
    shorter.
    """
    return [items[start : start + size] for start in range(0, len(items), size)]


def chunk_by_size(items: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Yield the items in order, in lists of at most `most` total size; a larger item is alone."""
    chunk = list[T]()
    filled = 0
    for item in items:
        if chunk and filled + size(item) > most:
            yield chunk
            chunk = []
            filled = 0
        chunk.append(item)
        filled += size(item)
    if chunk:
        yield chunk


def group_by_size(sizes: Sequence[tuple[Any, ...]], max_pixels: int) -> Iterator[list[int]]:
    """Yield the indices of images of equal size, in groups of at most `max_pixels` pixels.

    An image with more pixels is a group of its own. `sizes` holds the height and width of each
    image, and any further values that must be equal in a group.
    """
    by_size: dict[tuple[Any, ...], list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    for (height, width, *_), indices in by_size.items():
        yield from slices(indices, max(1, max_pixels // max(1, height * width)))
