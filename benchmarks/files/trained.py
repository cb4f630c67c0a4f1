"""Files of a trained model of this package, by number of levels and lambda."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.files.curves import Count, FileCodec, Images, Shape
from hrvqvae.checkpoints.folder import PROGRESSIVE, RunFolder, decoder_folder, locate
from hrvqvae.compression.decoder_search import explain_no_search
from hrvqvae.model import Model

_LAMBDAS = tuple(2.0**power for power in range(-9, -1))


@dataclass(frozen=True)
class TrainedSetting:
    """The number of levels in a file, and the lambda of its codes (None: the usual codes)."""

    levels: int
    lmbda: float | None = None

    def __str__(self) -> str:
        written = "level 1" if self.levels == 1 else f"levels 1-{self.levels}"
        return written if self.lmbda is None else f"{written}, weight {self.lmbda:.3g}"


class TrainedFiles(FileCodec):
    """Files of codes (docs/format.md), for each prefix of the levels that the model decodes.

    Each prefix has the usual codes, those of lambda 0 (the least error) and, if the model has an
    entropy model, those of powers of two (or of other lambdas). Files shrink by some 5 to 10% from
    a lambda to the next. These are 10 settings per prefix; 8 of them take some 50 times the work of
    the usual codes. A model without a search for lambda has the usual codes alone.
    """

    learned = True

    def __init__(self, run: str | Path, lmbdas: Sequence[float] | None = None) -> None:
        """Load a run folder, a weights file, or a model of the package by name. Raises
        InputError.
        """
        self._lmbdas = _LAMBDAS if lmbdas is None else lmbdas
        self.model = Model(run)
        self.counts = (Count(f"{self.model.config.model.system} {Path(run).name}"),)
        self.settings = tuple(self._settings())
        weights = locate(run)
        needed = [weights, RunFolder(weights.parent).tables]
        if getattr(self.model.autoencoder, "progressive_decoder", None) is not None:
            needed.append(decoder_folder(weights.parent, PROGRESSIVE).model)
        self.model_bytes = sum(path.stat().st_size for path in needed if path.is_file())

    def _settings(self) -> Iterator[TrainedSetting]:
        networks = self.model.entropy_model.networks  # without them all codes take the same bits
        lmbdas = (0.0, *self._lmbdas) if networks else (0.0,)
        for levels in self.model.autoencoder.prefixes:
            yield TrainedSetting(levels)
            if not explain_no_search(self.model.autoencoder):
                yield from (TrainedSetting(levels, lmbda) for lmbda in lmbdas)

    def encode(self, images: Images, setting: TrainedSetting) -> list[bytes]:
        return self.model.compress(torch.from_numpy(images), setting.levels, lmbda=setting.lmbda)

    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        decoded = torch.stack(self.model.decompress(files)).clamp(0, 1)
        pixels: Images = (decoded * 255).round().to(torch.uint8).numpy()
        return pixels
