#!/usr/bin/env python
"""Write the training images of the model thumb: CIFAR10's, and crops of photographs, reduced to
32x32 pixels.

    recipes/thumb_images.py PHOTOS OUT      PHOTOS: a folder of pictures and of Qt resources (.rcc)
    that hold WebP

OUT/train_images.npy and OUT/test_images.npy hold (N, 32, 32, 3) uint8. One photograph in twenty is
for test.
"""

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pillow_jxl  # noqa: F401  # opens JPEG XL
from PIL import Image

from hrvqvae.config.presets import get
from hrvqvae.data.loading import load_images
from hrvqvae.utils.outputs import replace_file

SIZE = 32
CROPS = 40  # of each photograph
LEAST = 200  # pixels; a picture with a shorter side is an icon


def pictures(folder: Path) -> Iterator[Image.Image]:
    """Open the pictures of a folder, in order of their names."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".jpg", ".png", ".jxl", ".webp"):
            yield Image.open(path)
        elif path.suffix == ".rcc":
            content = path.read_bytes()
            for match in re.finditer(rb"RIFF(.{4})WEBP", content, re.DOTALL):
                yield Image.open(
                    io.BytesIO(content[match.start() :][: int.from_bytes(match[1], "little") + 8])
                )


def crops(picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Return crops (CROPS, 32, 32, 3) of random sizes and places, from a quarter of the short side
    to all of it.
    """
    picture.draft("RGB", (512, 512))
    picture = picture.convert("RGB")
    picture.thumbnail((1024, 1024), Image.Resampling.BOX, reducing_gap=2.0)
    rows = np.empty((CROPS, SIZE, SIZE, 3), np.uint8)
    for row in rows:
        side = min(picture.size) * rng.uniform(0.25, 1)
        x, y = (rng.uniform(0, length - side) for length in picture.size)
        row[:] = picture.resize(
            (SIZE, SIZE), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side)
        )
    return rows


def main() -> None:
    """Write both splits."""
    photos, out = Path(sys.argv[1]), Path(sys.argv[2])
    rng = np.random.default_rng(0)
    splits = {}
    for split in ("train", "test"):
        stored = load_images(get("treevq/cifar10").config.data, split)
        splits[split] = [
            np.stack([np.asarray(stored.pixels[row]) for row in range(len(stored))]).transpose(
                0, 2, 3, 1
            )
        ]
    count = 0
    for picture in pictures(photos):
        if picture.mode == "RGB" and min(picture.size) >= LEAST:
            splits["test" if count % 20 == 19 else "train"].append(crops(picture, rng))
            count += 1
    out.mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        # `recipes/thumb` takes the images as whole when those for test, the last, are there.
        path = out / f"{split}_images.npy"
        with replace_file(path) as temporary, temporary.open("xb") as stream:
            np.save(stream, np.concatenate(images))
    print(f"{out}: crops of {count} photographs beside CIFAR10's images")


if __name__ == "__main__":
    main()
