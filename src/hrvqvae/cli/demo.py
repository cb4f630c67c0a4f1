"""The demo: MNIST from nothing to a trained model, its evaluation and its pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.config import Config
from hrvqvae.data.fetch import get
from hrvqvae.data.loading import data_root, load_images
from hrvqvae.evaluation.distortion import LevelReport
from hrvqvae.evaluation.report import evaluate_run
from hrvqvae.plots import sheets
from hrvqvae.plots.images import level_captions, level_rows, sample
from hrvqvae.plots.training import draw_training
from hrvqvae.training.autoencoder import AutoencoderTask, resolve_autoencoder
from hrvqvae.training.prior import resolve_priors, train_priors
from hrvqvae.training.trainer import Trainer
from hrvqvae.utils.errors import InputError

DEMO_PRESET = "hrvqvae/mnist"
SHIPPED_MODEL = "mnist"

# What the demo's priors depart from their preset in: Table 8's batch is for hours on a GPU.
_DEMO_PRIOR = {
    "prior.network.residual_blocks": "8",
    "prior.training.batch_size": "16", "prior.training.learning_rate": "2e-3", "prior.training.warmup_steps": "20",
    "prior.training.evaluate_every": "100", "prior.training.checkpoint_every": "100",
    "prior.training.evaluation_images": "300",
}  # fmt: skip
_AUTOENCODER_SHARE = 0.55  # of the demo's training time


def demo(out: Path, root: str | None, max_minutes: float, max_steps: int) -> int:
    """MNIST from nothing: get it, train autoencoder and priors, evaluate, draw; print a summary and the pictures.

    Goes on where an earlier demo in the same folder stopped. Returns the exit code: 0, or 128 + the signal that
    stopped it.

    Args:
        max_minutes: training time in all.
        max_steps: steps of each stage at most (0: as many as there is time for).

    Raises:
        InputError: the folder holds another run, or the budget is not above 0.
    """
    if max_minutes <= 0:
        raise InputError(f"--max-minutes is {max_minutes:g}; it must be above 0")
    begun = time.monotonic()
    folder = data_root(root)
    get("mnist", folder, print)
    run = RunFolder(out)
    autoencoder = {
        "data.root": str(folder.absolute()),
        "training.max_minutes": str(max_minutes * _AUTOENCODER_SHARE), "training.max_steps": str(max_steps),
    }  # fmt: skip
    config = resolve_autoencoder(DEMO_PRESET, autoencoder, run, resume=True)
    outcome = Trainer(AutoencoderTask(config, run), resume=run.begun(), callbacks=[draw_training]).train()
    outcomes = [outcome]
    if outcome.signal is None:
        given = {
            **_DEMO_PRIOR,
            "prior.training.max_minutes": str(max_minutes * (1 - _AUTOENCODER_SHARE) / len(config.prior_levels)),
            "prior.training.max_steps": str(max_steps),
        }
        priors = train_priors(
            out, resolve_priors(out, None, given, resume=True), resume=True, callbacks=[draw_training]
        )
        outcomes += priors.values()
    if outcomes[-1].signal is not None:
        print(f"stopped at step {outcomes[-1].step}, saved; the same command goes on")
        return 128 + outcomes[-1].signal
    report = evaluate_run(out, rate=False).report
    pictures = _demo_pictures(run, config, report.levels)
    used = ", ".join(f"{level.used} of {level.codewords}" for level in report.levels)
    print(
        f"\n{report.images:,} test images: MSE {report.mse:.3e}, PSNR {report.psnr:.2f} dB, SSIM {report.ssim:.4f}\n"
        f"codewords in use, level by level: {used}\n"
        f"{report.bits_per_image:,.0f} bits an image, {report.compression_ratio:.2f} times fewer than the 8-bit image\n"
        f"trained {outcome.step} steps in {outcome.seconds / 60:.1f} minutes, and priors "
        f"{', '.join(str(prior.step) for prior in outcomes[1:])} steps in "
        f"{sum(prior.seconds for prior in outcomes[1:]) / 60:.1f} minutes; all in "
        f"{(time.monotonic() - begun) / 60:.1f} minutes\n\npictures:"
    )
    for picture in pictures:
        print(f"  {picture}")
    return 0


def _demo_pictures(run: RunFolder, config: Config, levels: Sequence[LevelReport]) -> list[Path]:
    """Test images above their reconstructions, samples of the run, and samples of the model that is shipped."""
    images = load_images(config.data, "test")
    few = torch.from_numpy(np.stack([images.read(index, None) for index in range(16)]))
    model, _ = load_with_config(run.path)
    sheet = run.pictures / "test-images.png"
    sheets.save(sheets.draw(level_rows(model, few.float() / 255, level_captions(levels))), sheet)
    own, packaged = run.pictures / "samples.png", run.pictures / "samples-of-the-shipped-model.png"
    sample(str(run.path), 64, own)
    sample(SHIPPED_MODEL, 64, packaged)
    return [sheet, *(run.pictures / f"{name}.png" for name in ("reconstructions", "curves", "usage")), own, packaged]
