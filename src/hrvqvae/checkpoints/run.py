"""Names of `checkpoints.folder` by their earlier place."""

from hrvqvae.checkpoints.folder import config_of, open_run, save_model

__all__ = ["Run", "config_of", "save_model"]

Run = open_run
