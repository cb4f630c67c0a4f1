"""What is drawn of a training after each of its evaluations."""

from __future__ import annotations

from collections.abc import Sequence

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.plots import curves, sheets
from hrvqvae.plots.images import level_captions, level_rows
from hrvqvae.training.loggers import Record
from hrvqvae.training.trainer import Evaluation


def draw_training(run: RunFolder, records: Sequence[Record], found: Evaluation) -> None:
    """Write a run's curves; of an autoencoder, a sheet of reconstructions and the usage of its codewords as well."""
    if found.report is None or found.model is None or found.images is None:
        curves.prior_curves(records, run.pictures / "curves.png")
        return
    levels = found.report.levels
    rows = level_rows(found.model, found.images(), level_captions(levels))
    sheets.save(sheets.draw(rows), run.pictures / "reconstructions.png")
    curves.training_curves(records, run.pictures / "curves.png")
    curves.codeword_usage([level.counts for level in levels], run.pictures / "usage.png")
