"""The training images that are nearest to given images: a copy would show."""

from __future__ import annotations

import torch
from torch import Tensor

from hrvqvae.config import Config
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import load_images

_NEAREST_BLOCK = 2_048


def nearest_training_images(images: Tensor, config: Config) -> tuple[Tensor, list[float]]:
    """For each image (B, C, Y, X) in [0, 1] the training image with the least squared error, and its MSE."""
    best = torch.full((len(images),), float("inf"))
    found = torch.zeros_like(images)
    flat = images.flatten(1)
    batches = evaluation_batches(
        load_images(config.data, "train"), batch_size=_NEAREST_BLOCK, workers=config.data.workers,
        on_error=config.data.on_error,
    )  # fmt: skip
    for batch in batches:
        candidates = batch.images.float() / 255
        errors = torch.cdist(flat, candidates.flatten(1)).square() / flat.shape[1]
        error, index = errors.min(1)
        better = error < best
        best[better], found[better] = error[better], candidates[index[better]]
    return found, best.tolist()
