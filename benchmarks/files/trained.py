"""Files of a trained model of this package, by number of levels and effort."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.files.curves import Count, FileCodec, Images, Shape
from hrvqvae.checkpoints.folder import PROGRESSIVE, decoder_folder, open_run
from hrvqvae.model import Model
from hrvqvae.models.single_grid import SingleGridAutoencoder


@dataclass(frozen=True)
class TrainedSetting:
    """The number of levels in a file, and the effort of its codes."""

    levels: int
    effort: int = 0

    def __str__(self) -> str:
        written = "level 1" if self.levels == 1 else f"levels 1-{self.levels}"
        return f"{written}, effort {self.effort}" if self.effort else written


class TrainedFiles(FileCodec):
    """Files of codes (docs/format.md), for each prefix of the levels that the model decodes.

    Each prefix has the usual codes, and those of effort 2 if the model has a single latent grid.
    """

    learned = True

    def __init__(self, run: str | Path) -> None:
        """Load a run folder, a weights file, or a model of the package by name. Raises
        InputError.
        """
        self.model = Model(run)
        self.counts = (Count(f"{self.model.config.model.system} {Path(run).name}"),)
        self.settings = tuple(self._settings())
        folder = open_run(run)
        needed = [folder.model, folder.tables]
        if getattr(self.model.autoencoder, "progressive_decoder", None) is not None:
            needed.append(decoder_folder(folder.path, PROGRESSIVE).model)
        self.model_bytes = sum(path.stat().st_size for path in needed if path.is_file())

    def _settings(self) -> Iterator[TrainedSetting]:
        takes_effort = isinstance(self.model.autoencoder, SingleGridAutoencoder)
        for levels in self.model.autoencoder.prefixes:
            yield TrainedSetting(levels)
            if takes_effort:
                yield TrainedSetting(levels, effort=2)

    def encode(self, images: Images, setting: TrainedSetting) -> list[bytes]:
        pixels = torch.from_numpy(images)
        return self.model.compress(pixels, setting.levels, effort=setting.effort)

    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        decoded = torch.stack(self.model.decompress(files)).clamp(0, 1)
        pixels: Images = (decoded * 255).round().to(torch.uint8).numpy()
        return pixels
