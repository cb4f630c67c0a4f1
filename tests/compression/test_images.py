"""From images to files of codes and back, for every system; files of at most so many bytes."""

from functools import partial

import torch
from PIL import Image

from hrvqvae.compression.hrv import read, read_header
from hrvqvae.compression.images import decode_images, make_files
from hrvqvae.models.single_grid import SingleGridAutoencoder
from tests.compression.made import digits, single_grid, untrained
from tests.conftest import (
    damage_error,
    do,
    generator,
    input_error,
    parametrize,
    random_images,
    same,
)
from tests.trained_run import tiny_systems

CPU = torch.device("cpu")


def pictures(count, size):
    return random_images(count, 1, *size, rng=generator())


@parametrize("name", ["groups", "vqvae2"])
def test_every_system_compresses_images_of_any_size(name, mnist_root):
    model, entropy_model = untrained(single_grid(name, mnist_root))
    for size in ((12, 12), (5, 21)):
        images = pictures(3, size)
        files = make_files(model, entropy_model, images, CPU)
        with torch.inference_mode():
            expected = model.decode(model.encode(images), size=size)
        codes = read(entropy_model, files)
        assert same(decode_images(model, codes, CPU), expected)
        assert not any(image.fault for image in codes)
        lengths = [*map(len, files)]
        # a byte at the end of each level
        assert max(lengths) - min(lengths) <= len(entropy_model.symbols)


def test_an_entropy_model_makes_smaller_files_of_the_same_images(model):
    images = digits(4)
    fitted = model.compress(images)
    plain = make_files(model.autoencoder, model.entropy_model.bare, images, CPU)
    assert sum(map(len, fitted)) < sum(map(len, plain))
    assert {read_header(file).by_tables for file in fitted} == {True}
    codes = model.encode(images)
    assert same(model.decompress(fitted), model.decode(codes, size=(12, 12)))
    coarse = model.decode(codes, levels=1, size=(12, 12))
    for files in (model.compress(images, levels=1), fitted):
        assert same(model.decompress(files, levels=1), coarse)
    with damage_error("12x12 pixels; at most 100"):
        model.decompress(fitted, max_pixels=100)


def test_images_of_several_sizes_keep_their_order(model):
    images = [pictures(1, size)[0] for size in ((12, 12), (3, 40), (12, 12), (1, 1))]
    for image, decoded in zip(images, model.decompress(model.compress(images)), strict=True):
        expected = model.decode(model.encode(image[None]), size=image.shape[1:])[0]
        torch.testing.assert_close(decoded, expected)


def test_levels_are_prefixes_of_a_file(model):
    image = digits(1)
    by_levels = [model.compress(image, levels)[0] for levels in (1, 2, 3)]
    assert all(by_levels[2].startswith(content) for content in by_levels)
    with input_error("levels is 4; this model decodes 1, 2, 3"):
        model.compress(image, levels=4)
    with input_error("levels is 0"):
        model.decompress(by_levels, levels=0)


def test_a_system_that_needs_all_levels_says_so(mnist_root):
    model, entropy_model = untrained(tiny_systems(mnist_root)["vqvae2"])
    make = partial(make_files, model, entropy_model, pictures(1, (12, 12)), CPU)
    (content,) = make()
    cut = read(entropy_model, [content[:-1]])
    with damage_error("file 1 has 1 whole level: level 2"):
        decode_images(model, cut, CPU)
    first = read(entropy_model, [content[: sum(cut[0].lengths)]])
    with damage_error("it ends too early"):
        decode_images(model, first, CPU)
    assert make(max_bytes=len(content)) == [content]
    with input_error("takes at least"):
        make(max_bytes=len(content) - 1)


@parametrize("effort", [0, 1])
def test_a_file_of_so_many_bytes_has_the_most_levels_that_fit(effort, model):
    images = digits(4)
    by_levels = [model.compress(images, levels, effort=effort) for levels in (1, 2, 3)]
    for most in (max(map(len, by_levels[0])), 26, 1000):
        expected = [
            next(file for file in reversed(files) if len(file) <= most)
            for files in zip(*by_levels, strict=True)
        ]
        assert model.compress(images, max_bytes=most, effort=effort) == expected


def test_codes_are_computed_without_tf32(model, run, tmp_path, monkeypatch):
    """In each public function and command that makes codes, as in training and evaluation."""
    seen = []
    latents = SingleGridAutoencoder.latents

    def observe(*arguments):
        seen.append(torch.backends.cudnn.allow_tf32)
        return latents(*arguments)

    monkeypatch.setattr(SingleGridAutoencoder, "latents", observe)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    images = digits(2)
    png = tmp_path / "0.png"
    Image.fromarray(images[0, 0].numpy()).save(png)
    for call in (
        lambda: model.encode(images),
        lambda: model.encode(images, effort=1),
        lambda: model.compress(images),
        lambda: model.compress(images, max_bytes=1000),
        lambda: do(f"compress {run} {png} -o {tmp_path}/x.zip"),
        lambda: do(f"tokenize {run} {tmp_path} {tmp_path}/shards"),
        lambda: do(f"reconstruct {run} {png} -o {tmp_path}/y.png"),
    ):
        seen.clear()
        call()
        assert {*seen} == {False}
        assert torch.backends.cudnn.allow_tf32
