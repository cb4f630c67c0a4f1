"""Bytes against error: trained models, WebP, AVIF, JPEG XL, JPEG and a linear transform, on test
images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.common import Row, as_script, options, positive, preset_of, read_images, show
from benchmarks.files.curves import Curve, FileCodec, Images, against, measure
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
_LARGE = 64  # pixels of a side from which an image is large


@dataclass(frozen=True, eq=False)
class FilesCompared:
    """Codecs side by side on the same images (N, C, Y, X)."""

    images: Images
    budgets: tuple[int, ...]  # bytes an image, of the tables
    codecs: tuple[FileCodec, ...]
    curves: tuple[Curve, ...]  # one or more of each codec

    def rows(self) -> list[Row]:
        """Of each curve: file, title, whole, model_bytes, smallest (file, bytes), settings, and
        PSNR at each budget: within (fixed settings, bytes in the mean) and fitted (each image at
        most so many bytes).
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
            }
            for curve in self.curves
        ]

    def ahead(self) -> dict[str, list[Row]]:
        """Title of each trained model -> `curves.against` all other curves."""
        return {
            curve.title: against(curve, [rival for rival in self.curves if rival is not curve])
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
    lmbdas: Sequence[float] | None = None,
) -> FilesCompared:
    """Measure trained models, formats and the linear transform on test images of a data set.

    Args:
        config: the data.
        models: run folders, weights files or names of models inside the package.
        names: of `FORMATS`.
        limit: so many test images, spread evenly.
        linear: whether the linear transform is measured: it is learned from the training split.
        lmbdas: weights of a bit, besides 0, of trained models (None: 2^-9 to 2^-2).

    Raises:
        InputError: the data or a model is not there.
    """
    codecs: list[FileCodec] = [
        *(TrainedFiles(model, lmbdas) for model in models),
        *(FORMATS[name]() for name in names),
    ]
    images: Images = read_images(config, limit).numpy()
    if linear:
        note("learning the linear transform")
        codecs.append(Linear(read_images(config, split="train").numpy()))
    curves: list[Curve] = []
    for codec in codecs:
        note(
            f"measuring {codec.counts[0].title}: {len(codec.settings)} settings, {len(images):,}"
            " images"
        )
        curves += measure(codec, images)
    budgets = LARGE_BUDGETS if max(config.image_size) >= _LARGE else BUDGETS
    return FilesCompared(images, budgets, tuple(codecs), tuple(curves))


def write_pictures(compared: FilesCompared, folder: Path) -> None:
    """Write curves.png and sheet.png (at the middle budgets) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    curves_of_files(compared, folder / "curves.png")
    middle = len(compared.budgets) // 2
    write_image(
        draw(rows_at_equal_bytes(compared, compared.budgets[middle : middle + 2])),
        folder / "sheet.png",
    )


def curves_of_files(compared: FilesCompared, path: Path) -> None:
    """PSNR and SSIM against mean bytes, of settings that no other of the curve beats; dotted: not
    every byte counts.
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
            marker = "o" if curve.learned else "."
            line = "-" if curve.whole else ":"
            if places:
                axes.plot(*zip(*places, strict=True), marker + line, label=curve.title)
        axes.set(title=title, xlabel="bytes an image, mean", xscale="log", xlim=(None, widest))
        axes.grid(alpha=0.3, linewidth=0.5)
    figure.axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def rows_at_equal_bytes(compared: FilesCompared, budgets: Sequence[int]) -> list[SheetRow]:
    """Test images above what each codec makes of them in at most so many bytes, the setting chosen
    for each image.

    A codec that has no such small file of one of the images is left out at that budget.
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
            caption = (
                f"{curve.title}: at most {budget} bytes ({size:.0f} in the mean),"
                f" {curve.fitted(budget):.1f} dB"
            )
            rows.append(SheetRow(caption, _tensors(codec.decode(files, images.shape[1:]))))
    return rows


def _tensors(images: Images) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(image)) for image in images]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the files of a data set's test images; `--section.field VALUE` changes its preset of
    hrvqvae.
    """
    parser = options(__doc__)
    parser.add_argument(
        "preset", metavar="DATASET", help="mnist, cifar10, emoji32, photos, ...: as in the presets"
    )
    trained = (
        "trained models, at several lambda; about a second an image (default: the shipped one, if"
        " any)"
    )
    parser.add_argument("--models", nargs="*", metavar="RUN", help=trained)
    parser.add_argument(
        "--formats", nargs="*", choices=FORMATS, default=[*FORMATS], help="default: all"
    )
    parser.add_argument(
        "--lmbdas", nargs="*", type=float, metavar="V", help="besides 0 (default: 2^-9 to 2^-2)"
    )
    parser.add_argument("--no-linear", action="store_true", help="leave out the linear transform")
    parser.add_argument(
        "--images", type=positive, default=1000, metavar="N", help="test images (default: 1000)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="root folder, or images: a folder, tars, Parquet, arrays"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="gets curves.png and sheet.png"
    )
    arguments, config = preset_of(parser, argv, "hrvqvae/")
    dataset = arguments.preset
    models = (
        [dataset]
        if arguments.models is None and dataset in list_models()
        else arguments.models or ()
    )
    compared = compare_files(
        config.with_root(arguments.data).data,
        models,
        arguments.formats,
        limit=arguments.images,
        linear=not arguments.no_linear,
        lmbdas=arguments.lmbdas,
    )
    if arguments.out:
        write_pictures(compared, arguments.out)
    curves, (count, *shape) = compared.rows(), compared.images.shape
    if arguments.json:
        about = {"images": count, "shape": shape, "budgets": compared.budgets}
        print_json({**about, "curves": curves, "ahead": compared.ahead()})
        return
    print(f"{dataset}: {count:,} test images, {' x '.join(map(str, shape))}")
    print(
        "(in brackets): not every byte that a reader needs is counted; model: what it needs beside"
        " the file"
    )
    titles = {
        "within": (
            "PSNR, dB, of the mean squared error: fixed settings, so many bytes per image in"
            " the mean"
        ),
        "fitted": "PSNR: so many bytes at most for each image, its setting chosen for it",
    }
    for way, title in titles.items():
        print(f"\n{title}")
        reached = {
            f"{budget} B": f"{{{way}[{place}]:.2f}}"
            for place, budget in enumerate(compared.budgets)
        }
        show(
            curves,
            {
                "file": "{file}",
                "model, MB": "{model_MB:.2f}",
                "smallest": "{smallest:.0f}",
                **reached,
            },
        )
    for title, rows in compared.ahead().items():
        print(f"\n{title}: dB above (below: -) the others at the same mean bytes")
        columns = {
            "setting": "{setting}",
            "bytes": "{bytes:.1f}",
            "PSNR": "{psnr:.2f}",
            "SSIM": "{ssim:.3f}",
        }
        columns |= {f"- {rival}": f"{{ahead_of[{rival}]:+.2f}}" for rival in rows[0]["ahead_of"]}
        show(rows, columns)


if __name__ == "__main__":
    as_script(main)
