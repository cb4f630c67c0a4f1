"""Distortion, rate and codeword usage of an autoencoder on a split.

Errors are over the original pixels in [0, 1], never over padding.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from hrvqvae import distributed
from hrvqvae.config import Config, bits_per_image, compression_ratio, level_names
from hrvqvae.data.batches import Batch
from hrvqvae.models.base import Autoencoder, Encode, image_size
from hrvqvae.quantize import functional as vq
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import psnr


@dataclass(frozen=True, kw_only=True)
class LevelReport:
    """Error and codeword usage of a level."""

    codewords: int  #: number of codewords of the level
    used: int  #: number of codewords chosen at least once on the split
    usage: float  #: share of the codewords that are used
    #: effective number of codewords, exp of the entropy of the choices; 1 to `codewords`
    perplexity: float
    #: error of images decoded from the levels up to this one; None if they can't be decoded alone
    mse: float | None
    counts: Tensor = field(repr=False)  #: (codewords,) int64, how often each was chosen


@dataclass(frozen=True, kw_only=True)
class Report:
    """Errors and rate of a model on a split."""

    dataset: str
    split: str
    images: int  #: number of images
    mse: float  #: mean squared error of pixel values in [0, 1]
    psnr: float  #: peak signal-to-noise ratio of that error, in dB
    #: mean structural similarity; None for images of fewer than 11 pixels per side
    ssim: float | None
    bits_per_image: float  #: bits of the codes, without entropy coding
    compression_ratio: float  #: bits of the 8-bit pixels per bit of the codes
    levels: tuple[LevelReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the counts."""
        plain = dict(vars(self))
        plain["levels"] = [
            {k: v for k, v in vars(level).items() if k != "counts"} for level in self.levels
        ]
        return plain

    def captions(self) -> list[str]:
        """Return a line per prefix of the levels that the system decodes, with its error."""
        return [
            f"{level_names(range(count))}: MSE {level.mse:.2e}"
            for count, level in enumerate(self.levels, start=1)
            if level.mse is not None
        ]


@torch.inference_mode()
def evaluate(
    model: Autoencoder,
    config: Config,
    batches: Iterable[Batch],
    split: str,
    device: torch.device,
    encode: Encode | None = None,
    prefix_interval: int = 1,
) -> Report:
    """Measure a model in evaluation mode on every image of all processes. Raises InputError if
    there is no image.

    `encode` encodes images on the device (None: `model.encode`). Prefixes of the levels are decoded
    for one image in `prefix_interval` of each batch, all levels for every image.
    """
    encode = encode or model.encode
    codewords = config.model.num_codewords
    counts = [torch.zeros(size, dtype=torch.long) for size in codewords]
    errors = dict.fromkeys(model.prefixes, 0.0)
    images = values = prefix_values = ssim = 0.0
    has_ssim = min(config.data.image_size) >= 11  # SSIM has a window of 11x11 pixels
    for batch in batches:
        original = batch.images.to(device).float() / 255
        size = image_size(original)
        codes = encode(original)
        for level, indices in enumerate(model.codeword_indices(codes)):
            counts[level] += vq.counts(indices, codewords[level]).cpu()
        sampled = original[::prefix_interval]
        sampled_codes = tuple(level[::prefix_interval] for level in codes)
        for levels in model.prefixes[:-1]:
            decoded = model.decode(sampled_codes, levels=levels, size=size)
            errors[levels] += float((decoded - sampled).double().square().sum())
        decoded = model.decode(codes, size=size)
        errors[model.prefixes[-1]] += float((decoded - original).double().square().sum())
        if has_ssim:
            per_image = structural_similarity_index_measure(
                decoded, original, data_range=1.0, reduction="none"
            )
            ssim += float(per_image.double().sum())  # type: ignore[union-attr]
        images += len(original)
        values += original.numel()
        prefix_values += sampled.numel()
    counts = distributed.all_reduce(counts)
    gathered = distributed.all_gather_numbers(images, values, prefix_values, ssim, *errors.values())
    images, values, prefix_values, ssim, *summed = (
        sum(column) for column in zip(*gathered, strict=True)
    )
    if not images:
        raise InputError(f"no image of the {split} split could be read")
    *prefix_errors, error = summed
    total = error / values
    mse_of_prefixes = [*(error / prefix_values for error in prefix_errors), total]
    mse = dict(zip(model.prefixes, mse_of_prefixes, strict=True))
    reports = tuple(
        LevelReport(
            codewords=size,
            used=int((count > 0).sum()),
            usage=float((count > 0).double().mean()),
            perplexity=vq.perplexity(count),
            mse=mse.get(level),
            counts=count,
        )
        for level, (size, count) in enumerate(zip(codewords, counts, strict=True), start=1)
    )
    data = config.data
    return Report(
        dataset=data.dataset,
        split=split,
        images=int(images),
        mse=total,
        psnr=psnr(total),
        ssim=ssim / images if has_ssim else None,
        bits_per_image=bits_per_image(config.model, *data.image_size),
        compression_ratio=compression_ratio(config.model, data.channels, *data.image_size),
        levels=reports,
    )
