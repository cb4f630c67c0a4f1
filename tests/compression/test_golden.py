"""Files that were written once are read to the same codes for ever, and written again bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hrvqvae.compression.archive import appending, open_archive
from hrvqvae.compression.entropy_model import EntropyModel, read_entropy_model
from hrvqvae.compression.hrv import read, write
from hrvqvae.compression.network import POWERS
from tests.compression import oracle
from tests.compression.made import flat

FOLDER = Path(__file__).parents[1] / "golden" / "files"
INDEX: dict[str, Any] = json.loads((FOLDER / "codes.json").read_text())


def codec_of(one: dict[str, Any]) -> EntropyModel:
    codec = read_entropy_model((FOLDER / one["tables"]).read_bytes())
    return codec if one["by_tables"] else codec.bare


@pytest.mark.parametrize("threads", [1, 2])
def test_files_are_read_to_the_same_codes(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {path.name for path in FOLDER.glob("*.hrv")} == {one["file"] for one in INDEX["files"]}
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for one in INDEX["files"]:
        found = read(codec_of(one), [(FOLDER / one["file"]).read_bytes()] * 20)
        for image in (found[0], found[-1]):
            assert (list(image.size), image.fault) == (one["size"], "")
            assert [codes.tolist() for codes in image.codes] == one["codes"]


def test_files_are_written_bit_for_bit_as_they_were() -> None:
    for one in INDEX["files"]:
        codec, codes = codec_of(one), flat([np.array(level, np.int32) for level in one["codes"]])
        padded = np.zeros((1, codec.layout(tuple(one["size"])).begins[-1]), np.int32)
        padded[0, : len(codes)] = codes
        (parts,) = write(codec, padded, tuple(one["size"]), len(one["codes"]))
        assert b"".join(parts) == (FOLDER / one["file"]).read_bytes()


def test_powers_are_those_of_the_page() -> None:
    assert np.array_equal(POWERS, oracle.POWERS)


def test_archives_are_read_to_the_same_codes_and_written_as_they_were(tmp_path: Path) -> None:
    for one in INDEX["archives"]:
        archive = open_archive(FOLDER / one["file"])
        found = archive.read(range(len(archive.entries)))
        assert [
            {"name": entry.name, "size": list(entry.size), "codes": [codes.tolist() for codes in image.codes]}
            for entry, image in zip(archive.entries, found, strict=True)
        ] == one["images"]
        with appending(tmp_path / one["file"], archive.codec) as writer:
            for start in range(0, len(found), 2):  # two images a block
                entries = archive.entries[start : start + 2]
                codes = [np.zeros(archive.codec.layout(entry.size).begins[-1], np.int32) for entry in entries]
                for row, image in zip(codes, found[start : start + 2], strict=True):
                    row[: len(flat(image.codes))] = flat(image.codes)
                names = [entry.name for entry in entries]
                writer.append(codes, [entry.size for entry in entries], names, entries[0].levels)
        assert (tmp_path / one["file"]).read_bytes() == (FOLDER / one["file"]).read_bytes()
