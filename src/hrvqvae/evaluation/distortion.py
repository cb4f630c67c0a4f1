"""Distortion, rate and codeword usage of an autoencoder on a split.

Errors are over the original pixels in [0, 1], never over padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from hrvqvae import distributed
from hrvqvae.config import Config, bits_per_image, compression_ratio, level_names
from hrvqvae.data.batches import Batch
from hrvqvae.models.base import Autoencoder, Encode
from hrvqvae.quantize import functional as vq
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import psnr


@dataclass(frozen=True, kw_only=True)
class LevelReport:
    """One level.

    Attributes:
        codewords: K_l, of the level in all.
        used: codewords chosen at least once on the split; usage: their share.
        perplexity: exp(entropy) of the choices, 1 to K_l.
        mse: of the image decoded from the levels up to this one; None where the system can't decode these.
        counts: (K_l,) int64, how often each codeword was chosen.
    """

    codewords: int
    used: int
    usage: float
    perplexity: float
    mse: float | None
    counts: Tensor


@dataclass(frozen=True, kw_only=True)
class Report:
    """A model on a split: mse, psnr (dB, of the mean squared error), ssim (mean over images; None below 11 pixels)."""

    dataset: str
    split: str
    images: int
    mse: float
    psnr: float
    ssim: float | None
    bits_per_image: float
    compression_ratio: float
    levels: tuple[LevelReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the counts."""
        plain = dict(vars(self))
        plain["levels"] = [{k: v for k, v in vars(level).items() if k != "counts"} for level in self.levels]
        return plain

    def captions(self) -> list[str]:
        """The error of each prefix of the levels that the system decodes, for people."""
        mse = {level_names(range(level)): one.mse for level, one in enumerate(self.levels, start=1)}
        return [f"{name}: MSE {error:.2e}" for name, error in mse.items() if error is not None]


@torch.inference_mode()
def evaluate(
    model: Autoencoder, config: Config, batches: Iterable[Batch], split: str, device: torch.device,
    encode: Encode | None = None,
) -> Report:  # fmt: skip
    """Measure a model in evaluation mode on every image of the batches.

    Where several processes train together, the report is of the batches of all of them.

    Args:
        model: on `device`, in evaluation mode.
        config: of the model; gives its rate and the name of the data.
        batches: images (B, C, Y, X) uint8.
        split: its name, for the report.
        encode: gives the codes of images on the device in place of the model.

    Raises:
        InputError: there is no image.
    """
    encode = encode or model.encode
    codewords = config.model.num_codewords
    counts = [torch.zeros(number, dtype=torch.long) for number in codewords]
    errors = dict.fromkeys(model.prefixes, 0.0)
    images = values = ssim = 0.0
    has_ssim = config.data.size >= 11  # the side of its window
    for batch in batches:
        original = batch.images.to(device).float() / 255
        size = (original.shape[-2], original.shape[-1])
        codes = encode(original)
        for level, path in enumerate(model.codeword_indices(codes)):
            counts[level] += vq.counts(path, codewords[level]).cpu()
        for levels in model.prefixes:
            decoded = model.decode(codes, levels=levels, size=size)
            errors[levels] += float((decoded - original).double().square().sum())
        if has_ssim:
            each = structural_similarity_index_measure(decoded, original, data_range=1.0, reduction="none")
            ssim += float(each.double().sum())  # type: ignore[union-attr]
        images += len(original)
        values += original.numel()
    counts = distributed.all_reduce(counts)
    every = distributed.all_gather_numbers(images, values, ssim, *errors.values())
    images, values, ssim, *summed = (sum(one) for one in zip(*every, strict=True))
    if not images:
        raise InputError(f"no image of the {split} split could be read")
    mse = {levels: error / values for levels, error in zip(errors, summed, strict=True)}
    total = mse[model.prefixes[-1]]
    reports = tuple(
        LevelReport(
            codewords=number, used=int((count > 0).sum()), usage=float((count > 0).double().mean()),
            perplexity=vq.perplexity(count), mse=mse.get(level), counts=count,
        )
        for level, (number, count) in enumerate(zip(codewords, counts, strict=True), start=1)
    )  # fmt: skip
    data = config.data
    return Report(
        dataset=data.dataset, split=split, images=int(images), mse=total, psnr=psnr(total),
        ssim=ssim / images if has_ssim else None,
        bits_per_image=bits_per_image(config.model, data.size, data.size),
        compression_ratio=compression_ratio(config.model, data.channels, data.size, data.size), levels=reports,
    )  # fmt: skip
