"""Draw the pictures in a run folder: curves, and for an autoencoder also reconstructions and
codeword usage.
"""

from collections.abc import Sequence

import torch

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.data.images import write_image
from hrvqvae.models.base import image_size
from hrvqvae.plots import curves, sheets
from hrvqvae.training.loggers import Record
from hrvqvae.training.trainer import Evaluation


@torch.inference_mode()
def draw_training(run: RunFolder, records: Sequence[Record], evaluation: Evaluation) -> None:
    """Draw the pictures of a training after an evaluation; a `trainer.Callback`."""
    report = evaluation.report
    model = evaluation.model
    if report is None or model is None or evaluation.read_images is None:
        curves.plot_prior(records, run.pictures / "curves.png")
        return
    images = evaluation.read_images()
    codes = model.encode(images)
    rows = [sheets.SheetRow("original", list(images))]
    for num_levels, caption in zip(model.prefixes, report.captions(), strict=True):
        if num_levels not in evaluation.prefixes:
            continue
        decoded = model.decode(codes, levels=num_levels, size=image_size(images))
        rows.append(sheets.SheetRow(caption, list(decoded)))
    write_image(sheets.draw(rows), run.pictures / "reconstructions.png")
    curves.plot_training(records, run.pictures / "curves.png")
    curves.plot_usage([level.counts for level in report.levels], run.pictures / "usage.png")
