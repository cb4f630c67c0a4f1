"""Entropy models: contexts, the file, the grids they state, and how they are fitted."""

import zlib
from dataclasses import replace

import numpy as np
import pytest

from hrvqvae.compression import entropy_model
from hrvqvae.compression.entropy_model import read_entropy_model
from hrvqvae.compression.hrv import read
from hrvqvae.compression.learning import learn_level
from hrvqvae.compression.levels import Layout, PartCoder
from hrvqvae.compression.network import DEPTH, QUALITY, Contexts
from tests.compression.made import ALL, DEEP, TREE, files_of
from tests.conftest import cells_of, damage_error, input_error, parametrize


def bits_of(codes, symbols, network):
    """Bits per code of the last level of `codes`, in its streams."""
    rows = [level_codes.reshape(len(level_codes), -1) for level_codes in codes]
    layout = Layout([level_codes.shape[1:] for level_codes in codes], symbols)
    flat_codes = np.concatenate(rows, 1).astype(np.int32)
    networks = [*[None] * (len(codes) - 1), network]
    part = PartCoder(layout, range(len(codes) - 1, len(codes)), networks, [None] * len(codes))
    streams = [part.encode(row) for row in flat_codes]
    return 8 * sum(map(len, streams)) / codes[-1].size


def blobs(count, symbols, seed):
    """Maps (count, 8, 8) whose codes are mostly that of the left or the upper neighbour."""
    random = np.random.default_rng(seed)
    maps = random.integers(0, symbols, (count, 8, 8))
    for y, x in np.ndindex(8, 8):
        kind = random.random(count)
        if x:
            maps[:, y, x] = np.where(kind < 0.5, maps[:, y, x - 1], maps[:, y, x])
        if y:
            maps[:, y, x] = np.where(kind > 0.6, maps[:, y - 1, x], maps[:, y, x])
    return maps


def test_what_coarser_levels_tell_to_the_right_and_below_is_learned():
    """Level 2 is level 1 of the position to the right and below: no code before it tells that."""
    coarse = np.random.default_rng(0).integers(0, 3, (300, 8, 8))
    fine = np.roll(coarse, (-1, -1), (1, 2))
    fine[:, -1], fine[:, :, -1] = 0, 0
    network, bits = learn_level((coarse[:250], fine[:250]), (3, 3), 0.3)
    assert bits < 0.1
    # and a byte at the end of each stream
    assert bits_of((coarse[250:], fine[250:]), (3, 3), network) < 0.3


def test_the_path_selects_what_neighbours_mean():
    """Level 2 is the code to its left, turned by its own path: a sum of what each says by itself
    does not tell it.
    """
    random = np.random.default_rng(1)
    coarse = random.integers(0, 4, (400, 8, 8))
    fine = np.zeros((400, 8, 8), np.int64)
    for x in range(8):
        before = fine[:, :, x - 1] if x else random.integers(0, 4, (400, 8))
        fine[:, :, x] = (before + coarse[:, :, x]) % 4
    # a quarter of a bit is the first column's
    assert learn_level((coarse, fine), (4, 4), 0.5)[1] < 0.35


def test_copies_of_the_images_teach_and_held_out_images_are_not_among_them():
    """The structure is the same whatever the codes are called, so that copies with other names say
    more of it.
    """
    few, new = np.split(blobs(330, 5, 0), [30])
    copies = np.concatenate([(few + name) % 5 for name in range(5)])
    network, bits = learn_level((copies,), (5,), 0.3, copies=5)
    alone, _ = learn_level((few,), (5,), 0.3)
    new_bits = bits_of((new,), (5,), network)
    assert new_bits < 0.95 * bits_of((new,), (5,), alone)
    assert bits > new_bits - 8 * 0.6 / 64 - 0.2


def test_learning_is_the_same_again_and_never_costs_more_than_no_network():
    maps = np.random.default_rng(0).integers(0, 3, (3, 4, 4))
    (network, bits), (again, _) = (learn_level((maps,), (3,)) for _ in range(2))
    assert bits <= np.log2(3) + 1e-6
    assert bits_of((maps,), (3,), network) < 4
    assert np.array_equal(network.table, again.table)
    with input_error("at least 2 images; there are 1"):
        learn_level((maps[:1],), (3,))


