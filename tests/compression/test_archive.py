"""The archive: images back by number and name, blocks that are whole or nothing, writers that are
killed, damage.
"""

import random
import resource
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.torture.bombs import BOMBS
from benchmarks.torture.readers import READERS
from benchmarks.torture.salvage import damage, missing, whole_images, write_archive
from hrvqvae.compression.archive import appending, open_archive, salvage
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.hrv import crc8, write
from hrvqvae.config import Geometry, Grid
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.compression.made import GRIDS, TREE, flat, made_entropy_model, random_codes
from tests.kills import in_another_process

SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))


def add(
    path: Path,
    entropy_model: EntropyModel,
    sizes: Sequence[Grid],
    names: Sequence[str],
    levels: int,
    seed: int = 0,
) -> None:
    with appending(path, entropy_model) as writer:
        images = [
            random_codes(entropy_model, size, 1, seed + number)[0]
            for number, size in enumerate(sizes)
        ]
        writer.append(images, sizes, names, levels)
        there = {entry.name for entry in open_archive(path).entries}
        assert there.issuperset(names), (
            "what is said to be written is on the disk, whenever this process ends"
        )


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def three_blocks(path: Path, entropy_model: EntropyModel = GRIDS) -> list[int]:
    """An archive of two images a block, named 0 to 5; -> where each block ends."""
    ends = []
    for seed in range(3):
        add(path, entropy_model, [(6, 6)] * 2, [str(2 * seed), str(2 * seed + 1)], 2, 10 * seed)
        ends.append(path.stat().st_size)
    return ends


