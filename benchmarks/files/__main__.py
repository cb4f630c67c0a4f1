"""Bytes against error: trained models, WebP, AVIF, JPEG XL, JPEG and a linear transform, on test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.common import Row, as_script, options, positive, preset_of, show
from benchmarks.files.curves import Curve, FileCodec, Images, Point, against, measure
from benchmarks.files.formats import formats
from benchmarks.files.linear import Linear
from benchmarks.files.trained import TrainedFiles
from hrvqvae.checkpoints.folder import shipped
from hrvqvae.cli.console import print_json
from hrvqvae.config import DataConfig
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.images import write_image
from hrvqvae.data.loading import load_images
from hrvqvae.plots.curves import save_figure
from hrvqvae.plots.sheets import SheetRow, draw
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import note
from hrvqvae.utils.quantities import psnr

BUDGETS = (24, 50, 100, 150, 200, 250, 288)
LARGE_BUDGETS = (100, 288, 500, 1000, 1500, 2500)
_LARGE, _BATCH = 64, 256  # pixels of a side from which an image is large
_COLOURS = ("#4477aa", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#888888", "#bbbbbb", "#ee8866")
_APART = 1.2  # least ratio of two ticks
_OURS = ("#ee2211", "#222222", "#bb5500")


@dataclass(frozen=True, eq=False)
class FilesCompared:
    """Codecs side by side on the same images (N, C, Y, X)."""

    images: Images
    budgets: tuple[int, ...]  # bytes an image, of the tables
    codecs: tuple[FileCodec, ...]
    curves: tuple[Curve, ...]  # one or more of each codec

    def to_dict(self) -> Row:
        """Plain values for JSON."""
        curves = []
        for curve in self.curves:
            points = [
                {"setting": name, **vars(point)} for name, point in zip(curve.settings, curve.points, strict=True)
            ]
            budgets = [
                {"budget": budget, "fixed": _plain(curve.within(budget)), "fitted": _plain(curve.fitted(budget))}
                for budget in self.budgets
            ]
            about = {"title": curve.title, "whole": curve.whole, "model_bytes": curve.model_bytes}
            curves.append({**about, "settings": points, "budgets": budgets})
        _, *shape = self.images.shape
        return {"images": len(self.images), "shape": shape, "curves": curves, "ahead": self.ahead()}

    def ahead(self) -> dict[str, list[Row]]:
        """Title of each trained model -> `curves.against` all other curves."""
        return {
            curve.title: against(curve, [other for other in self.curves if other is not curve])
            for curve in self.curves
            if curve.learned
        }

    def show(self, measure: str, way: str) -> None:
        """Print a row for each curve: what it reaches at each budget.

        Args:
            measure: psnr or ssim.
            way: within (fixed settings, bytes in the mean) or fitted (each image at most so many bytes).
        """
        rows = []
        for curve in self.curves:
            found = [getattr(curve, way)(budget) for budget in self.budgets]
            rows.append(
                {
                    "file": curve.title if curve.whole else f"({curve.title})",
                    "model_bytes": curve.model_bytes or None,
                    "smallest": min(point.bytes for point in curve.points),
                    "reached": [None if point is None else getattr(point, measure) for point in found],
                }
            )  # fmt: skip
        form = ".2f" if measure == "psnr" else ".3f"
        reached = {f"{budget} B": f"{{reached[{place}]:{form}}}" for place, budget in enumerate(self.budgets)}
        show(rows, {"file": "{file}", "model, MB": "{model_MB:.2f}", "smallest": "{smallest:.0f}", **reached})


def _plain(point: Point | None) -> Row | None:
    return None if point is None else dict(vars(point))


def read_split(config: DataConfig, split: str, limit: int | None) -> Images:
    """Images of a split (N, C, Y, X), not augmented; `limit` of them at most, spread evenly. Raises InputError."""
    found = evaluation_batches(load_images(config, split), batch_size=_BATCH, limit=limit, workers=0)
    batches = [batch.images for batch in found]
    if not batches:
        raise InputError(f"no image of the {split} split could be read")
    pixels: Images = torch.cat(batches).numpy()
    return pixels


def compare_files(
    config: DataConfig, models: Sequence[str] = (), names: Sequence[str] = (), *, limit: int | None = 1000,
    budgets: Sequence[int] = (), linear: bool = True,
) -> FilesCompared:  # fmt: skip
    """Measure trained models, formats and the linear transform on test images of a data set.

    Args:
        config: the data.
        models: run folders, weights files or names of models inside the package.
        names: of `formats.FORMATS`; empty for all.
        limit: so many test images, spread evenly (None: all).
        budgets: bytes an image for the tables; empty for `BUDGETS`, or `LARGE_BUDGETS` for large images.
        linear: whether the linear transform is measured: it is learned from the training split.

    Raises:
        InputError: the data, a model, a format or its package is not there.
    """
    codecs: list[FileCodec] = [TrainedFiles(model) for model in models]
    codecs += formats(names)
    images = read_split(config, "test", limit)
    if linear:
        note("learning the linear transform")
        codecs.append(Linear(read_split(config, "train", None)))
    curves: list[Curve] = []
    for codec in codecs:
        note(f"measuring {codec.counts[0].title}: {len(codec.settings)} settings, {len(images):,} images")
        curves += measure(codec, images)
    chosen = tuple(budgets) or (LARGE_BUDGETS if config.size >= _LARGE else BUDGETS)
    return FilesCompared(images, chosen, tuple(codecs), tuple(curves))


def write_pictures(compared: FilesCompared, folder: Path) -> list[Path]:
    """Write curves.png and sheet.png (at the middle budgets) into a folder; -> their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    curves, sheet = folder / "curves.png", folder / "sheet.png"
    curves_of_files(compared, curves)
    middle = len(compared.budgets) // 2
    write_image(draw(rows_at_equal_bytes(compared, compared.budgets[middle : middle + 2])), sheet)
    return [curves, sheet]


