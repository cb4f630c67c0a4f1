"""Write web/examples.json: a test image of CIFAR10 of each class, with AVIF files of it at several
sizes.

python -m web.examples
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.files.formats import Avif, frame_bytes
from hrvqvae.config.presets import get
from hrvqvae.data.loading import load_images

QUALITIES = (0, 10, 20, 26, 32, 38, 44, 50, 55, 60, 66, 72)


def main() -> None:
    """Write the file."""
    images = load_images(get("treevq/cifar10").config.data, "test")
    labels, codec, examples = np.asarray(images.labels), Avif(), []
    for label, name in enumerate(images.classes):
        row = int(np.flatnonzero(labels == label)[3])
        picture = Image.fromarray(np.asarray(images.pixels[row]).transpose(1, 2, 0))
        stream = io.BytesIO()
        picture.save(stream, "PNG", optimize=True)
        files = {}
        for quality in QUALITIES:
            content = codec.save(picture, quality)
            files[frame_bytes(content)] = base64.b64encode(content).decode()
        avif = {"32": [[size, files[size]] for size in sorted(files) if size <= 260]}
        examples.append(
            {"name": name, "png": base64.b64encode(stream.getvalue()).decode(), "avif": avif}
        )
    (Path(__file__).parent / "examples.json").write_text(
        json.dumps(examples, separators=(",", ":"))
    )


if __name__ == "__main__":
    main()
