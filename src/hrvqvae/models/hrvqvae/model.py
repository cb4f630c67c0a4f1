"""HR-VQVAE (docs/method.md; docs/paper-tables.md, Table 6)."""

from __future__ import annotations

from hrvqvae.models.tree_grid import TreeGrid


class HRVQVAE(TreeGrid):
    """HR-VQVAE as printed: an encoder, linked codebooks on one latent grid, a decoder."""
