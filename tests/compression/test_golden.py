"""Files that were written once are read to the same codes for ever, and the page says all that it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hrvqvae.compression.archive import open_archive
from hrvqvae.compression.stream import Codec, read
from hrvqvae.compression.tables import read_tables
from tests.compression import oracle
from tests.compression.golden import FOLDER

INDEX: dict[str, Any] = json.loads((FOLDER / "codes.json").read_text())


def codec_of(path: Path, by_tables: bool) -> Codec:
    tables = read_tables(path.read_bytes())
    return Codec(tables.name, tables.model, tables.geometry, tables.symbols, tables if by_tables else None)


def test_there_are_twenty() -> None:
    assert len(INDEX["files"]) == 20
    assert {path.name for path in FOLDER.glob("*.hrv")} == {one["file"] for one in INDEX["files"]}


@pytest.mark.parametrize("threads", [1, 2])
def test_they_are_read_to_the_same_codes(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for one in INDEX["files"]:
            codec = codec_of(FOLDER / one["tables"], one["by_tables"])
            found = read(codec, [(FOLDER / one["file"]).read_bytes()] * 20)
            for picture in (found[0], found[-1]):
                assert (list(picture.size), picture.fault) == (one["size"], "")
                assert [codes.tolist() for codes in picture.codes] == one["codes"]
    finally:
        torch.set_num_threads(before)


def test_the_oracle_reads_them_too() -> None:
    for one in INDEX["files"]:
        tables = oracle.TablesFile((FOLDER / one["tables"]).read_bytes())
        size, codes = oracle.decode_file((FOLDER / one["file"]).read_bytes(), tables)
        assert (list(size), codes) == (one["size"], one["codes"])


def test_archives_are_read_to_the_same_codes() -> None:
    for one in INDEX["archives"]:
        archive = open_archive(FOLDER / one["file"])
        found = archive.read(range(len(archive.entries)))
        assert [
            {"name": entry.name, "size": list(entry.size), "codes": [codes.tolist() for codes in picture.codes]}
            for entry, picture in zip(archive.entries, found, strict=True)
        ] == one["images"]


def test_the_powers_are_those_of_the_page() -> None:
    from hrvqvae.compression.network import POWERS

    assert np.array_equal(POWERS, oracle.POWERS)
