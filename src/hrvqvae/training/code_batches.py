"""Codes of images as batches that a prior is trained on and measured by."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae import distributed
from hrvqvae.checkpoints.codemaps import CodeMaps
from hrvqvae.config import Levels
from hrvqvae.data.batches import Stream
from hrvqvae.models.base import Autoencoder


@dataclass(frozen=True)
class CodeBatch:
    """Codes of some images with what a prior sees of them.

    Attributes:
        codes: (B, H, W) int64 of each level that it covers.
        coarser: paths of the coarser levels, (B, H_j, W_j) int64.
        label: (B,) int64, or None.
    """

    codes: tuple[Tensor, ...]
    coarser: tuple[Tensor, ...]
    label: Tensor | None

    def __len__(self) -> int:
        return len(self.codes[0])

    def to(self, device: torch.device) -> CodeBatch:
        """The same on that device."""
        label = None if self.label is None else self.label.to(device)
        codes, coarser = (tuple(one.to(device) for one in some) for some in (self.codes, self.coarser))
        return CodeBatch(codes, coarser, label)


class CodeBatches:
    """The code maps of a split, as the prior of some levels sees them."""

    def __init__(self, maps: CodeMaps, model: Autoencoder, levels: Levels) -> None:
        self.maps, self.model, self.levels = maps, model, levels

    def read(self, indices: NDArray[np.int64]) -> CodeBatch:
        """The batch of some images."""
        codes, labels = self.maps.read(indices)
        coarser = self.model.paths(codes[: self.levels.start])
        own = codes[self.levels.start : self.levels.stop]
        return CodeBatch(own, coarser, labels if self.maps.classes else None)

    def stream(self, kept: NDArray[np.int64], batch_size: int, seed: int, first: int) -> Generator[CodeBatch]:
        """This process's part of training batches of the images of those numbers, from step `first` on, without end."""
        for samples in Stream(len(kept), batch_size, seed, first, distributed.part()):
            yield self.read(kept[[index for index, _ in samples]])

    def in_order(self, kept: NDArray[np.int64], batch_size: int) -> Iterator[CodeBatch]:
        """Each image of those numbers once."""
        for start in range(0, len(kept), batch_size):
            yield self.read(kept[start : start + batch_size])
