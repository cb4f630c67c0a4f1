"""Image formats that other programs read: WebP, AVIF, JPEG XL, JPEG.

The encoders are libwebp (in the package webp, which sets every field of its configuration), libaom
and libjpeg-turbo (in Pillow), and libjxl (in pillow-jxl-plugin).
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import pillow_jxl  # noqa: F401 (registers itself with Pillow)
import webp
from PIL import Image

from benchmarks.files.curves import Count, FileCodec, Images, Shape
from hrvqvae.data.images import to_pil


def as_pixels(image: Image.Image, shape: Shape) -> Images:
    """Return an image as (C, Y, X), resized by Lanczos' filter if it has another size."""
    channels, height, width = shape
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


@dataclass(frozen=True)
class Setting:
    """Quality as the format counts it, and the factor by which an image is reduced before it is
    written. The reader enlarges it.
    """

    quality: int
    reduced: int = 1

    def __str__(self) -> str:
        return f"quality {self.quality}" + (
            f" at 1/{self.reduced} size" if self.reduced > 1 else ""
        )


class Format(FileCodec):
    """An image format, with some qualities and reductions (default: all of the class)."""

    qualities: Sequence[int]
    reductions: Sequence[int] = (1, 2)

    def __init__(self, qualities: Sequence[int] = (), reductions: Sequence[int] = ()) -> None:
        pairs = product(qualities or self.qualities, reductions or self.reductions)
        self.settings = tuple(Setting(*pair) for pair in pairs)

    @abstractmethod
    def save(self, image: Image.Image, quality: int) -> bytes:
        """Return the file of an image in mode L or RGB."""

    def encode(self, images: Images, setting: Setting) -> list[bytes]:
        files = []
        for pixels in images:
            image = to_pil(pixels)
            if setting.reduced > 1:
                width, height = (max(1, side // setting.reduced) for side in image.size)
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            files.append(self.save(image, setting.quality))
        return files

    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        return np.stack([as_pixels(Image.open(BytesIO(file)), shape) for file in files])


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


class WebP(Format):
    """Lossy WebP as `cwebp -m 6 -sns 0 -segments 1` writes it: tuned for squared error, with the
    default filter.
    """

    counts = (Count("WebP"),)
    qualities = range(0, 97, 8)
    reductions = (1, 2, 4)

    def save(self, image: Image.Image, quality: int) -> bytes:
        config = webp.WebPConfig.new(quality=quality, method=6)
        config.ptr.sns_strength, config.ptr.segments = 0, 1
        return bytes(webp.WebPPicture.from_pil(image.convert("RGB")).encode(config).buffer())


class JpegXL(Format):
    """Lossy JPEG XL with effort 9, without a container. Quality 0 is the largest distance of
    libjxl.
    """

    counts = (Count("JPEG XL"),)
    qualities = range(0, 91, 10)

    def save(self, image: Image.Image, quality: int) -> bytes:
        return _saved(image, "JXL", quality=quality, effort=9, num_threads=0)


def scan_bytes(file: bytes) -> int:
    """Return the entropy-coded bytes of a JPEG with one scan, between the header of the scan and
    the end marker.
    """
    place = 2
    while file[place + 1] != 0xDA:
        place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")
    return len(file) - 2 - (place + 2 + int.from_bytes(file[place + 2 : place + 4], "big"))


class Jpeg(Format):
    """Baseline JPEG with optimized Huffman tables."""

    counts: tuple[Count, ...] = (Count("JPEG"),)
    qualities = range(1, 92, 10)

    def save(self, image: Image.Image, quality: int) -> bytes:
        return _saved(image, "JPEG", quality=quality, optimize=True)


class JpegScan(Jpeg):
    """JPEG with the Huffman tables of the standard. Only the entropy-coded bytes count; files could
    share the rest.
    """

    counts = (Count("JPEG, no header", scan_bytes, whole=False),)

    def save(self, image: Image.Image, quality: int) -> bytes:
        return _saved(image, "JPEG", quality=quality)


def frame_bytes(file: bytes) -> int:
    """Return the bytes of the frame in an AVIF file, without container and sequence header, which
    an archive would keep once.
    """
    media = next(body for kind, body in _boxes(file) if kind == b"mdat")
    return sum(len(body) for kind, body in _obus(media) if kind in _FRAMES)


# OBU_FRAME_HEADER, OBU_TILE_GROUP, OBU_FRAME (AV1 bitstream specification, 6.2.2)
_FRAMES = (3, 4, 6)


def _boxes(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and content of the outer boxes of an ISO base media file with 32-bit sizes."""
    place = 0
    while place < len(file):
        size = int.from_bytes(file[place : place + 4], "big")
        yield file[place + 4 : place + 8], file[place + 8 : place + size]
        place += size


def _obus(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and payload of AV1's open bitstream units (specification, 5.3)."""
    place = 0
    while place < len(data):
        head = data[place]
        place += 2 if head & 4 else 1
        size = len(data) - place
        if head & 2:
            size = 0
            shift = 0
            while True:
                byte = data[place]
                place += 1
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
        yield (head >> 3) & 15, data[place : place + size]
        place += size


class Avif(Format):
    """AVIF of libaom, with colours at full resolution, tuned for squared error."""

    counts = (Count("AVIF"), Count("AVIF, frame only", frame_bytes, whole=False))
    qualities = range(0, 81, 10)
    reductions = (1,)
    speed = 2

    def save(self, image: Image.Image, quality: int) -> bytes:
        sampling = "4:0:0" if image.mode == "L" else "4:4:4"
        options = {"speed": self.speed, "max_threads": 1, "advanced": {"tune": "psnr"}}
        return _saved(image, "AVIF", quality=quality, subsampling=sampling, **options)


FORMATS: dict[str, Callable[[], Format]] = {
    "webp": WebP,
    "avif": Avif,
    "jxl": JpegXL,
    "jpeg": Jpeg,
    "jpeg-scan": JpegScan,
}
