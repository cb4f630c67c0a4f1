"""A local page to play with a trained model: `hrvqvae play` (docs/play.md)."""
