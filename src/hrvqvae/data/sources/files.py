"""Images that are files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hrvqvae.data.images import opened_file
from hrvqvae.data.sources.base import Source


class FileSource(Source):
    """Image files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        return self.paths[row].name

    def where(self, row: int) -> str:
        return str(self.paths[row])

    def open(self, row: int) -> Image.Image:
        return opened_file(self.paths[row])
