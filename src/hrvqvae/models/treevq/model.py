"""TreeVQ: linked codebooks on one latent grid, as we would train them (docs/what-we-changed.md)."""

from __future__ import annotations

from hrvqvae.models.tree_grid import TreeGrid


class TreeVQAutoencoder(TreeGrid):
    """An encoder, linked codebooks on one latent grid, a decoder; `hrvqvae.TreeVQ` is its quantizer as a layer."""