def curves_of_files(compared: FilesCompared, path: Path) -> None:
    """PSNR and SSIM against mean bytes: a point for each setting; dotted where not every byte of a file counts."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    by_psnr, by_ssim = figure.subplots(1, 2)
    others = [curve for curve in compared.curves if not curve.learned]
    ours = [curve for curve in compared.curves if curve.learned]
    widest = 1.5 * max(compared.budgets)
    ticks = [one for one, more in pairwise((*compared.budgets, math.inf)) if more / one > _APART]
    for curve, colour in zip(others, _COLOURS * len(others), strict=False):
        _draw_curve(by_psnr, by_ssim, curve, colour, widest, marker=".", linewidth=1.2)
    for curve, colour in zip(ours, _OURS * len(ours), strict=False):
        _draw_curve(by_psnr, by_ssim, curve, colour, widest, marker="o", linewidth=2.2)
    for axes, title in ((by_psnr, "PSNR of the mean squared error, dB"), (by_ssim, "SSIM, mean over images")):
        axes.set(title=title, xlabel="bytes an image, mean", xscale="log", xlim=(None, widest))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3, linewidth=0.5)
    by_psnr.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _draw_curve(
    by_psnr: Axes, by_ssim: Axes, curve: Curve, colour: str, widest: float, *, marker: str, linewidth: float
) -> None:
    """The settings that no other setting of the curve beats, in each measure."""
    for axes, name in ((by_psnr, "psnr"), (by_ssim, "ssim")):
        places: list[tuple[float, float]] = []
        for point in sorted(curve.points, key=lambda point: point.bytes):
            value = getattr(point, name)
            if value is not None and point.bytes <= widest and (not places or value > places[-1][1]):
                places.append((point.bytes, value))
        if places:
            axes.plot(
                *zip(*places, strict=True), linestyle="-" if curve.whole else ":", marker=marker, markersize=5,
                color=colour, linewidth=linewidth, label=curve.title,
            )  # fmt: skip


def rows_at_equal_bytes(compared: FilesCompared, budgets: Sequence[int], count: int = 10) -> list[SheetRow]:
    """Test images above what each codec makes of them in at most so many bytes, the setting chosen for each image.

    A codec that has no such small file of one of the images is left out at that budget.
    """
    places = np.linspace(0, len(compared.images) - 1, min(count, len(compared.images))).round().astype(int)
    images = compared.images[places]
    measured = [(codec, curve) for codec in compared.codecs for curve in measure(codec, images)]
    rows = [SheetRow("original", _tensors(images))]
    for budget in budgets:
        for codec, curve in measured:
            chosen = curve.chosen(budget)
            if chosen is not None:
                rows.append(_row(codec, curve, images, budget, chosen))
    return rows


def _row(codec: FileCodec, curve: Curve, images: Images, budget: int, chosen: NDArray[np.intp]) -> SheetRow:
    decoded = [
        codec.decode(codec.encode(images[place : place + 1], codec.settings[setting]), images.shape[1:])[0]
        for place, setting in enumerate(chosen)
    ]
    at = (chosen, np.arange(len(chosen)))
    size, error = curve.sizes[at].mean(), float(curve.errors[at].mean())
    caption = f"{curve.title}: at most {budget} bytes ({size:.0f} in the mean), {psnr(error):.1f} dB"
    return SheetRow(caption, _tensors(np.stack(decoded)))


def _tensors(images: Images) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(image)) for image in images]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the files of a data set's test images; `--section.field VALUE` changes its preset of hrvqvae."""
    parser = options(__doc__)
    parser.add_argument("preset", metavar="DATASET", help="mnist, cifar10, emoji32, photos, ...: as in the presets")
    trained = "trained models, at several lambda; about a second an image (default: the shipped one, if any)"
    parser.add_argument("--models", nargs="*", metavar="RUN", help=trained)
    parser.add_argument("--formats", nargs="+", default=(), metavar="NAME", help="webp, avif, jxl, jpeg, jpeg-scan")
    parser.add_argument("--no-linear", action="store_true", help="leave out the linear transform")
    parser.add_argument("--bytes", nargs="+", type=positive, default=(), metavar="N", help="budgets of the tables")
    parser.add_argument("--images", type=positive, default=1000, metavar="N", help="test images (default: 1000)")
    parser.add_argument("--data", metavar="DIR", help="root folder, or images: a folder, tars, Parquet, arrays")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="gets curves.png and sheet.png")
    arguments, config = preset_of(parser, argv, "hrvqvae/")
    dataset = arguments.preset
    models = [dataset] if arguments.models is None and dataset in shipped() else arguments.models or ()
    compared = compare_files(
        config.with_root(arguments.data).data, models, arguments.formats, limit=arguments.images,
        budgets=arguments.bytes, linear=not arguments.no_linear,
    )  # fmt: skip
    written = write_pictures(compared, arguments.out) if arguments.out else []
    if arguments.json:
        print_json(compared.to_dict())
        return
    _, channels, height, width = compared.images.shape
    print(f"{dataset}: {len(compared.images):,} test images, {channels} x {height} x {width}")
    print("(in brackets): not every byte that a reader needs is counted; model: what it needs beside the file")
    for what, way, title in (
        ("psnr", "within", "PSNR, dB, of the mean squared error: fixed settings, so many bytes per image in the mean"),
        ("ssim", "within", "SSIM, the same"),
        ("psnr", "fitted", "PSNR: so many bytes at most for each image, its setting chosen for it"),
    ):
        print(f"\n{title}")
        compared.show(what, way)
    for title, rows in compared.ahead().items():
        print(f"\n{title}: dB above (below: -) the others at the same mean bytes")
        beside = {f"- {other}": f"{{ahead_of[{other}]:+.2f}}" for other in rows[0]["ahead_of"]}
        own = {"setting": "{setting}", "bytes": "{bytes:.1f}", "PSNR": "{psnr:.2f}", "SSIM": "{ssim:.3f}"}
        show(rows, {**own, **beside})
    for path in written:
        print(path)


if __name__ == "__main__":
    as_script(main)
