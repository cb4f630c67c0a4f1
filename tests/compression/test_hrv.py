"""The file of one image: back as it was, readable by the page alone, and what damage does to it;
the range coder.
"""

import math
import re
from pathlib import Path

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hrvqvae.compression import range_coder as coder
from hrvqvae.compression.entropy_model import EntropyModel, read_entropy_model
from hrvqvae.compression.hrv import read, write
from hrvqvae.compression.network import POWERS
from hrvqvae.config import Geometry
from tests.compression.made import (
    GRIDS,
    TREE,
    files_of,
    flat,
    made_entropy_model,
    random_codes,
    read_one,
)
from tests.conftest import damage_error, names_in, parametrize, read_json

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=50)
@given(
    symbols=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    unit=st.integers(1, 9),
    margin=st.integers(0, 5),
    finer=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    size=SIZES,
    count=st.integers(1, 3),
    fitted=st.booleans(),
    levels=st.integers(1, 3),
    strength=st.sampled_from([0, 50, 2000]),
)
def test_codes_come_back(symbols, unit, margin, finer, size, count, fitted, levels, strength):
    levels = min(levels, len(symbols))
    times = tuple(np.cumprod(finer[: len(symbols)]).tolist())
    entropy_model = made_entropy_model(
        symbols, Geometry(unit, margin, times), seed=len(symbols), strength=strength
    )
    entropy_model = entropy_model if fitted else entropy_model.bare
    codes = random_codes(entropy_model, size, count)
    files = write(entropy_model, codes, size, levels)
    areas = entropy_model.layout(size).grids.prod(1)
    for image, image_codes, file in zip(read(entropy_model, files), codes, files, strict=True):
        assert image.size == size
        assert not image.fault
        assert sum(image.lengths) == len(file)
        assert len(image.codes) == levels
        decoded = flat(image.codes)
        assert np.array_equal(decoded, image_codes[: len(decoded)])
        assert image.lengths[0] <= (6 if max(size) <= 128 else 8)
        # raw, header and checks
        most = np.ceil(areas @ np.log2(symbols) / 8) + 2 * len(symbols)
        assert len(file) - image.lengths[0] <= most


def test_levels_of_zeros_are_never_whole():
    for entropy_model in (TREE, TREE.bare, GRIDS):
        for content in files_of(entropy_model, (12, 9), 20):
            ends = np.cumsum(read_one(entropy_model, content).lengths)
            for num_whole, end in enumerate(ends[:-1]):
                image = read_one(entropy_model, content[:end] + bytes(500))
                assert len(image.codes) == num_whole
                assert bool(image.fault)


def test_another_model_and_what_is_no_file_are_refused():
    second = made_entropy_model(TREE.symbols, TREE.geometry, seed=99)
    content = files_of(TREE, (8, 8))[0]
    stranger = EntropyModel("stranger", "ff" * 16, TREE.geometry, TREE.symbols)
    fine = made_entropy_model((3,), Geometry(1, 0, (64,)))
    for reader, file, message in (
        (second, content, f"x.hrv was made by another model .*{TREE.fingerprint.hex()}"),
        (TREE.bare, content, "another model"),
        (stranger, files_of(TREE.bare, (8, 8))[0], "012345.* than stranger .ffffff"),
        (TREE, b"\x89PNG", "not a file of codes"),
        (TREE, b"\xdbabc\0", "not a file of codes"),
        (TREE, b"\xd7abc\x80", "cut short"),
        (TREE, b"\xd7abc\xff\xff\x7f", "2097152x2097152 pixels; at most 67108864"),
        (fine, b"\xd7" + fine.fingerprint + b"\xff\x3f", "more than 134217728 codes"),
    ):
        with damage_error(message):
            read(reader, [file], names=["x.hrv"])
    with damage_error("at most 10 are admitted"):
        read(TREE, [content], max_pixels=10)


FREQUENCIES = st.lists(
    st.one_of(st.integers(1, 8), st.integers(1, 2**16 + 1)), min_size=1, max_size=9
)
CASES = st.tuples(
    st.lists(FREQUENCIES, min_size=1, max_size=5), st.lists(st.integers(0, 2**20), max_size=60)
)


