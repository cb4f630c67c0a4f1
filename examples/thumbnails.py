"""Write 100 thumbnails into an HTML file, whose script draws each of them from about 100 bytes.

    hrvqvae export --web thumb build/web
    python examples/thumbnails.py build/web/thumb.hrvw thumbnails.html

The pictures are test images of CIFAR10 (`hrvqvae data get cifar10`); --data DIR takes another
folder.
"""

import argparse
import base64
import html
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hrvqvae import load
from hrvqvae.data.images import read_image, to_pil

sys.path.insert(0, str(Path(__file__).parent.parent / "web"))
from inline import one_file

COUNT, SIDE, BYTES = 100, 32, 100
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>100 thumbnails</title>
<style>
  body { font: 1rem/1.4 sans-serif; margin: 1rem; }
  ul {
    display: grid;
    grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr));
    gap: .5rem;
    padding: 0;
  }
  li { list-style: none; }
  canvas { width: 100%; display: block; border-radius: .3rem; }
</style>
<body>
<h1>100 thumbnails</h1>
<p id="said"></p>
<ul>
LIST
</ul>
</body>
</html>
"""
SCRIPT = """
const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const model = await readBundle(bytesOf(document.getElementById("bundle").textContent));
const started = performance.now();
let bytes = 0;
for (const canvas of document.querySelectorAll("canvas")) {
  const file = bytesOf(canvas.dataset.code);
  const image = decode(file, model);
  Object.assign(canvas, { width: image.width, height: image.height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  bytes += file.length;
}
const time = (performance.now() - started).toFixed(0);
const said = `${bytes.toLocaleString("en")} bytes in all, drawn in ${time} ms`;
document.getElementById("said").textContent = said;
"""


def read_pictures(folder: str | None) -> list[tuple[str, torch.Tensor]]:
    """Return (name, image (1, 3, Y, X)) of pictures, reduced to 32 pixels at most."""
    if folder is None:
        from hrvqvae.config.presets import get
        from hrvqvae.data.loading import load_images

        images = load_images(get("treevq/cifar10").config.data, "test")
        return [
            (f"test image {row}", torch.from_numpy(np.array(images.pixels[row]))[None])
            for row in range(COUNT)
        ]
    pictures = []
    paths = sorted(Path(folder).rglob("*"))
    for path in [
        path for path in paths if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    ][:COUNT]:
        picture = to_pil(read_image(path, 3))
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
        pictures.append(
            (path.stem, torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())[None])
        )
    return pictures


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", metavar="DIR", help="a folder of pictures")
    arguments = parser.parse_args()
    model = load("thumb")
    items = []
    for name, image in read_pictures(arguments.data):
        files = [model.compress(image, levels)[0] for levels in model.autoencoder.prefixes]
        code = base64.b64encode(
            max((file for file in files if len(file) <= BYTES), key=len, default=files[0])
        ).decode()
        items.append(
            f'<li><canvas data-code="{code}" role="img" aria-label="{html.escape(name)}">'
            "</canvas></li>"
        )
    arguments.out.write_text(
        one_file(PAGE.replace("LIST", "\n".join(items)), SCRIPT, arguments.bundle)
    )
    print(f"{arguments.out}: {len(items)} pictures, {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