@parametrize("entropy_model", ALL.values(), ids=list(ALL))
def test_a_file_holds_all_of_it(entropy_model):
    restored = read_entropy_model(entropy_model.content)
    for name in ("model", "geometry", "symbols"):
        assert getattr(restored, name) == getattr(entropy_model, name)
    assert replace(restored).content == entropy_model.content  # as it is written again


def test_the_fingerprint_is_that_of_the_file(monkeypatch):
    """Another zlib writes other bytes: what was made by a file of tables is read by that file on
    any machine.
    """
    files = files_of(TREE, (8, 8), 2)
    compress = zlib.compress
    monkeypatch.setattr(entropy_model.zlib, "compress", lambda content, level: compress(content, 1))
    restored = read_entropy_model(TREE.content)
    assert replace(restored).content != TREE.content
    assert restored.content == TREE.content
    assert not any(image.fault for image in read(restored, files))


def test_tables_with_stops_begin_with_those_without():
    """So files of version 1 are read by both."""
    plain = read_entropy_model(DEEP.first_content)
    assert not plain.stops
    assert plain.fingerprint == DEEP.fingerprint != DEEP.stop_fingerprint
    restored = read_entropy_model(DEEP.content)
    files = files_of(plain, (8, 8), 2)
    for row, content in zip(read(plain, files), read(restored, files), strict=True):
        assert np.array_equal(row.codes, content.codes)
    for level, network in enumerate(restored.stops[1:], start=1):
        assert np.array_equal(network.weights, DEEP.stops[level].weights)
    content = DEEP.content
    for damaged in (content[:-1], content[: 12 + len(plain.content)], content + b"x"):
        with damage_error():
            read_entropy_model(damaged)
    for stops in ((None, None, *DEEP.stops[2:]), DEEP.stops[:4], DEEP.stops[:1] * 5):
        with damage_error():
            read_entropy_model(replace(DEEP, stops=stops).content)


def test_where_positions_stop_is_learned():
    """A position stops where its upper neighbour has stopped, at the level of the file's quality:
    after the first row no flag tells anything new.
    """
    qualities = np.arange(200) % 2
    depths = np.broadcast_to(1 + qualities[:, None, None], (200, 8, 8))
    levels = [np.where(level < depths, 0, -1) for level in range(3)]
    for level in (1, 2):
        known = levels[: level + 1]
        network, bits = learn_level(known, (3,) * (level + 1), 0.5, qualities=qualities)
        assert bits < 0.02
        assert network.contexts.of_flags


def test_files_that_say_what_can_not_be_are_refused():
    content = TREE.content
    end = 12 + int.from_bytes(content[8:12], "little")
    text = content[12:end].decode()
    body = zlib.decompress(content[end:])
    for old, new in [
        *cells_of("""
            "0123 | "x123
            "unit":2 | "unit":0
            "times":[1,1,1] | "times":[1,1,0]
            "symbols":[3, | "symbols":[0,
            "groups":[[0,0]] | "groups":[]
            "shift":8 | "shift":31
            "symbols":[3, | "symbols":[3,3,
            "selecting":-1 | "selecting":0
        """),
        ('"unit":2', '"unit":' + "[" * 2000),
    ]:
        assert old in text
        changed = text.replace(old, new, 1).encode()
        packed = zlib.compress(body[:-4] + zlib.crc32(changed).to_bytes(4, "little"))
        with damage_error():
            read_entropy_model(content[:8] + len(changed).to_bytes(4, "little") + changed + packed)


def test_contexts_that_look_ahead_are_refused():
    for feature in ((0, 0, 0), (0, 0, 1), (0, 1, -1), (0, -5, 0), (1, 0, -1)):
        with pytest.raises(ValueError, match="level 2 are not sound"):
            Contexts((3, 3), ((1, 1),), (feature,), -1)
    with pytest.raises(ValueError, match="level 2 are not sound"):
        Contexts((3, 3), ((0, 1),), (), 0)
    # flags come before the codes of their level
    for group in ((0, 1), (1, 1), (DEPTH, 2), (QUALITY - 1, 0), (DEPTH, -1)):
        with pytest.raises(ValueError, match="level 2 are not sound"):
            Contexts((3, 3), (group,), ((0, -1, 0),), -1, of_flags=True)
