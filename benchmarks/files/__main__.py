"""Compare bytes and error of trained models, WebP, AVIF, JPEG XL, JPEG and a linear transform on
test images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.common import (
    Row,
    as_script,
    options,
    parse_lines,
    preset_of,
    read_images,
    show,
)
from benchmarks.files.curves import (
    Curve,
    FileCodec,
    Images,
    compare_curve,
    compare_fitted,
    measure,
)
from benchmarks.files.formats import FORMATS
from benchmarks.files.linear import Linear
from benchmarks.files.trained import TrainedFiles
from hrvqvae.checkpoints.folder import list_models
from hrvqvae.cli.console import print_json
from hrvqvae.config import DataConfig
from hrvqvae.data.images import write_image
from hrvqvae.plots.curves import save_figure
from hrvqvae.plots.sheets import SheetRow, draw
from hrvqvae.utils.progress import note

BUDGETS = (24, 60, 90, 120, 150, 220, 288)
LARGE_BUDGETS = (100, 288, 500, 1000, 1500, 2500)
_ON_SHEET = 10  # images
_LARGE = 64  # pixels per side from which LARGE_BUDGETS are used


@dataclass(frozen=True, eq=False)
class FilesCompared:
    """Codecs that were measured on the same images (N, C, Y, X)."""

    images: Images
    budgets: tuple[int, ...]  # bytes per image, of the tables
    codecs: tuple[FileCodec, ...]
    curves: tuple[Curve, ...]  # one or more per codec

    def rows(self) -> list[Row]:
        """Return a row per curve: file, title, whole, model_bytes, smallest (bytes of the smallest
        setting), settings, within, fitted and above.

        Within and fitted are the PSNR at each budget: within, if the budget holds for the mean over
        all images; fitted, if it holds for each image, with a setting of its own. Above are the
        results of `compare_fitted` for a trained model, by rival.
        """
        return [
            {
                "file": curve.title if curve.whole else f"({curve.title})",
                "title": curve.title,
                "whole": curve.whole,
                "model_bytes": curve.model_bytes or None,
                "smallest": min(point.bytes for point in curve.points),
                "settings": [
                    {"setting": name, **vars(point)}
                    for name, point in zip(curve.settings, curve.points, strict=True)
                ],
                "within": [curve.within(budget) for budget in self.budgets],
                "fitted": [curve.fitted(budget) for budget in self.budgets],
                "above": {
                    rival.title: [compare_fitted(curve, rival, budget) for budget in self.budgets]
                    for rival in self.curves
                    if curve.learned and rival is not curve
                },
            }
            for curve in self.curves
        ]

    def ahead(self) -> dict[str, list[Row]]:
        """Return the rows of `compare_curve` of each trained model, by title."""
        return {
            curve.title: compare_curve(
                curve, [rival for rival in self.curves if rival is not curve]
            )
            for curve in self.curves
            if curve.learned
        }


def compare_files(
    config: DataConfig,
    models: Sequence[str],
    names: Sequence[str],
    *,
    limit: int = 1000,
    linear: bool = True,
) -> FilesCompared:
    """Measure trained models, formats and the linear transform on test images of a data set.

    Args:
        config: Data set.
        models: Run folders, weights files or names of models in the package.
        names: Keys of `FORMATS`.
        limit: Largest number of test images, evenly spread.
        linear: Whether to measure the linear transform, which learns from the training split.

    Raises:
        InputError: The data or a model is missing.
    """
    budgets = LARGE_BUDGETS if max(config.image_size) >= _LARGE else BUDGETS
    codecs: list[FileCodec] = [
        *(TrainedFiles(model, budgets) for model in models),
        *(FORMATS[name]() for name in names),
    ]
    images: Images = read_images(config, limit).numpy()
    if linear:
        note("learning the linear transform")
        codecs.append(Linear(read_images(config, split="train").numpy()))
    curves: list[Curve] = []
    for codec in codecs:
        note(
            f"measuring {codec.counts[0].title}: {len(codec.settings)} settings,"
            f" {len(images):,} images"
        )
        curves += measure(codec, images)
    return FilesCompared(images, budgets, tuple(codecs), tuple(curves))


def write_pictures(compared: FilesCompared, folder: Path) -> None:
    """Write curves.png and sheet.png (at the two middle budgets) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    plot_curves(compared, folder / "curves.png")
    middle = len(compared.budgets) // 2
    rows = rows_at_equal_bytes(compared, compared.budgets[middle : middle + 2])
    write_image(draw(rows), folder / "sheet.png")