def encode(symbols, rows):
    """Symbols as bytes, by the frequencies of each."""
    out = np.zeros(4 * len(symbols) + 12, np.uint8)
    state = np.zeros(4, np.int64)
    coder.begin_encoding(state)
    for symbol, counts in zip(symbols, rows, strict=True):
        coder.encode(state, out, sum(counts[:symbol]), counts[symbol], sum(counts))
    return out[: coder.end_encoding(state, out)].tobytes()


def decode(content, rows):
    stream = np.frombuffer(content, np.uint8)
    state = np.zeros(4, np.int64)
    symbols = []
    coder.begin_decoding(state, stream, 0, len(stream))
    for counts in rows:
        place = coder.find_target(state, sum(counts))
        symbol = int(np.searchsorted(np.cumsum(counts), place, side="right"))
        coder.consume(
            state, stream, 0, len(stream), sum(counts[:symbol]), counts[symbol], sum(counts)
        )
        symbols.append(symbol)
    return symbols, coder.end_decoding(state)


MIDDLE = [2**15 - 1, 2, 2**15 - 1]


@settings(max_examples=60)
@given(case=CASES, after=st.binary(max_size=8))
# symbols whose interval lies about the middle write 7f ff ff ...; one above makes that 80 00 00 ...
@example(case=([MIDDLE], [1] * 29 + [0]), after=b"")
@example(case=([MIDDLE], [1] * 29 + [2]), after=b"")
def test_bytes_are_those_of_the_oracle(case, after):
    kinds, numbers = case
    counts = [kinds[place % len(kinds)] for place in range(len(numbers))]
    symbols = [number % len(row) for number, row in zip(numbers, counts, strict=True)]
    content = encode(symbols, counts)
    assert content == encoded(symbols, counts)
    assert decode(content + after, counts) == (symbols, len(content))
    shares = [row[symbol] / sum(row) for row, symbol in zip(counts, symbols, strict=True)]
    ideal = -sum(map(math.log2, shares)) / 8
    assert ideal - 0.001 <= len(content) <= ideal + 1.5


FOLDER = Path(__file__).parents[1] / "golden" / "files"
INDEX = read_json(FOLDER / "codes.json")


@parametrize("threads", [1, 2])
def test_golden_files_are_read_and_written_as_they_were(threads, monkeypatch):
    assert {*names_in(FOLDER, "*.hrv")} == {about["file"] for about in INDEX["files"]}
    assert np.array_equal(POWERS, PRINTED_POWERS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for about in INDEX["files"]:
        entropy_model = read_entropy_model((FOLDER / about["tables"]).read_bytes())
        entropy_model = entropy_model if about["by_tables"] else entropy_model.bare
        content = (FOLDER / about["file"]).read_bytes()
        images = read(entropy_model, [content] * 20)
        for image in (images[0], images[-1]):
            assert list(image.size) == about["size"]
            assert not image.fault
            assert [codes.tolist() for codes in image.codes] == about["codes"]
        codes = flat(image.codes)
        rows = np.zeros((1, entropy_model.layout(image.size).begins[-1]), np.int32)
        rows[0, : len(codes)] = codes
        assert write(entropy_model, rows, image.size, len(image.codes)) == [content]


# docs/format.md in plain Python, slow and written apart: its numbers, and the encoder with whole
# numbers
PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
PRINTED_POWERS = [
    int(number) for number in re.search(r"P\[i\] is .*?```\n(.*?)```", PAGE, re.DOTALL)[1].split()
]


def encoded(symbols, rows):
    """Symbols as bytes. `low` is one whole number as long as the stream, so that nothing is
    carried.
    """
    low = 0
    width = 1 << 48
    shifted = 0
    for symbol, counts in zip(symbols, rows, strict=True):
        part = width // sum(counts)
        low += part * sum(counts[:symbol])
        width = part * counts[symbol]
        while width <= 1 << 40:
            low <<= 8
            width <<= 8
            shifted += 1
    for number in range(7):
        step = 1 << (48 - 8 * number)
        value = -(-low // step) * step
        if value + step <= low + width:
            return (value >> (48 - 8 * number)).to_bytes(shifted + number, "big")
    raise AssertionError("six bytes are always enough")
