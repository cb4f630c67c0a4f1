"""The file of one image: back as it was, readable by the page alone, and what damage does to it."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.codec import mutated
from hrvqvae.compression.entropy_model import EntropyModel, Geometry
from hrvqvae.compression.hrv import ImageCodes, read, read_header, write
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.compression import oracle
from tests.compression.made import ALL, FLAT, GRIDS, TREE, bare, flat, made_codec, random_codes

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def files_of(
    codec: EntropyModel, size: tuple[int, int], count: int = 1, seed: int = 0, levels: int | None = None
) -> list[bytes]:
    return [b"".join(parts) for parts in write(codec, random_codes(codec, size, count, seed), size, levels)]


def read_one(codec: EntropyModel, content: bytes) -> ImageCodes | str:
    """The picture, or what it was refused with."""
    try:
        return read(codec, [content])[0]
    except InputError as error:
        return str(error)


@settings(max_examples=100, deadline=None)
@given(
    symbols=st.lists(st.integers(1, 40), min_size=1, max_size=3), unit=st.integers(1, 9), margin=st.integers(0, 5),
    finer=st.lists(st.integers(1, 2), min_size=3, max_size=3), size=SIZES, count=st.integers(1, 3),
    tables=st.booleans(), levels=st.integers(1, 3), strength=st.sampled_from([0, 50, 2000]),
)  # fmt: skip
def test_codes_come_back(
    symbols: list[int], unit: int, margin: int, finer: list[int], size: tuple[int, int], count: int, tables: bool,
    levels: int, strength: int,
) -> None:  # fmt: skip
    times = tuple(np.cumprod(finer[: len(symbols)]).tolist())
    codec = made_codec(symbols, Geometry(unit, margin, times), seed=len(symbols), strength=strength)
    codec = codec if tables else bare(codec)
    codes = random_codes(codec, size, count)
    parts = write(codec, codes, size, min(levels, len(symbols)))
    for picture, given_codes, own in zip(read(codec, [b"".join(one) for one in parts]), codes, parts, strict=True):
        assert (picture.size, picture.fault) == (size, "")
        assert picture.lengths == tuple(map(len, own[1:]))
        assert np.array_equal(flat(picture.codes), given_codes[: len(flat(picture.codes))])
        assert len(picture.codes) == min(levels, len(symbols))
        bits = sum(
            grid[0] * grid[1] * np.log2(one) for grid, one in zip(codec.geometry.grids(*size), symbols, strict=True)
        )
        assert picture.header == len(own[0]) <= (6 if max(size) <= 128 else 8)
        assert sum(map(len, own)) <= picture.header + np.ceil(bits / 8) + 2 * len(symbols), "raw, header and checks"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (9, 20)])
@pytest.mark.parametrize("tables", [True, False])
def test_a_decoder_made_from_the_page_alone_reads_them(name: str, size: tuple[int, int], tables: bool) -> None:
    codec = ALL[name]
    assert codec.networks
    used = codec if tables else bare(codec)
    content = files_of(used, size)[0]
    found_size, codes = oracle.decode_file(content, oracle.TablesFile(codec.content))
    assert found_size == size
    assert np.array_equal(flat([np.array(one) for one in codes]), random_codes(used, size, 1)[0])


def test_powers_of_two_without_tables_are_as_large_as_raw_codes() -> None:
    codec = bare(made_codec((8, 8, 8), Geometry(2, 0, (1, 1, 1))))
    assert {len(one) for one in files_of(codec, (32, 32), 20)} == {288 + 5 + 3}


def test_tables_that_do_not_fit_cost_nothing() -> None:
    """Codes that the tables hold for unlikely are written without them."""
    codec = made_codec((4,), Geometry(1, 0, (1,)), strength=30_000)
    unlikely = random_codes(bare(codec), (16, 16), 20)
    files = [b"".join(parts) for parts in write(codec, unlikely, (16, 16))]
    assert {read_header(one).by_tables for one in files} == {False}
    assert {len(one) for one in files} == {64 + 5 + 1}


def test_the_file_may_end_after_any_level_and_a_cut_gives_the_levels_that_are_whole() -> None:
    for codec in (TREE, bare(TREE), GRIDS):
        for content, codes in zip(files_of(codec, (9, 12), 4), random_codes(codec, (9, 12), 4), strict=True):
            whole = read(codec, [content])[0]
            ends = np.cumsum([whole.header, *whole.lengths])
            for length in range(len(content)):
                found = read_one(codec, content[:length])
                levels = int((ends[1:] <= length).sum())
                if not levels:
                    assert isinstance(found, str)
                    continue
                assert isinstance(found, ImageCodes)
                assert len(found.codes) == levels
                assert np.array_equal(flat(found.codes), codes[: len(flat(found.codes))])
                assert (found.fault == "") == (length in ends)
                assert found.fault in (
                    "",
                    f"level {levels + 1} is cut short or damaged",
                    f"level {levels + 1} is damaged",
                )


def test_every_flipped_bit_is_found() -> None:
    for codec in (TREE, bare(TREE), FLAT, GRIDS):
        for content in files_of(codec, (8, 10), 2):
            for place in range(8 * len(content)):
                damaged = bytearray(content)
                damaged[place // 8] ^= 1 << place % 8
                found = read_one(codec, bytes(damaged))
                assert isinstance(found, str) or found.fault, f"bit {place}"


def test_bytes_after_the_last_level_are_a_fault_but_hide_nothing() -> None:
    content = files_of(TREE, (8, 8))[0]
    found = read(TREE, [content + b"\0"])[0]
    assert found.fault == "1 byte more than its levels take"
    assert len(found.codes) == 3


def test_mutated_files_are_refused_or_read_but_never_more() -> None:
    """15,000 files with bytes changed, cut out, put in: an error in words, or codes in range."""
    random = np.random.default_rng(0)
    kinds = [TREE, bare(TREE), FLAT, GRIDS, bare(GRIDS)]
    originals = [files_of(codec, (6, 7), 6) for codec in kinds]
    read_anyway = 0
    for turn in range(15_000):
        codec, files = kinds[turn % 5], originals[turn % 5]
        content = mutated(files[turn % len(files)], files, random)
        found = read_one(codec, content)
        if isinstance(found, ImageCodes):
            read_anyway += 1
            assert all(
                (one >= 0).all() and (one < symbols).all()
                for one, symbols in zip(found.codes, codec.symbols, strict=False)
            )
    assert read_anyway > 100, "some lose later levels only"


def test_another_model_is_refused_by_name() -> None:
    other = made_codec(TREE.symbols, TREE.geometry, seed=99)
    content = files_of(TREE, (8, 8))[0]
    with pytest.raises(InputError, match=f"x.hrv was made by another model.*{TREE.fingerprint(True).hex()}"):
        read(other, [content], names=["x.hrv"])
    with pytest.raises(InputError, match="made has none: put its tables.hrvt"):
        read(bare(TREE), [content])
    stranger = EntropyModel("stranger", "ff" * 16, TREE.geometry, TREE.symbols)
    with pytest.raises(InputError, match="012345, of stranger ffffff"):
        read(stranger, files_of(bare(TREE), (8, 8)))


@pytest.mark.parametrize("codec", [TREE, bare(TREE)], ids=["tables", "bare"])
@pytest.mark.parametrize("size", [(8, 8), (8, 10)])
def test_a_damaged_header_is_never_told_as_another_models_file_alone(
    codec: EntropyModel, size: tuple[int, int]
) -> None:
    content = files_of(codec, size)[0]
    for place in range(8 * read_header(content).length):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        found = read_one(codec, bytes(damaged))
        assert isinstance(found, str), "level 1 is never read by a wrong size"
        assert re.search(r"damaged|pixels; at most|more than \d+ codes|cut short|not as it is written", found), found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a file of codes"),
        (b"\x89PNG", "not a file of codes"),
        (b"\xd7abc\0", "version 1, and this program reads version 0; or the file is damaged"),
        (b"\xd3ab", "cut short"),
        (b"\xd3abc", "cut short"),
        (b"\xd3abc\x80", "cut short"),
        (b"\xd3abc\x80\x00", "not as it is written"),
        (b"\xd1abc\x07\x07", "not as it is written"),
        (b"\xd3abc\xff\xff\xff\xff\x01", "not as it is written"),
        (b"\xd3abc\xff\xff\x7f", "2097152x2097152 pixels; at most 67108864 are admitted"),
        (b"\xd1abc\x00\xff\xff\xff\x7f", "1x268435456 pixels"),
    ],
)
def test_headers_that_are_none(content: bytes, message: str) -> None:
    with pytest.raises(DamagedFileError, match=re.escape(message)):
        read_header(content)
    with pytest.raises(DamagedFileError, match=re.escape(message)):
        read(TREE, [content])


def test_more_codes_than_are_admitted_are_refused_before_they_get_memory() -> None:
    fine = made_codec((3,), Geometry(1, 0, (64,)))
    head = b"\xd3" + fine.fingerprint(True) + b"\xff\x3f"
    with pytest.raises(DamagedFileError, match="an image of 8192x8192 pixels has more than 134217728 codes"):
        read(fine, [head + bytes(20)])


def test_a_large_size_in_a_small_file_is_soon_found_out() -> None:
    head = b"\xd3" + TREE.fingerprint(True) + b"\xff\x3f"  # 8192x8192
    assert isinstance(read_one(TREE, head + bytes(range(200))), str)


def test_files_of_several_sizes_and_modes_keep_their_order() -> None:
    sizes = [(4, 4), (9, 3), (4, 4), (12, 12)]
    files = [files_of(TREE, size, seed=number)[0] for number, size in enumerate(sizes)]
    files += files_of(bare(TREE), (4, 4))
    found = read(TREE, files)
    assert [one.size for one in found] == [*sizes, (4, 4)]
    for number, picture in enumerate(found[:4]):
        assert np.array_equal(flat(picture.codes), random_codes(TREE, sizes[number], 1, number)[0])
    assert not found[-1].by_tables


def test_the_likeliest_codes_take_no_fewer_bytes_than_is_presumed() -> None:
    """A model that is as sure as can be, and codes that it is sure of."""
    codec = made_codec((9,), Geometry(1, 0, (1,)), hidden=1)
    assert codec.networks
    network = codec.networks[0]
    assert network is not None
    offsets = np.array([[2**28, *[0] * 8]], np.int32)
    sure = dataclasses.replace(network, weights=network.weights * 0, offsets=offsets)
    codec = dataclasses.replace(codec, networks=(sure,))
    codes = np.zeros((1, 300 * 300), np.int32)
    parts = write(codec, codes, (300, 300))[0]
    assert len(parts[1]) == 1 + np.ceil(90_000 * np.log2(65545 / 65537) / 8)
    found = read(codec, [b"".join(parts)])[0]
    assert np.array_equal(found.codes[0].reshape(1, -1), codes)
    assert found.fault == ""
