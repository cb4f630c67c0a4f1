"""Augmented copies of the training images, whose codes train a prior or fit an entropy model.

Each copy is a fixed change of all images. So its codes are computed once and stored, unlike
augmentation that is drawn anew per epoch. Images are (B, C, Y, X) uint8.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from hrvqvae.data.batches import make_rng

Augment = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Copy:
    """A copy of the images of a split, augmented before they are encoded."""

    folder: str  #: name of the folder of its codes
    augment: Augment | None  #: None for the images themselves
    #: number of its change, a condition of the prior (0: none); mirror images have the number of
    #: their originals
    index: int


def shift_images(images: Tensor, number: int) -> Tensor:
    """Shift images by one random offset of at most an eighth of a side; the border is mirrored."""
    reach = [size // 8 for size in images.shape[2:]]
    ends = [2 * width + 1 for width in reach]
    corners = make_rng("shift", number).integers(0, ends, (100, 2)).tolist()
    # The corner `reach` would be no shift: take the first of 100 draws that is another. Images of
    # fewer than 8 pixels a side have no other.
    top, left = next((corner for corner in corners if corner != reach), reach)
    padded = pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="reflect")
    return padded[:, :, top : top + images.shape[2], left : left + images.shape[3]]


def vary_images(images: Tensor, number: int) -> Tensor:
    """Enlarge images by 5 to 20% and crop them if `number` is odd; scale their channels if even.

    Each channel is scaled by a brightness of 0.85 to 1.15, the same for all channels, times a
    factor of its own of 0.93 to 1.07.
    """
    rng = make_rng("variant", number)
    if number % 2:
        height, width = images.shape[2:]
        scale = 1 + rng.uniform(0.05, 0.2)
        rows = round(height / scale)
        columns = round(width / scale)
        top = int(rng.integers(height - rows + 1))
        left = int(rng.integers(width - columns + 1))
        crop = images[:, :, top : top + rows, left : left + columns].float()
        varied = interpolate(crop, (height, width), mode="bicubic", antialias=True)
    else:
        brightness = rng.uniform(0.85, 1.15)
        gains = torch.from_numpy(brightness * rng.uniform(0.93, 1.07, images.shape[1])).float()
        varied = images.float() * gains.to(images.device)[:, None, None]
    return varied.round().clamp(0, 255).to(images.dtype)


def _flip_then(change: Augment | None, images: Tensor) -> Tensor:
    flipped = images.flip(3)
    return change(flipped) if change else flipped


def list_copies(flip: bool, shifts: int, variants: int = 0) -> Iterator[Copy]:
    """Yield the images themselves, `shifts` shifted copies and `variants` varied copies.

    With `flip`, each copy is followed by its mirror images, which have the same index.
    """
    changes: list[tuple[str, Augment | None]] = [("codes", None)]
    for name, function, count in (
        ("shifted", shift_images, shifts),
        ("varied", vary_images, variants),
    ):
        for number in range(1, count + 1):
            changes.append((f"codes-{name}-{number}", partial(function, number=number)))

    for index, (folder, change) in enumerate(changes):
        yield Copy(folder, change, index)
        if flip:
            yield Copy(f"{folder}-flipped", partial(_flip_then, change), index)