def plot_curves(compared: FilesCompared, path: Path) -> None:
    """Plot PSNR and SSIM against mean bytes, without settings that a smaller one beats.

    A dotted line marks a curve that does not count every byte.
    """
    figure = Figure(figsize=(13, 5), layout="constrained")
    widest = 1.5 * max(compared.budgets)
    titles = {"psnr": "PSNR of the mean squared error, dB", "ssim": "SSIM, mean over images"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for curve in compared.curves:
            places: list[tuple[float, float]] = []
            for point in sorted(curve.points, key=lambda point: point.bytes):
                value = getattr(point, name)
                better = value is not None and (not places or value > places[-1][1])
                if better and point.bytes <= widest:
                    places.append((point.bytes, value))
            style = ("o" if curve.learned else ".") + ("-" if curve.whole else ":")
            if places:
                axes.plot(*zip(*places, strict=True), style, label=curve.title)
        axes.set(title=title, xlabel="bytes per image, mean", xscale="log", xlim=(None, widest))
        axes.grid(alpha=0.3, linewidth=0.5)
    figure.axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def rows_at_equal_bytes(compared: FilesCompared, budgets: Sequence[int]) -> list[SheetRow]:
    """Return the rows of a sheet: test images, and below them what each codec makes of them within
    a budget of bytes per image.

    A codec is left out at a budget if one of the images has no file so small.
    """
    count = len(compared.images)
    places = np.linspace(0, count - 1, min(_ON_SHEET, count)).round().astype(int)
    images = compared.images[places]
    measured = [(codec, curve) for codec in compared.codecs for curve in measure(codec, images)]
    rows = [SheetRow("original", _tensors(images))]
    for budget in budgets:
        for codec, curve in measured:
            chosen = curve.chosen(budget)
            if chosen is None:
                continue
            files = [
                codec.encode(images[at : at + 1], codec.settings[setting])[0]
                for at, setting in enumerate(chosen)
            ]
            size = curve.sizes[chosen, np.arange(len(chosen))].mean()
            caption = f"{curve.title}: at most {budget} bytes (mean {size:.0f})"
            caption += f", {curve.fitted(budget):.1f} dB"
            rows.append(SheetRow(caption, _tensors(codec.decode(files, images.shape[1:]))))
    return rows


def _tensors(images: Images) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(image)) for image in images]


_RESULT = """
file: {file}
model, MB: {model_MB:.2f}
smallest: {smallest:.0f}
"""
_AHEAD = """
setting: {setting}
bytes: {bytes:.1f}
PSNR: {psnr:.2f}
SSIM: {ssim:.3f}
"""
_TITLES = {
    "within": (
        "PSNR, dB, of the mean squared error: fixed settings, so many bytes per image in the mean"
    ),
    "fitted": "PSNR: so many bytes at most for each image, its setting chosen for it",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Compare files of a data set's test images; `--section.field VALUE` changes its preset of
    hrvqvae.
    """
    parser = options(__doc__, images=(1000, "test images"))
    text = "mnist, cifar10, emoji32, photos, ...: as in the presets"
    parser.add_argument("preset", metavar="DATASET", help=text)
    text = "trained models, with efforts 0 and 2 (default: the shipped model)"
    parser.add_argument("--models", nargs="*", metavar="RUN", help=text)
    parser.add_argument(
        "--formats", nargs="*", choices=FORMATS, default=[*FORMATS], help="default: all"
    )
    parser.add_argument("--no-linear", action="store_true", help="leave out the linear transform")
    text = "root folder, or images: a folder, tars, Parquet, arrays"
    parser.add_argument("--data", metavar="DIR", help=text)
    text = "write curves.png and sheet.png to DIR"
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help=text)
    arguments, config = preset_of(parser, argv, "hrvqvae/")
    dataset = arguments.preset
    models = arguments.models or ()
    if arguments.models is None and dataset in list_models():
        models = [dataset]
    compared = compare_files(
        config.with_root(arguments.data).data,
        models,
        arguments.formats,
        limit=arguments.images,
        linear=not arguments.no_linear,
    )
    if arguments.out:
        write_pictures(compared, arguments.out)
    rows = compared.rows()
    ahead = compared.ahead()
    count, *shape = compared.images.shape
    if arguments.json:
        about = {"images": count, "shape": shape, "budgets": compared.budgets}
        print_json({**about, "curves": rows, "ahead": ahead})
        return
    print(f"{dataset}: {count:,} test images, {' x '.join(map(str, shape))}")
    print("(in brackets): without some bytes that a reader needs; model: needed beside the file")
    for way, title in _TITLES.items():
        cells = "".join(
            f"{budget} B: {{{way}[{place}]:.2f}}\n" for place, budget in enumerate(compared.budgets)
        )
        print(f"\n{title}")
        show(rows, parse_lines(_RESULT + cells))
    for title, points in ahead.items():
        rivals = "".join(
            f"- {rival}: {{ahead_of[{rival}]:+.2f}}\n" for rival in points[0]["ahead_of"]
        )
        print(f"\n{title}: dB above (below: -) the others at the same mean bytes")
        show(points, parse_lines(_AHEAD + rivals))


if __name__ == "__main__":
    as_script(main)
