"""The archive: images back by number and name, blocks that are whole or nothing, writers that are killed."""

from __future__ import annotations

import os
import signal
import time
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.codec import mutated_archive
from hrvqvae.compression.archive import appending, open_archive
from hrvqvae.compression.stream import Codec, write
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.compression import oracle
from tests.compression.made import GRIDS, TREE, bare, flat, made_codec, random_codes

SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))


def add(
    path: Path, codec: Codec, sizes: Sequence[tuple[int, int]], names: Sequence[str], levels: int, seed: int = 0
) -> None:
    with appending(path, codec) as append:
        images = [random_codes(codec, size, 1, seed + number)[0] for number, size in enumerate(sizes)]
        append(images, sizes, names, levels)


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.lists(
        st.tuples(st.lists(SIZES, min_size=1, max_size=5), st.integers(1, 2)),
        min_size=1, max_size=3,
    ),
    codec=st.sampled_from([GRIDS, bare(GRIDS)]), name=st.text(st.characters(codec="utf-8"), max_size=5),
)  # fmt: skip
def test_images_come_back_by_number(
    blocks: list[tuple[list[tuple[int, int]], int]], codec: Codec, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("archive") / "x.hrva"
    expected = []
    for seed, (sizes, levels) in enumerate(blocks):
        add(path, codec, sizes, [name] * len(sizes), levels, 10 * seed)
        expected += [(size, levels, random_codes(codec, size, 1, 10 * seed + n)[0]) for n, size in enumerate(sizes)]
    archive = open_archive(path)
    assert [(one.size, one.levels, one.name) for one in archive.entries] == [(*one[:2], name) for one in expected]
    order = list(np.random.default_rng(0).permutation(len(expected)))
    for number, picture in zip(order, archive.read(order), strict=True):
        codes = flat(picture.codes)
        assert len(picture.codes) == expected[number][1]
        assert np.array_equal(codes, expected[number][2][: len(codes)])
    assert all(len(one.codes) == 1 for one in archive.read(order, levels=1))


def test_an_image_has_an_overhead_of_two_bytes(tmp_path: Path) -> None:
    """Beyond the levels' own bytes, without names: a check and about a byte of length."""
    codes = random_codes(TREE, (16, 16), 500)
    with appending(tmp_path / "x.hrva", TREE) as append:
        head = (tmp_path / "x.hrva").stat().st_size
        append(list(codes), [(16, 16)] * 500, [""] * 500, 3)
    alone = sum(len(part) - 1 for file in write(TREE, codes, (16, 16)) for part in file[1:])
    overhead = ((tmp_path / "x.hrva").stat().st_size - head - alone) / 500
    assert 1 < overhead < 2.1


def test_names_find_images(tmp_path: Path) -> None:
    add(tmp_path / "x.hrva", TREE, [(4, 4)] * 3, ["a", "b/c", "ä"], 3)
    archive = open_archive(tmp_path / "x.hrva")
    assert archive.numbers(["ä", "a"]) == [2, 0]
    with pytest.raises(InputError, match="has no image named 'd'"):
        archive.numbers(["d"])
    with pytest.raises(InputError, match="has images 0 to 2, not all of"):
        archive.read([3])


def test_a_cut_leaves_the_blocks_that_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.hrva"
    ends = []
    for seed in range(3):
        add(path, GRIDS, [(6, 6)] * 2, ["", ""], 2, 10 * seed)
        ends.append(path.stat().st_size)
    content = path.read_bytes()
    head = ends[0] - (ends[1] - ends[0]) - 30
    for length in range(head, len(content)):
        path.write_bytes(content[:length])
        try:
            archive = open_archive(path)
        except DamagedFileError:
            assert length < ends[0]
            continue
        whole = sum(end <= length for end in ends)
        assert len(archive.entries) == 2 * whole
        assert archive.left_over == length - ([archive.end, *ends][whole])
        assert len(archive.read(range(2 * whole))) == 2 * whole
    path.write_bytes(content[: ends[1] + 9])
    add(path, GRIDS, [(6, 6)] * 2, ["", ""], 2, 20)
    assert path.read_bytes() == content, "the next writer cuts off what was left, and goes on"


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """In the head: refused. In a block's index: the block is none, and those after it. In a record: its image."""
    path = tmp_path / "x.hrva"
    add(path, bare(GRIDS), [(6, 6), (5, 7)], ["one", "two"], 2)
    content = path.read_bytes()
    path.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    with pytest.raises(DamagedFileError, match="is damaged: its tables do not match their checksum"):
        open_archive(path)
    for place in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            archive = open_archive(path)
            assert not archive.entries or archive.read([0, 1]) is None
        except DamagedFileError:
            continue


def test_mutated_archives_are_refused_or_read(tmp_path: Path) -> None:
    """5,000 archives with bytes changed, cut out or put in after the head."""
    path, random = tmp_path / "x.hrva", np.random.default_rng(1)
    add(path, bare(GRIDS), [(6, 6), (5, 7)], ["one", "two"], 2)
    first = path.stat().st_size
    add(path, bare(GRIDS), [(6, 6)] * 2, ["three", ""], 2)
    content, seen = path.read_bytes(), set()
    for _ in range(5_000):
        path.write_bytes(content[: first - 70] + mutated_archive(content[first - 70 :], random))
        try:
            archive = open_archive(path)
            seen.add(len(archive.entries))
            archive.read(range(len(archive.entries)))
        except DamagedFileError:
            seen.add(-1)
    assert seen == {-1, 0, 2, 4}


def test_another_model_or_another_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.hrva"
    add(path, TREE, [(4, 4)], ["a"], 3)
    before = path.read_bytes()
    other = made_codec(TREE.symbols, TREE.geometry, seed=99)
    with pytest.raises(InputError, match="was made by another model or other tables: those of made"):
        add(path, other, [(4, 4)], ["b"], 3)
    with appending(path, TREE), pytest.raises(InputError, match="being written to by another process"):
        add(path, TREE, [(4, 4)], ["b"], 3)
    assert path.read_bytes() == before
    (tmp_path / "y.hrva").write_bytes(b"HRVX and so on")
    with pytest.raises(DamagedFileError, match="not an archive"):
        add(tmp_path / "y.hrva", TREE, [(4, 4)], ["b"], 3)
    assert (tmp_path / "y.hrva").read_bytes() == b"HRVX and so on"
    with pytest.raises(InputError, match="there is no such archive"):
        open_archive(tmp_path / "z.hrva")


def _write_for_ever(path: Path, say: int) -> None:
    codes = list(random_codes(TREE, (9, 9), 50))
    with appending(path, TREE) as append:
        while True:
            append(codes, [(9, 9)] * 50, [f"image-{number}" for number in range(50)], 3)
            os.write(say, b".")


def test_a_killed_writer_loses_no_image_that_was_there(tmp_path: Path) -> None:
    """Ten writers, one after the other, killed at any moment: every block that was said to be written is there."""
    path, there = tmp_path / "x.hrva", 0
    for turn in range(10):
        listen, say = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of later versions of Python, about threads
            writer = os.fork()
        if not writer:
            try:
                _write_for_ever(path, say)
            finally:
                os._exit(1)
        os.close(say)
        assert os.read(listen, 1) == b"."
        time.sleep(0.0013 * turn)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        said = 1
        while more := os.read(listen, 1000):
            said += len(more)
        os.close(listen)
        archive = open_archive(path)
        assert len(archive.entries) in (there + 50 * said, there + 50 * (said + 1)), "one may be written and not said"
        there = len(archive.entries)
    expected = random_codes(TREE, (9, 9), 50)
    for number, picture in enumerate(archive.read(range(there - 50, there))):
        assert np.array_equal(flat(picture.codes), expected[number])


def crafted(path: Path, index: bytes, records: bytes, after: bytes = b"") -> None:
    """An archive of GRIDS with one block of one image, whose checksum is right whatever is in it."""
    add(path, bare(GRIDS), [(4, 4)], [""], 2)
    content = path.read_bytes()
    head = content[: 9 + int.from_bytes(content[5:9], "little") + 4]
    packed = zlib.compress(index) + after
    start = b"HRVB" + b"".join(number.to_bytes(4, "little") for number in (1, len(packed), len(records)))
    path.write_bytes(head + start + zlib.crc32(start + packed).to_bytes(4, "little") + packed + records)


def test_blocks_that_are_wrong_in_themselves_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.hrva"
    add(path, bare(GRIDS), [(4, 4)], [""], 2)
    entry = open_archive(path).entries[0]
    record = path.read_bytes()[entry.place :]
    sound = bytes([2, 1, 3, 3, len(record), 0, 0])
    crafted(path, sound, record)
    assert len(open_archive(path).read([0])[0].codes) == 2
    for index, after in (
        (sound + b"\0", b""), (sound, b"\0"), (sound[:-1] + b"\5ab", b""), (b"\3" + sound[1:], b""),
        (b"\0" + sound[1:], b""), (sound[:4] + bytes([len(record) - 1]) + sound[5:], b""),
        (bytes([2, 1]) + b"\xff\xff\xff\x7f\3" + sound[4:], b""),
    ):  # fmt: skip
        crafted(path, index, record, after)
        assert open_archive(path).entries == ()
    longer = record[:-1] + b"\0"
    longer += bytes([oracle.crc8(longer)])
    crafted(path, sound[:4] + bytes([len(longer)]) + sound[5:], longer)
    with pytest.raises(DamagedFileError, match="image 0 is damaged"):
        open_archive(path).read([0])


def test_appending_destroys_no_whole_block_behind_a_damaged_one(tmp_path: Path) -> None:
    path, ends = tmp_path / "x.hrva", []
    for turn in range(3):
        add(path, TREE, [(6, 6)] * 2, ["", ""], 1, turn)
        ends.append(path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[ends[0] + 22] ^= 1  # the index of the second block
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=f"damaged at byte {ends[0]}, and whole blocks follow"):
        add(path, TREE, [(6, 6)], [""], 1)
    assert path.read_bytes() == content