@settings(max_examples=15, deadline=None)
@given(
    blocks=st.lists(
        st.tuples(st.lists(SIZES, min_size=1, max_size=5), st.integers(1, 2)),
        min_size=1,
        max_size=3,
    ),
    entropy_model=st.sampled_from([GRIDS, GRIDS.bare]),
    name=st.text(st.characters(codec="utf-8"), max_size=5),
)
def test_images_come_back_by_number_and_name(
    blocks: list[tuple[list[Grid], int]],
    entropy_model: EntropyModel,
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("archive") / "x.hrva"
    expected = dict[str, tuple[Grid, int, int]]()
    for seed, (sizes, levels) in enumerate(blocks):
        block = {f"{name}{seed}-{n}": (size, levels, 10 * seed + n) for n, size in enumerate(sizes)}
        add(path, entropy_model, sizes, list(block), levels, 10 * seed)
        expected |= block
    archive = open_archive(path)
    assert [(entry.size, entry.levels) for entry in archive.entries] == [
        about[:2] for about in expected.values()
    ]
    order = list(np.random.default_rng(0).permutation(len(expected)))
    assert archive.find([list(expected)[index] for index in order]) == order
    for index, image in zip(order, archive.read(order), strict=True):
        size, levels, seed = list(expected.values())[index]
        codes = flat(image.codes)
        assert len(image.codes) == levels
        assert np.array_equal(codes, random_codes(entropy_model, size, 1, seed)[0][: len(codes)])
    assert all(len(image.codes) == 1 for image in archive.read(order, levels=1))


def test_names_are_unique_and_each_image_has_one(tmp_path: Path) -> None:
    path = tmp_path / "x.hrva"
    add(path, TREE, [(4, 4)] * 3, ["a", "", ""], 3)
    before = path.read_bytes()
    for names in (["b", "a"], ["b", "b"]):
        with pytest.raises(InputError, match="another image named '[ab]'"):
            add(path, TREE, [(4, 4)] * 2, names, 3)
    add(path, TREE, [(4, 4)], ["a"], 3)
    assert path.read_bytes() == before, "the same image is there already"
    image = [random_codes(TREE, (4, 4), 1, 7)[0]]
    with appending(tmp_path / "y.hrva", TREE) as writer:
        assert [
            writer.append(image * 2, [(4, 4)] * 2, ["a", "a"], 3),
            writer.append(image, [(4, 4)], ["a"], 3),
        ] == [
            1,
            0,
        ]
    archive = open_archive(path)
    assert archive.find(["000002", "a", "1"]) == [2, 0, 1]
    path.write_bytes(before + before[len(TREE.content) + 13 :])  # by another program
    assert open_archive(path).find(["a", "a-000003"]) == [0, 3]
    with pytest.raises(InputError, match="no image named 'd'"):
        archive.find(["d"])


def test_a_full_disk_leaves_the_archive_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.hrva"
    ends = three_blocks(path)
    content = path.read_bytes()
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 20, hard))
    try:
        with pytest.raises(InputError, match="can't be written"):
            add(path, GRIDS, [(6, 6)] * 40, [f"new{number}" for number in range(40)], 2, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    assert path.read_bytes() == content
    assert ends[-1] == len(content)


def test_a_cut_leaves_the_blocks_that_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.hrva"
    ends = three_blocks(path)
    content = path.read_bytes()
    path.write_bytes(content[: ends[1] + 9])
    archive = open_archive(path)
    assert (archive.names, archive.left_over, archive.damaged) == (tuple("0123"), 9, 0)
    add(path, GRIDS, [(6, 6)] * 2, ["4", "5"], 2, 20)
    assert path.read_bytes() == content, "the next writer goes on behind the last whole block"


@pytest.mark.parametrize(
    ("block", "place"), [(0, 22), (1, 22), (2, 4), (2, 8), (2, 11), (2, 16), (2, 22)]
)
def test_a_damaged_block_hides_no_other_and_is_not_cut_off(
    block: int, place: int, tmp_path: Path
) -> None:
    """Its index, its checksum or a number in its head. What may be a block that was cut short is
    kept beside.
    """
    path = tmp_path / "x.hrva"
    ends = three_blocks(path)
    begin = [len(GRIDS.content) + 13, *ends][block]
    flip(path, begin + place)
    before = path.read_bytes()
    archive = open_archive(path)
    assert archive.names == tuple(name for name in "012345" if int(name) // 2 != block)
    if place != 11:
        assert (archive.damaged, archive.left_over) == (ends[block] - begin, 0)
        with pytest.raises(DamagedFileError, match="so nothing is added; .* hrvqvae salvage"):
            add(path, GRIDS, [(6, 6)], ["6"], 2)
        assert path.read_bytes() == before
        return
    assert (archive.damaged, archive.left_over) == (0, ends[2] - begin)
    with appending(path, GRIDS) as writer:
        assert writer.set_aside is not None
        assert writer.set_aside.read_bytes() == before[begin:]
    assert path.stat().st_size == begin


def test_what_is_whole_is_salvaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks of one and of two levels, one of them damaged, with a damaged record and, at last,
    a damaged head.
    """
    monkeypatch.setattr("hrvqvae.compression.archive._BLOCK_BYTES", 1)
    path = tmp_path / "x.hrva"
    new = tmp_path / "no folder yet" / "new.hrva"
    ends = three_blocks(path)
    add(path, GRIDS, [(5, 7), (6, 6)], ["6", "7"], 1, 40)
    entries = open_archive(path).entries
    expected = open_archive(path).read(range(8))
    flip(path, ends[0] + 22)  # the index of the second block
    flip(path, entries[5].place)
    kept = [0, 1, 4, 6, 7]
    for entropy_model in (None, GRIDS):
        count, (block, record) = salvage(path, new, entropy_model)
        assert count == len(kept)
        assert "bytes in 1 block are damaged" in block
        assert "5 (image 3): its record is damaged" in record
        assert new.read_bytes().count(b"HRVB") == len(kept), (
            "large records are in blocks of their own"
        )
        saved = open_archive(new)
        assert (saved.damaged, saved.left_over) == (0, 0)
        assert [entry[:3] for entry in saved.entries] == [entries[index][:3] for index in kept]
        for index, image in zip(kept, saved.read(range(len(kept))), strict=True):
            assert np.array_equal(flat(image.codes), flat(expected[index].codes))
        with pytest.raises(
            InputError, match="exists already; choose another output$"
        ):  # there is no --force
            salvage(path, new, entropy_model)
        new.unlink()
        flip(path, 20)  # in the entropy model
    flip(path, 20)
    with pytest.raises(DamagedFileError, match="entropy model"):
        salvage(path, new)
    with pytest.raises(DamagedFileError, match="entropy model"):
        salvage(path, new, TREE)
    path.write_bytes(path.read_bytes()[: ends[0] - 1])
    flip(path, 20)
    with pytest.raises(DamagedFileError, match="no image that is whole"):
        salvage(path, new)
    assert not new.exists()


def test_every_whole_image_comes_back_from_behind_any_damage(tmp_path: Path) -> None:
    """As an independent reader of the page counts them; a hundred damaged blocks in a row are no
    limit.
    """
    path = tmp_path / "x.hrva"
    draw = random.Random(0)
    write_archive(path, TREE, images=120)
    content = path.read_bytes()
    assert len(whole_images(content)) == 120
    for _ in range(12):
        assert not missing(path, damage(content, draw), TREE)


def test_another_model_or_another_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.hrva"
    add(path, TREE, [(4, 4)], ["a"], 3)
    before = path.read_bytes()
    for other in (made_entropy_model(TREE.symbols, TREE.geometry, seed=99), TREE.bare):
        with pytest.raises(InputError, match=r"x.hrva was made by another model.*another file"):
            add(path, other, [(4, 4)], ["b"], 3)
    in_use = r"x.hrva is in use by another process \(pid \d+\)"
    with in_another_process(path, "lock_file"), pytest.raises(InputError, match=in_use):
        add(path, TREE, [(4, 4)], ["b"], 3)
    assert path.read_bytes() == before
    (tmp_path / "y.hrva").write_bytes(b"HRVX and so on")
    with pytest.raises(DamagedFileError, match="not an archive"):
        add(tmp_path / "y.hrva", TREE, [(4, 4)], ["b"], 3)
    assert (tmp_path / "y.hrva").read_bytes() == b"HRVX and so on"


def crafted(path: Path, index: bytes, records: bytes, after: bytes = b"", count: int = 1) -> None:
    path.unlink(missing_ok=True)
    with appending(path, GRIDS.bare):
        pass
    packed = zlib.compress(index) + after
    start = b"HRVB" + b"".join(
        number.to_bytes(4, "little") for number in (count, len(packed), len(records))
    )
    with path.open("ab") as stream:
        stream.write(start + zlib.crc32(start + packed).to_bytes(4, "little") + packed + records)


def test_images_that_no_reader_takes_are_not_written(tmp_path: Path) -> None:
    model = EntropyModel("x", "ab" * 16, Geometry(512, 0, (1,)), (7,))
    size = (8192, 8193)
    codes = np.zeros((1, 16 * 17), np.int32)
    with pytest.raises(InputError, match="8192x8193 pixels has more than 67108864 pixels"):
        write(model, codes, size)
    with (
        pytest.raises(InputError, match="67108864"),
        appending(tmp_path / "x.hrva", model) as writer,
    ):
        writer.append(codes, [size], ["large"], 1)
    assert list(tmp_path.iterdir()) == [], "an archive without an image"


@pytest.mark.parametrize(("cells_per_byte", "is_read"), [(1, False), (4, True)])
def test_the_whole_record_decides_whether_a_reader_takes_it(
    cells_per_byte: int, is_read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 codes of one bit, which are too few bytes for themselves, and 16 of eight: 18 bytes."""
    model = EntropyModel("x", "ab" * 16, Geometry(1, 0, (1, 1)), (2, 256))
    monkeypatch.setattr("hrvqvae.compression.levels._MOST_CELLS", 0)
    monkeypatch.setattr("hrvqvae.compression.levels._CELLS_PER_BYTE", cells_per_byte)
    codes = random_codes(model, (4, 4), 1)
    with appending(tmp_path / "x.hrva", model) as writer:
        if not is_read:
            with pytest.raises(InputError, match="compresses too well"):
                writer.append(codes, [(4, 4)], ["a"], 2)
            return
        writer.append(codes, [(4, 4)], ["a"], 2)
    (image,) = open_archive(tmp_path / "x.hrva").read([0])
    assert np.array_equal(flat(image.codes), codes[0])


def test_images_that_are_refused_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = [random_codes(TREE, (4, 4), 1, 7)[0]]
    with appending(tmp_path / "x.hrva", TREE) as writer:
        monkeypatch.setattr("hrvqvae.compression.archive._MOST_CODES", 3 * 1024)
        monkeypatch.setattr("hrvqvae.compression.archive._MOST_CODES_PER_BYTE", 0)
        with pytest.raises(InputError, match="compress too well"):
            writer.append(image * 4, [(4, 4)] * 4, ["a", "b", "c", "d"], 3)
        assert writer.append(image * 3, [(4, 4)] * 3, ["a", "b", "c"], 3) == 3


def test_salvaged_images_stay_in_blocks_of_one_where_a_reader_admits_no_larger_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.hrva"
    new = tmp_path / "new.hrva"
    for index in range(30):
        add(path, TREE, [(4, 4)], [f"{index}"], 3, seed=index)
    most_codes = 30 * 1024 - path.stat().st_size  # a small image counts as 1,024 codes
    monkeypatch.setattr("hrvqvae.compression.archive._MOST_CODES", most_codes)
    monkeypatch.setattr("hrvqvae.compression.archive._MOST_CODES_PER_BYTE", 1)
    assert salvage(path, new) == (30, [])
    assert new.read_bytes() == path.read_bytes()
    monkeypatch.setattr("hrvqvae.compression.archive._MOST_CODES", most_codes - 100)
    path.write_bytes(path.read_bytes() + bytes(100))  # damage, which counts as bytes of the archive
    new.unlink()
    with pytest.raises(InputError, match="compress too well for an archive"):
        salvage(path, new)
    assert not new.exists()
    monkeypatch.setattr("hrvqvae.compression.entropy_model.MOST_CODES", 1)
    assert open_archive(path).read([0])[0].fault == "its record is damaged"


def test_blocks_that_are_wrong_in_themselves_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.hrva"
    add(path, GRIDS.bare, [(4, 4)], [""], 2)
    record = path.read_bytes()[open_archive(path).entries[0].place :]
    sound = bytes([2, 1, 3, 3, len(record), 0, 0])
    crafted(path, sound, record)
    assert len(open_archive(path).read([0])[0].codes) == 2
    for index, after, count in (
        (sound + b"\0", b"", 1),
        (sound, b"\0", 1),
        (sound[:-1] + b"\5ab", b"", 1),
        (b"\3" + sound[1:], b"", 1),
        (b"\0" + sound[1:], b"", 1),
        (sound[:4] + bytes([len(record) - 1]) + sound[5:], b"", 1),
        (bytes([2, 1]) + b"\xff\xff\xff\x7f\3" + sound[4:], b"", 1),
        (sound[:4] + bytes(2 * 200 + 1), b"", 200),  # more images than bytes
    ):
        crafted(path, index, record, after, count)
        assert len(open_archive(path).entries) == 0
    crafted(path, sound, bytes(len(record)))  # of zeros
    assert open_archive(path).read([0])[0].fault
    longer = record[:-1] + b"\0"
    longer += bytes([crc8(longer)])
    crafted(path, sound[:4] + bytes([len(longer)]) + sound[5:], longer)
    assert open_archive(path).read([0])[0].fault


@pytest.mark.parametrize(
    "name", [name for reader, name in BOMBS if reader in ("archive", "file of codes", "tables")]
)
def test_memory_is_bounded_by_the_bytes_of_a_file(name: str, tmp_path: Path) -> None:
    add(tmp_path / "small.hrva", TREE, [(4, 4)], ["a"], 3)
    open_archive(tmp_path / "small.hrva").read([0])  # loads the compiled code, which does not count
    ((reader, make),) = ((reader, make) for (reader, other), make in BOMBS.items() if other == name)
    measured = READERS[reader].bomb(partial(make, tmp_path), tmp_path)
    assert measured.excess <= 1
    assert measured.fault in ("", "hang")  # how long it takes depends on the machine
