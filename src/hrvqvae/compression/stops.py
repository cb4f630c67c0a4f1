"""Choose where positions stop, for files of a limited size.

A position keeps the levels of the least sum of squared distance and price * bits (Breiman et al.
1984; Chou, Lookabaugh and Gray 1989). The price of a bit is halved by each quality. The quality of
an image is found by halving an interval: its codes are encoded once, and its file is written for
each trial.
"""

import numpy as np
import torch
from torch import Tensor

from hrvqvae.compression.decoder_search import Rate, encode_with_distances
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.hrv import read, write
from hrvqvae.compression.levels import flat_codes, measure_level
from hrvqvae.config import Grid
from hrvqvae.models.base import image_size
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import QUALITIES, Codes, choose_depths, stop_at

# the interval of qualities, and how often it is halved
_LEAST_QUALITY = -2.0
_MOST_QUALITY = 9.0
_HALVINGS = 8


def fit_stopped_files(
    model: SingleGridAutoencoder,
    entropy_model: EntropyModel,
    images: Tensor,
    levels: int,
    most_bytes: float,
    effort: int,
) -> list[bytes]:
    """Return the file of each image (B, C, Y, X) with the least error that fits, of at most
    `levels` levels; of the first level if none fits.
    """
    size = image_size(images)
    codes, distances = encode_with_distances(model, images, levels)
    bits = measure_bits(entropy_model, codes, size)
    search = model, entropy_model, size, most_bytes
    files, qualities = _fit_qualities(*search, codes, distances, bits)
    if effort:
        rate = Rate(bits.mean((1, 2, 3)), qualities)
        codes, distances = encode_with_distances(model, images, levels, effort, rate)
        bits = measure_bits(entropy_model, codes, size)
        files, _ = _fit_qualities(*search, codes, distances, bits)
    return files


def _fit_qualities(
    model: SingleGridAutoencoder,
    entropy_model: EntropyModel,
    size: Grid,
    most_bytes: float,
    codes: Codes,
    distances: Tensor,
    bits: Tensor,
) -> tuple[list[bytes], Tensor]:
    """Return the file of each image with the least distance that fits, and the highest quality that
    fits (B,).

    Args:
        codes: Codes before positions stop.
        distances: The squared distance that remains after each level, (levels, B, H, W).
        bits: The bits of each code, (levels, B, H, W).
    """
    # begin with the most levels that fit for all positions: a whole file begins with these files
    files = []
    counts = list[int]()
    whole_files = write(entropy_model, flat_codes(codes), size, len(codes))
    for whole, image in zip(whole_files, read(entropy_model, whole_files), strict=True):
        ends = np.cumsum(image.lengths)[1:]
        counts.append(max(1, int((ends <= most_bytes).sum())))
        files.append(whole[: ends[counts[-1] - 1]])
    least = _sum_distances(distances, torch.tensor(counts, device=bits.device).view(-1, 1, 1))

    absent = [torch.full_like(codes[0], -1)] * (len(entropy_model.symbols) - len(codes))
    low = torch.full_like(least, _LEAST_QUALITY)
    high = torch.full_like(least, _MOST_QUALITY)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        depths = choose_depths(distances, model.quantizer.price_bits(bits, middle))
        stopped = flat_codes((*stop_at(codes, depths), *absent))
        qualities = middle.round().long().clamp(0, QUALITIES - 1).tolist()
        contents = write(entropy_model, stopped, size, qualities=qualities)

        # keep the file of the least distance of those that fit
        lengths = torch.tensor([*map(len, contents)], device=bits.device)
        fits = lengths <= most_bytes
        remaining = _sum_distances(distances, depths)
        for index in (fits & (remaining < least)).nonzero().flatten().tolist():
            files[index] = contents[index]
            least[index] = remaining[index]
        low = torch.where(fits, middle, low)
        high = torch.where(fits, high, middle)
    return files, low


def _sum_distances(distances: Tensor, depths: Tensor) -> Tensor:
    """Return the distance (B,) that remains if positions stop after `depths` (B, H, W) levels."""
    indices = (depths - 1).expand(distances.shape[1:])[None]
    return distances.gather(0, indices)[0].sum((1, 2))


def measure_bits(entropy_model: EntropyModel, codes: Codes, size: Grid) -> Tensor:
    """Return the ideal bits of each code (levels, B, H, W), where no position stops."""
    layout = entropy_model.layout(size)
    rows = flat_codes(codes)
    bits = [
        np.stack([measure_level(row, layout, level, entropy_model.networks[level]) for row in rows])
        for level in range(len(codes))
    ]
    shape = len(codes), *codes[0].shape
    return torch.from_numpy(np.stack(bits)).view(shape).to(codes[0].device)
