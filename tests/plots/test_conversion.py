"""Images of any mode for a model of given channels: converted, and told once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrvqvae.plots.images import complete, reconstruct
from tests.conftest import write_picture


def test_colours_for_a_greyscale_model_are_converted_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A colour PNG was refused where the same picture with a palette was taken."""
    paths = [tmp_path / f"{mode}.png" for mode in ("L", "RGB", "P", "RGBA")]
    for path in paths:
        write_picture(path, 1, (28, 28), path.stem)
    said: list[str] = []
    found = reconstruct("mnist", paths, tmp_path / "sheet.png", say=said.append)
    assert [path for path, _ in found] == paths
    assert said == [f"images converted: 3 of 4 (colour to greyscale), the first is {paths[1]}"]
    assert found[1][1] == found[3][1], "an opaque RGBA image is the RGB image"
    reconstruct("mnist", paths[:1], tmp_path / "sheet.png")
    assert capsys.readouterr() == ("", "")
    complete("mnist", paths[1], "top", 1, tmp_path / "completed.png")
    note = f"images converted: 1 of 1 (colour to greyscale), the first is {paths[1]}\n"
    assert capsys.readouterr() == ("", note)
