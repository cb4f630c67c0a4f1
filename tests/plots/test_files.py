"""Pictures of files side by side: the curves, and the sheet at equal bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.files.comparison import FilesCompared
from benchmarks.files.curves import measure
from benchmarks.files.formats import Jpeg, JpegScan
from benchmarks.files.thumbhash import ThumbHash
from hrvqvae.data.images import read_image
from hrvqvae.plots.files import rows_at_equal_bytes, write_pictures
from hrvqvae.utils.errors import InputError
from tests.benchmarks.files.pictures import smooth_images


def _compared() -> FilesCompared:
    codecs, images = (ThumbHash(), Jpeg((5, 60), (1,)), JpegScan((5, 60), (1,))), smooth_images(5)
    curves = tuple(curve for codec in codecs for curve in measure(codec, images))
    return FilesCompared(images, (24, 100, 400), codecs, curves)


def test_rows_hold_what_fits_and_nothing_twice() -> None:
    compared = _compared()
    rows = rows_at_equal_bytes(compared, (100, 400), count=3)
    captions = [row.caption.split(":")[0] for row in rows]
    assert captions[:3] == ["original", "ThumbHash", "JPEG, no header"]
    assert captions[3] == "JPEG"  # no whole file has 100 bytes or less, and the hash has no more to give
    assert "ThumbHash" not in captions[3:]
    assert all(len(row.images) == 3 for row in rows)
    assert (rows[0].images[2].numpy() == compared.images[4]).all()


def test_pictures_are_written(tmp_path: Path) -> None:
    curves, sheet = write_pictures(_compared(), tmp_path / "new" / "folder")
    assert read_image(curves, 3).shape == (3, 500, 1300)
    assert read_image(sheet, 3).shape[2] > 5 * 64
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file can't be made"):
        write_pictures(_compared(), tmp_path / "file")
