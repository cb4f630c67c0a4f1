"""Files that were written once are read to the same codes for ever, and written again bit for bit."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hrvqvae.compression.archive import appending, open_archive
from hrvqvae.compression.entropy_model import EntropyModel, read_entropy_model
from hrvqvae.compression.hrv import read, write
from hrvqvae.compression.network import POWERS
from hrvqvae.config import Grid
from tests.compression import oracle
from tests.compression.made import flat

FOLDER = Path(__file__).parents[1] / "golden" / "files"
FOLDERS = (FOLDER, FOLDER / "version-1")  # files of the same codes, of versions 0 and 1
INDEX: dict[str, Any] = json.loads((FOLDER / "codes.json").read_text())


def codec_of(one: dict[str, Any]) -> EntropyModel:
    codec = read_entropy_model((FOLDER / one["tables"]).read_bytes())
    return codec if one["by_tables"] else codec.bare


def row_of(codec: EntropyModel, size: Grid, codes: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """All codes of an image, of which these are the first levels'."""
    row = np.zeros(codec.layout(size).begins[-1], np.int32)
    row[: len(flat(codes))] = flat(codes)
    return row


@pytest.mark.parametrize("threads", [1, 2])
def test_files_are_read_to_the_same_codes(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {path.name for path in FOLDER.glob("*.hrv")} == {one["file"] for one in INDEX["files"]}
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for one, folder in product(INDEX["files"], FOLDERS):
        found = read(codec_of(one), [(folder / one["file"]).read_bytes()] * 20)
        for image in (found[0], found[-1]):
            assert (list(image.size), image.fault) == (one["size"], "")
            assert [codes.tolist() for codes in image.codes] == one["codes"]


def test_files_are_written_bit_for_bit_as_they_were() -> None:
    for one in INDEX["files"]:
        codec, codes, size = codec_of(one), [np.array(level, np.int32) for level in one["codes"]], tuple(one["size"])
        (parts,) = write(codec, row_of(codec, size, codes)[None], size, len(codes))
        assert b"".join(parts) == (FOLDERS[-1] / one["file"]).read_bytes()


def test_powers_are_those_of_the_page() -> None:
    assert np.array_equal(POWERS, oracle.POWERS)


def test_archives_are_read_to_the_same_codes_and_written_as_they_were(tmp_path: Path) -> None:
    for one, folder in product(INDEX["archives"], FOLDERS):
        archive = open_archive(folder / one["file"])
        found = archive.read(range(len(archive.entries)))
        assert [
            {"name": entry.name, "size": list(entry.size), "codes": [codes.tolist() for codes in image.codes]}
            for entry, image in zip(archive.entries, found, strict=True)
        ] == one["images"]
        copy = tmp_path / f"{folder.name}-{one['file']}"
        if folder == FOLDER:  # to an archive of an earlier version images are appended as that has them
            copy.write_bytes(archive.path.read_bytes()[: len(archive.codec.content) + 13])
        with appending(copy, archive.codec) as writer:
            for start in range(0, len(found), 2):  # two images a block
                entries = archive.entries[start : start + 2]
                codes = [row_of(archive.codec, one.size, one.codes) for one in found[start : start + 2]]
                names = [entry.name for entry in entries]
                writer.append(codes, [entry.size for entry in entries], names, entries[0].levels)
        assert copy.read_bytes() == archive.path.read_bytes()
