"""Positions that stop at levels of their own: files of version 2, their choice and their size."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrvqvae
from hrvqvae.checkpoints.entropy import fit_entropy_model
from hrvqvae.checkpoints.folder import PROGRESSIVE
from hrvqvae.compression.decoder_search import Rate, encode_with_distances
from hrvqvae.compression.hrv import read, read_header, write
from hrvqvae.config import Geometry
from hrvqvae.models import tiles
from hrvqvae.quantize import check_codes, choose_depths, count_levels, stop_at
from hrvqvae.training import decoder
from tests.compression.made import (
    DEEP,
    digits,
    flip_bit,
    made_entropy_model,
    random_codes,
    read_one,
    single_grid,
    squared_errors,
    untrained,
)
from tests.conftest import damage_error, input_error, parametrize, same
from tests.trained_run import silent


@settings(max_examples=40)
@given(
    symbols=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    quality=st.integers(0, 7),
    seed=st.integers(0, 99),
)
def test_codes_with_stops_come_back(symbols, size, quality, seed):
    geometry = Geometry(2, 1, (1,) * len(symbols))
    entropy_model = made_entropy_model(symbols, geometry, seed=seed, with_stops=True)
    codes = random_codes(entropy_model, size, 2, seed)
    files = write(entropy_model, codes, size, qualities=[quality] * 2)
    for image, row, file in zip(read(entropy_model, files), codes, files, strict=True):
        assert read_header(file).quality == quality
        assert (image.size, image.fault) == (size, "")
        assert sum(image.lengths) == len(file)
        decoded = np.concatenate([level.ravel() for level in image.codes])
        assert np.array_equal(decoded, row[: len(decoded)])
        # parts in which no position goes on are left out
        assert np.all(row[len(decoded) :] == -1)


def test_a_file_is_read_up_to_its_last_whole_part():
    """Whatever a bit, a cut or a tail of zeros does, codes are those that were written, or none."""
    codes = random_codes(DEEP, (9, 12), 8)
    files = write(DEEP, codes, (9, 12), qualities=range(8))
    several = [pair for pair in zip(codes, files, strict=True) if (pair[0][-30:] >= 0).any()]
    assert len(several) > 2
    for row, content in several[:3]:
        whole = read_one(DEEP, content)
        header, first, second = whole.lengths
        assert [len(read_one(DEEP, content).codes), len(whole.codes)] == [5, 5]
        for end in range(len(content)):
            image = read_one(DEEP, content[:end])
            assert len(image.codes) == (4 if end >= header + first else 0)
            assert bool(image.fault) == (end != header + first)
        assert len(read_one(DEEP, content[: header + first] + bytes(99)).codes) == 4
        assert read_one(DEEP, content + b"x").fault
        missed = 0
        for index in range(8 * len(content)):
            image = read_one(DEEP, flip_bit(content, index))
            decoded = np.concatenate([np.zeros(0), *map(np.ravel, image.codes)])
            missed += not (image.fault or np.array_equal(decoded, row[: len(decoded)]))
        assert missed == 0
        assert second > 1


def test_another_model_is_told():
    content = write(DEEP, random_codes(DEEP, (8, 8), 1), (8, 8), qualities=[2])[0]
    other = made_entropy_model(DEEP.symbols, DEEP.geometry, seed=9, with_stops=True)
    for reader in (other, DEEP.bare):
        with damage_error("another model"):
            read(reader, [content])


def test_levels_of_a_file_are_prefixes():
    content = write(DEEP, random_codes(DEEP, (8, 8), 1), (8, 8), qualities=[2])[0]
    (whole,) = read(DEEP, [content])
    for levels in (1, 3, 5):
        (image,) = read(DEEP, [content], levels)
        assert not image.fault
        assert np.array_equal(image.codes, whole.codes[:levels])


# ---- codes and depths ----


@parametrize("name", ["hrvqvae", "groups", "rqvae"])
def test_stopped_positions_have_the_sum_of_their_levels(name, mnist_root):
    model, _ = untrained(single_grid(name, mnist_root))
    images = digits(3)
    codes = model.encode(images)
    quantizer = model.quantizer
    depths = torch.randint(1, len(codes) + 1, codes[0].shape)
    stopped = stop_at(codes, depths)
    assert same(count_levels(stopped), depths)
    latents = quantizer.lookup(stopped)
    for count in range(1, len(codes) + 1):
        here = depths == count
        assert same(latents[here], quantizer.lookup(codes[:count])[here])
    pairs = zip(quantizer.codeword_indices(stopped), model.codeword_indices(codes), strict=True)
    for level, (index, whole) in enumerate(pairs):
        assert same(index, torch.where(level < depths, whole, -1))
    assert model.decode(stopped).isfinite().all()


def test_what_goes_on_after_a_stop_is_refused(mnist_root):
    model, _ = untrained(single_grid("groups", mnist_root))
    codes = [level.clone() for level in model.encode(digits(1))]
    codes[1][0, 0, 0] = -1
    with input_error("level 3 has codes at positions that have stopped"):
        model.decode(tuple(codes))
    codes[0][0, 0, 0] = -1
    with input_error("level 1 has code -1"):
        model.decode(tuple(codes))
    with input_error("level 2 has code -1"):  # grids of several sizes
        check_codes((torch.zeros(1, 2, 2).long(), torch.full((1, 4, 4), -1)), (3, 3), scale=2)


def test_depths_are_those_of_the_least_cost(mnist_root):
    """Against a loop over positions and levels; a higher quality keeps no fewer levels."""
    model, _ = untrained(single_grid("groups", mnist_root))
    quantizer = model.quantizer
    latents = model.latents(digits(4) / 255)
    codes = quantizer.encode(latents)
    bits = torch.rand(len(codes), *codes[0].shape)
    distances = quantizer.prefix_distances(latents, codes)
    before = torch.ones_like(codes[0])
    for quality in range(8):
        prices = quantizer.price_bits(bits, torch.full((4,), quality))
        depths = choose_depths(distances, prices)
        second = quantizer.levels[1]
        squares = second.codewords.square().sum(-1)
        gain = float((squares * second.count).sum() / second.count.sum())
        price = gain / np.log2(second.size) / 2**quality
        for place in np.ndindex(*codes[0].shape):
            costs = [
                float((quantizer.lookup(codes[:count])[place] - latents[place]).square().sum())
                + price * float(bits[:count, *place].sum())
                for count in range(1, len(codes) + 1)
            ]
            assert costs[depths[place] - 1] <= min(costs) + 1e-6
        assert (depths >= before).all()
        before = depths


# ---- a run whose progressive decoder and entropy model know stops ----


@pytest.fixture
def stopping(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    fields = {"progressive.training.max_steps": 30, "progressive.training.learning_rate": 0.01}
    decoder.train(run, PROGRESSIVE, fields)
    opened = hrvqvae.load(run)
    before = opened.entropy_model
    fitted = fit_entropy_model(opened.run, duration=0.1, say=silent)
    assert fitted.first_content == before.content
    assert fit_entropy_model(opened.run, say=silent).content == fitted.content
    return hrvqvae.load(run)


def distance(model, files, latents):
    """The squared distance of the codes of files from latents."""
    total = 0.0
    for image, wanted in zip(read(model.entropy_model, files), latents, strict=True):
        codes = tuple(torch.from_numpy(level)[None].long() for level in image.codes)
        total += float((model.autoencoder.quantizer.lookup(codes) - wanted).square().sum())
    return total


def test_a_file_of_so_many_bytes_is_nearer_than_the_most_levels_that_fit(stopping):
    rows = [torch.cat([*row], -1) for row in digits(27).split(3)]
    images = torch.stack([torch.cat(rows[start : start + 3], -2) for start in (0, 3, 6)])
    latents = stopping.autoencoder.latents(images / 255)
    by_levels = [stopping.compress(images, levels) for levels in (1, 2, 3)]
    smallest = max(map(len, by_levels[0]))
    largest = max(map(len, by_levels[2]))
    distances = []
    plain_distances = []
    for most in range(smallest, largest, 5):
        files = stopping.compress(images, max_bytes=most)
        assert max(map(len, files)) <= most
        decoded = torch.stack(stopping.decompress(files))
        alone = torch.stack([stopping.decompress(file)[0] for file in files])
        torch.testing.assert_close(decoded, alone)
        prefixes = [
            next(file for file in reversed(row) if len(file) <= most)
            for row in zip(*by_levels, strict=True)
        ]
        distances.append(distance(stopping, files, latents))
        plain_distances.append(distance(stopping, prefixes, latents))
        assert distances[-1] <= plain_distances[-1] + 1e-4
    assert sum(distances) < sum(plain_distances) - 1e-3
    assert stopping.compress(images, max_bytes=10_000) == by_levels[2]
    with input_error("takes at least"):
        stopping.compress(images, max_bytes=3)
    # at most so many levels
    files = stopping.compress(images, levels=2, max_bytes=smallest + 2)
    assert max(len(row.codes) for row in read(stopping.entropy_model, files, 3)) <= 3
    assert all(len(image) for image in stopping.decompress(files, levels=1))


def test_an_effort_lessens_the_error_of_files_of_as_many_bytes(stopping):
    images = digits(12)
    most = max(map(len, stopping.compress(images, 2)))
    errors = []
    for effort in (0, 2):
        files = stopping.compress(images, max_bytes=most, effort=effort)
        decoded = torch.stack(stopping.decompress(files))
        errors.append(float(squared_errors(decoded, images).sum()))
    assert errors[1] < errors[0]


def test_large_images_are_searched_in_tiles(stopping, monkeypatch):
    rows = [torch.cat([*row], -1) for row in digits(30).split(6)]
    image = torch.cat(rows, -2)[None, :, :55, :70]
    model = stopping.autoencoder
    codes, distances = encode_with_distances(model, image, 3)
    monkeypatch.setattr(tiles, "_TILE", 24)
    monkeypatch.setattr(tiles, "_MAX_UNDIVIDED", 400)
    in_tiles, tile_distances = encode_with_distances(model, image, 3)
    assert same(in_tiles, codes)
    torch.testing.assert_close(tile_distances, distances)
    rate = Rate(torch.ones(3), torch.tensor([3.0]))
    searched, _ = encode_with_distances(model, image, 3, 1, rate)
    assert [level.shape for level in searched] == [level.shape for level in codes]
