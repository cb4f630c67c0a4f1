"""Bytes against error of files, and images at equal bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.files.comparison import FilesCompared
from benchmarks.files.contract import FileCodec, Images
from benchmarks.files.curves import Curve, measure
from hrvqvae.plots.curves import save_figure
from hrvqvae.plots.sheets import SheetRow, draw, save
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import psnr

_COLOURS = ("#4477aa", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#888888", "#bbbbbb", "#ee8866")
_APART = 1.2  # least ratio of two ticks
_OURS = ("#ee2211", "#222222", "#bb5500")


def write_pictures(compared: FilesCompared, folder: Path) -> list[Path]:
    """Write curves.png and sheet.png (at the middle budgets) into a folder, which is made if need be; -> their paths.

    Raises:
        InputError: the folder can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} can't be made ({error.strerror or error})") from error
    curves, sheet = folder / "curves.png", folder / "sheet.png"
    curves_of_files(compared, curves)
    middle = len(compared.budgets) // 2
    save(draw(rows_at_equal_bytes(compared, compared.budgets[middle : middle + 2])), sheet)
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

    A codec that has no such small file of one of the images is left out at that budget, and one that makes no more of
    it than of the budget before.
    """
    places = np.linspace(0, len(compared.images) - 1, min(count, len(compared.images))).round().astype(int)
    images = compared.images[places]
    measured = [(codec, curve) for codec in compared.codecs for curve in measure(codec, images)]
    rows = [SheetRow("original", _tensors(images))]
    for before, budget in pairwise((0, *budgets)):
        for codec, curve in measured:
            chosen, less = curve.chosen(budget), curve.chosen(before)
            if chosen is not None and (less is None or (chosen != less).any()):
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
