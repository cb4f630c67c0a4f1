"""What the commands do with a trained run: evaluate, reconstruct, demo."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hrvqvae import data, presets, storage
from hrvqvae.checkpoint import RunFolder, has_priors, load_priors, load_with_config, locate
from hrvqvae.codemaps import extract, stored
from hrvqvae.config import Config, TrainingConfig
from hrvqvae.data.fetch import get
from hrvqvae.data.images import read_image
from hrvqvae.data.sources import data_root
from hrvqvae.errors import InputError
from hrvqvae.evaluation.evaluate import LevelReport, Report, evaluate
from hrvqvae.evaluation.rate import Rate, measure_rate
from hrvqvae.generate import Recognized, recognize, sample
from hrvqvae.pictures import sheets
from hrvqvae.resolve import resolve_priors
from hrvqvae.training.autoencoder import level_captions, level_rows, train
from hrvqvae.training.device import Compute
from hrvqvae.training.prior import train_priors

DEMO_PRESET = "hrvqvae/mnist"
SHIPPED_MODEL = "mnist"
EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` finds: the autoencoder's report; the priors' rate, or why there is none; what samples are."""

    report: Report
    rate: Rate | None
    no_rate: str
    recognized: Recognized | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the rate's beside the report's, None where there are no priors."""
        plain = self.report.to_dict()
        names = ("prior_bits_per_image", "path_bits_per_image", "neighbours_bits_per_image")
        plain |= {name: getattr(self.rate, name, None) for name in names}
        for level, values in enumerate(plain["levels"]):
            rate = self.rate.levels[level] if self.rate else None
            values |= {f"{name}_bits_per_code": getattr(rate, name, None) for name in ("prior", "path", "neighbours")}
        plain["no_priors"] = self.no_rate or None
        plain |= vars(self.recognized) if self.recognized else {}
        return plain


def evaluate_run(
    run: str | Path, split: str = "test", root: str | None = None, device: str = "auto", samples: int = 0, *,
    limit: int | None = None, rate: bool = True, say: Callable[[str], None] = print,
) -> Evaluated:  # fmt: skip
    """Measure a run's autoencoder, and its priors where every level has one, on a whole split, in float32.

    Args:
        samples: draw so many and have them classified (0: none).
        limit: measure on so many images, spread evenly over the split (None: all).
        rate: whether the priors are measured.

    Raises:
        InputError: the run or its data is missing.
    """
    compute = Compute.of(TrainingConfig(epochs=1, device=device, precision="fp32"))
    model, config = load_with_config(run)
    config = config.with_root(root)
    images = data.load(config.data, split)
    model = compute.place_model(model)
    batch_size = min(EVALUATION_BATCH, config.training.batch_size)
    batches = data.evaluation_batches(
        images, batch_size=batch_size, limit=limit, workers=config.data.workers, on_error=config.data.on_error
    )
    report = evaluate(model, config, batches, split, compute.device)
    if not rate:
        return Evaluated(report, None, "not asked for")
    if not samples and not has_priors(run):
        return Evaluated(report, None, f"train them: hrvqvae train-prior {run}")
    priors, path = load_priors(run), locate(run)
    digest, folder = storage.digest(path), RunFolder(path.parent).codes
    train_maps = stored(folder, digest, config, "train") or extract(model, config, "train", compute.device)
    whole = split == "train" and limit is None
    maps = train_maps if whole else extract(model, config, split, compute.device, limit)
    if priors.classes and not maps.classes == train_maps.classes == priors.classes:
        raise InputError(f"the priors of {run} know other classes than the data has: {', '.join(priors.classes)}")
    found = measure_rate(priors.levels, model, maps, train_maps, compute.device)
    return Evaluated(report, found, "", recognize(run, config.data, samples, say=say) if samples else None)


def reconstruct(
    run: str | Path, paths: Sequence[Path], out: Path, levels: int | None = None
) -> list[tuple[Path, float]]:
    """Write a sheet of image files above their reconstructions; -> (path, MSE in [0, 1]) of each.

    Images keep their own sizes.

    Raises:
        InputError: no such run, image or level; a colour image for a greyscale model; the sheet can't be written.
    """
    model, config = load_with_config(run)
    most = model.prefixes[-1]
    if levels is not None and not 1 <= levels <= most:
        raise InputError(f"levels is {levels}; this model has levels 1 to {most}")
    originals, decoded, errors = [], [], []
    with torch.inference_mode():
        for path in paths:
            pixels = torch.from_numpy(read_image(path, model.channels, config.data.max_pixels))
            size = (pixels.shape[-2], pixels.shape[-1])
            image = model.decode(model.encode(pixels[None]), levels=levels, size=size)[0]
            originals.append(pixels)
            decoded.append(image)
            errors.append((path, float((image - pixels / 255).square().mean())))
    used = levels or most
    caption = "reconstruction, " + ("level 1" if used == 1 else f"levels 1-{used} of {most}")
    sheets.save(sheets.draw([sheets.Row("original", originals), sheets.Row(caption, decoded)]), out)
    return errors


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
    run, preset = RunFolder(out), presets.get(DEMO_PRESET).config.with_root(str(folder.absolute()))
    minutes = max_minutes * _AUTOENCODER_SHARE
    training = dataclasses.replace(preset.training, max_minutes=minutes, max_steps=max_steps)
    config = dataclasses.replace(preset, training=training)
    if run.begun() and (run.read_config().model, run.read_config().name) != (config.model, config.name):
        raise InputError(f"{out} holds another run; choose another --out")
    outcome = train(config, run, resume=run.begun())
    outcomes = [outcome]
    if outcome.signal is None:
        levels = len(config.model.num_symbols)
        given = {
            **_DEMO_PRIOR,
            "prior.training.max_minutes": str(max_minutes * (1 - _AUTOENCODER_SHARE) / levels),
            "prior.training.max_steps": str(max_steps),
        }
        priors = train_priors(out, resolve_priors(str(out), None, given, resume=True), resume=True)
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
    images = data.load(config.data, "test")
    few = torch.from_numpy(np.stack([images.read(index, None) for index in range(16)]))
    model, _ = load_with_config(run.path)
    sheet = run.pictures / "test-images.png"
    sheets.save(sheets.draw(level_rows(model, few.float() / 255, level_captions(levels))), sheet)
    own, packaged = run.pictures / "samples.png", run.pictures / "samples-of-the-shipped-model.png"
    sample(str(run.path), 64, own)
    sample(SHIPPED_MODEL, 64, packaged)
    return [sheet, *(run.pictures / f"{name}.png" for name in ("reconstructions", "curves", "usage")), own, packaged]
