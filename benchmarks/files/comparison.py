"""The comparison of files on the test images of a data set, from names to curves and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.files.contract import FileCodec, Images
from benchmarks.files.curves import Curve, Point, against, measure
from benchmarks.files.formats import formats
from benchmarks.files.linear import Linear
from benchmarks.files.thumbhash import ThumbHash
from benchmarks.files.trained import TrainedFiles
from hrvqvae.config import DataConfig
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import load_images
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import note

BUDGETS = (24, 50, 100, 150, 200, 250, 288)
LARGE_BUDGETS = (100, 288, 500, 1000, 1500, 2500)
_LARGE, _BATCH = 64, 256  # pixels of a side from which an image is large


@dataclass(frozen=True, eq=False)
class FilesCompared:
    """Codecs side by side on the same images.

    Attributes:
        images: (N, C, Y, X) uint8, which all were measured on.
        budgets: bytes an image, of the tables.
        codecs: in the order of the curves, which there may be several of a codec.
        curves: what was measured.
    """

    images: Images
    budgets: tuple[int, ...]
    codecs: tuple[FileCodec, ...]
    curves: tuple[Curve, ...]

    def to_dict(self) -> dict[str, Any]:
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

    def ahead(self) -> dict[str, list[dict[str, Any]]]:
        """Title of each trained model -> its settings beside all other curves, as `curves.against` gives them."""
        return {
            curve.title: against(curve, [other for other in self.curves if other is not curve])
            for curve in self.curves
            if curve.learned
        }

    def table(self, measure: str, way: str) -> list[Sequence[object]]:
        """A row for each curve: what it reaches at each budget.

        Args:
            measure: psnr or ssim.
            way: within (fixed settings, bytes in the mean) or fitted (each image at most so many bytes).
        """
        rows: list[Sequence[object]] = [("file", "model", "smallest", *(f"{budget} B" for budget in self.budgets))]
        for curve in self.curves:
            found = [getattr(curve, way)(budget) for budget in self.budgets]
            cells = [_cell(None if one is None else getattr(one, measure), measure) for one in found]
            title = curve.title if curve.whole else f"({curve.title})"
            smallest = min(point.bytes for point in curve.points)
            rows.append((title, _size(curve.model_bytes), f"{smallest:.0f}", *cells))
        return rows


def _plain(point: Point | None) -> dict[str, Any] | None:
    return None if point is None else dict(vars(point))


def _cell(value: float | None, measure: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if measure == "psnr" else f"{value:.3f}"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count else "-"


def ahead_table(rows: Sequence[dict[str, Any]]) -> list[Sequence[object]]:
    """The rows of `curves.against` as a table: dB above each other curve at the same mean bytes."""
    others = list(rows[0]["ahead_of"])
    table: list[Sequence[object]] = [("setting", "bytes", "PSNR", "SSIM", *(f"- {title}" for title in others))]
    for row in rows:
        ahead = ["-" if row["ahead_of"][title] is None else f"{row['ahead_of'][title]:+.2f}" for title in others]
        about = (row["setting"], f"{row['bytes']:.1f}", _cell(row["psnr"], "psnr"), _cell(row["ssim"], "ssim"))
        table.append((*about, *ahead))
    return table


def read_split(config: DataConfig, split: str, limit: int | None, say: Callable[[str], None] = note) -> Images:
    """Images of a split (N, C, Y, X), not augmented; `limit` of them at most, spread evenly. Raises InputError."""
    found = evaluation_batches(
        load_images(config, split, say), batch_size=_BATCH, limit=limit, workers=0, on_error=config.on_error
    )
    batches = [batch.images for batch in found]
    if not batches:
        raise InputError(f"no image of the {split} split could be read")
    pixels: Images = torch.cat(batches).numpy()
    return pixels


def compare_files(
    config: DataConfig, models: Sequence[str] = (), names: Sequence[str] = (), *, limit: int | None = 1000,
    budgets: Sequence[int] = (), linear: bool = True, say: Callable[[str], None] = note,
) -> FilesCompared:  # fmt: skip
    """Measure trained models, formats, ThumbHash and the linear transform on test images of a data set.

    Args:
        config: the data.
        models: run folders, weights files or names of models inside the package.
        names: of `formats.FORMATS`; empty for all.
        limit: so many test images, spread evenly (None: all).
        budgets: bytes an image for the tables; empty for `BUDGETS`, or `LARGE_BUDGETS` for large images.
        linear: whether the linear transform is measured: it is learned from the training split.
        say: is told which one is being measured.

    Raises:
        InputError: the data, a model, a format or its package is not there.
    """
    codecs: list[FileCodec] = [TrainedFiles(model) for model in models]
    codecs += [*formats(names), ThumbHash()]
    images = read_split(config, "test", limit, say)
    if linear:
        say("learning the linear transform")
        codecs.append(Linear(read_split(config, "train", None, say)))
    curves: list[Curve] = []
    for codec in codecs:
        say(f"measuring {codec.counts[0].title}: {len(codec.settings)} settings, {len(images):,} images")
        curves += measure(codec, images)
    chosen = tuple(budgets) or (LARGE_BUDGETS if config.size >= _LARGE else BUDGETS)
    return FilesCompared(images, chosen, tuple(codecs), tuple(curves))
