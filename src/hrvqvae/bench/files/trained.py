"""Files of a trained model of this package, at every number of levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hrvqvae.bench.files.contract import Count, FileCodec, Images, Shape
from hrvqvae.runs.folder import RunFolder
from hrvqvae.runs.locating import locate
from hrvqvae.runs.trained import TrainedModel


@dataclass(frozen=True)
class Levels:
    """A file of levels 1 to `number`."""

    number: int

    def __str__(self) -> str:
        return "level 1" if self.number == 1 else f"levels 1-{self.number}"


class TrainedFiles(FileCodec):
    """Files of codes (docs/format.md), one setting for each prefix of the levels that the model decodes."""

    learned = True

    def __init__(self, run: str | Path) -> None:
        """From a run folder, a weights file, or the name of a model inside the package. Raises InputError."""
        self.model = TrainedModel(run)
        self.counts = (Count(f"{self.model.config.model.system} {Path(run).name}"),)
        self.settings = tuple(Levels(number) for number in self.model.autoencoder.prefixes)
        needed = (locate(run), RunFolder(locate(run).parent).tables)
        self.model_bytes = sum(path.stat().st_size for path in needed if path.is_file())

    def encode(self, images: Images, setting: Levels) -> list[bytes]:
        return self.model.compress(torch.from_numpy(images), levels=setting.number)

    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        decoded = torch.stack(self.model.decompress(files)).clamp(0, 1)
        pixels: Images = (decoded * 255).round().to(torch.uint8).numpy()
        return pixels
