"""Files of a trained model of this package, by number of levels or limit of bytes, and effort."""

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
    """The number of levels in a file or its largest size, and the effort of its codes."""

    levels: int | None
    effort: int = 0
    max_bytes: int | None = None

    def __str__(self) -> str:
        written = "level 1" if self.levels == 1 else f"levels 1-{self.levels}"
        if self.max_bytes:
            written = f"at most {self.max_bytes} bytes"
        return f"{written}, effort {self.effort}" if self.effort else written


class TrainedFiles(FileCodec):
    """Files of codes (docs/format.md), for each prefix of the levels that the model decodes, and
    for limits of bytes if positions may stop.

    Each has the usual codes, and those of effort 2 if the model has a single latent grid.
    """

    learned = True

    def __init__(self, run: str | Path, limits: Sequence[int] = ()) -> None:
        """Load a run folder, or a model of the package by name. Raises InputError."""
        self.model = Model(run)
        self.counts = (Count(f"{self.model.config.model.system} {Path(run).name}"),)
        self.settings = tuple(self._settings(limits))
        folder = open_run(run)
        needed = [folder.model, folder.tables]
        if getattr(self.model.autoencoder, "progressive_decoder", None) is not None:
            needed.append(decoder_folder(folder.path, PROGRESSIVE).model)
        self.model_bytes = sum(path.stat().st_size for path in needed if path.is_file())

    def _settings(self, limits: Sequence[int]) -> Iterator[TrainedSetting]:
        takes_effort = isinstance(self.model.autoencoder, SingleGridAutoencoder)
        for effort in (0, 2) if takes_effort else (0,):
            for levels in self.model.autoencoder.prefixes:
                yield TrainedSetting(levels, effort)
            if self.model.entropy_model.stops:
                for limit in limits:
                    yield TrainedSetting(None, effort, limit)

    def encode(self, images: Images, setting: TrainedSetting) -> list[bytes]:
        pixels = torch.from_numpy(images)
        effort = setting.effort
        if setting.max_bytes is None:
            return self.model.compress(pixels, setting.levels, effort=effort)

        # an image without a file so small keeps its smallest
        files = self.model.compress(pixels, 1)
        fitting = [index for index, file in enumerate(files) if len(file) <= setting.max_bytes]
        if fitting:
            limited = self.model.compress(
                pixels[fitting], max_bytes=setting.max_bytes, effort=effort
            )
            for index, file in zip(fitting, limited, strict=True):
                files[index] = file
        return files

    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        decoded = torch.stack(self.model.decompress(files)).clamp(0, 1)
        pixels: Images = (decoded * 255).round().to(torch.uint8).numpy()
        return pixels
