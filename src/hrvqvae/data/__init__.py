"""Images: where they come from, how they are split, decoded and batched. Imports no model."""

from hrvqvae.data.batches import Batch, batches, evaluation_batches
from hrvqvae.data.images import read_image
from hrvqvae.data.sources import ImageSet, load

__all__ = ["Batch", "ImageSet", "batches", "evaluation_batches", "load", "read_image"]
