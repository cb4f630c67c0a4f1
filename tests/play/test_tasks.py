"""Uploads that the page reads and refuses; what it shows is what the model computes; its
addresses.
"""

import copy
import math
import shutil
import socket
import struct
import zlib
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.distributions import Categorical

from hrvqvae.model import Model
from hrvqvae.play import tasks
from hrvqvae.play.address import LOOPBACK, check_address, is_admitted, list_hosts
from hrvqvae.play.tasks import _reduce, parse_marks, read_upload
from hrvqvae.priors.sampling import SamplingParams
from tests.conftest import (
    approx,
    drawn_digits,
    input_error,
    parametrize,
    refused,
    shared_fixture,
    write_picture,
)
from tests.trained_run import tiny_run_with_priors

LIMITS = (1 << 24, 1 << 24)  # bytes and pixels


def png_of_size(width, height):
    """A PNG of a single pixel whose header says another size."""
    stream = BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    content = stream.getvalue()
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


HOSTILE = {
    "many pixels": (png_of_size(30_000, 30_000), "exceeds limit of"),
    "too many pixels": (png_of_size(65_500, 1_000), "at most 16777216 are"),
    "bytes": (bytes(17 << 20), "has 17,825,792 bytes; at most 16,777,216"),
    "text": (b"this is text\n", "is not a readable PNG, JPEG or WebP image"),
    "cut": (png_of_size(30, 30)[:-20], "is not a readable PNG, JPEG or WebP image"),
}


@parametrize("kind", HOSTILE)
def test_a_hostile_upload_is_one_line(kind, tmp_path, monkeypatch):
    content, message = HOSTILE[kind]
    (tmp_path / "hostile.png").write_bytes(content)
    if "pixels" in kind:
        monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with input_error(f"^hostile.png .*{message}") as caught:
        read_upload(tmp_path / "hostile.png", 1, (28, 28), *LIMITS)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_an_image_is_taken_in_both_sizes(tmp_path, monkeypatch):
    file = tmp_path / "x.png"
    write_picture(file, 1, (60, 40))
    picture = read_upload(file, 1, (28, 28), *LIMITS)
    assert picture.full.shape == (1, 40, 60)
    assert picture.square.shape == (1, 28, 28)
    assert picture.note == "colour to greyscale"
    monkeypatch.setattr(tasks, "_CODED_PIXELS", 600)
    small = read_upload(file, 3, (28, 28), *LIMITS)
    assert small.full.shape == (3, 20, 30)
    assert small.note == "60x40 pixels reduced to 30x20"
    mean = np.asarray(Image.open(file)).mean()
    assert float(small.full.float().mean()) == approx(mean, abs=1)


@given(st.integers(1, 3_000), st.integers(1, 3_000), st.integers(1, 4_000))
def test_reduced_images_fit_and_keep_their_shape(height, width, pixels):
    small, note = _reduce(torch.zeros(1, 1, 1, dtype=torch.uint8).expand(1, height, width), pixels)
    rows, columns = small.shape[-2:]
    assert rows * columns <= max(1, pixels)
    assert bool(note) == (height * width > pixels)
    if min(rows, columns) > 20:
        assert rows / columns == approx(height / width, rel=0.1)


def test_marks_are_those_of_the_painter():
    for text in """
        {
        [1]
        {"side": 3, "marks": "1111"}
        {"side": 1e9, "marks": "11"}
        {"side": -1}
        {"side": 30000, "marks": "0"}
        {"side": 2, "marks": 7}
    """.strip().splitlines():
        with input_error("load the page anew"):
            parse_marks(text)
    assert parse_marks('{"side": 2, "marks": "0110"}').tolist() == [[False, True], [True, False]]
    assert parse_marks('{"side": 2, "marks": ""}').tolist() == [[False] * 2] * 2
    assert not parse_marks(None).any()


@shared_fixture
def model(mnist_root):
    return Model(tiny_run_with_priors(mnist_root))


@pytest.fixture
def image():
    return torch.from_numpy(drawn_digits(1, 7)[0])


def test_a_reconstruction_is_of_its_file(model, image):
    sizes = []
    for levels in model.autoencoder.prefixes:
        made, length, psnr = tasks.reconstruct(model, image, levels)
        assert length == len(model.compress([image], levels)[0])
        decoded = model.decode(model.encode(image[None]), levels, (12, 12))[0]
        assert torch.allclose(made, decoded, atol=1e-5)
        error = float((made.double() - image / 255).square().mean())
        assert psnr == approx(-10 * math.log10(error))
        sizes.append(length)
    assert sizes == sorted(set(sizes))
    with input_error("levels is 9"):
        tasks.reconstruct(model, image, 9)


def test_what_is_looked_at_is_not_kept(image, mnist_root, tmp_path):
    shutil.copytree(
        tiny_run_with_priors(mnist_root), tmp_path / "run", ignore=shutil.ignore_patterns("states")
    )
    tasks.reconstruct(Model(tmp_path / "run"), image, 1)
    assert not (tmp_path / "run" / "states").exists()


def test_a_completion_keeps_what_is_painted(model, image):
    painted = torch.zeros(6, 6, dtype=torch.bool)  # stretched over 12x12
    painted[1:4, :3] = True
    options = {"count": 4, "class_name": "3", "seed": 2, "params": SamplingParams()}
    complete = partial(tasks.complete, model, image, **options)
    shown, share, images = complete(painted)
    assert share == approx(6 / 49)
    assert images.shape == (4, 1, 12, 12)
    assert torch.equal(shown[0][4, :3], image[0][4, :3] / 255)
    assert shown[0][-1].tolist() == [0.5] * 12
    assert len(images.unique(dim=0)) > 1
    for value, line in ((False, "keeps 0 of"), (True, "keeps 49 of 49")):
        with input_error(line):
            complete(torch.full((12, 12), value))


def test_usage_by_counting(model, image):
    indices = model.autoencoder.codeword_indices(model.encode(image[None]))
    rows = zip(tasks.measure_usage(model, image), indices, strict=True)
    for level, ((codewords, used, perplexity, trained), chosen) in enumerate(rows, start=1):
        counts = torch.bincount(chosen.flatten())
        assert codewords == 3**level
        assert used == int((counts > 0).sum())
        assert perplexity == approx(float(Categorical(counts).perplexity()))
        assert 1 <= trained <= 3**level
    model = copy.deepcopy(model)
    model.autoencoder.quantizer.levels[1].count = torch.tensor([[1.0, 1, 1], [0, 0, 1], [0, 0, 0]])
    assert tasks.measure_usage(model, image)[1][3] == approx(4)


def test_an_address_that_can_not_be_served_is_one_line():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = busy.getsockname()[1]
        hosts = {"nohost.invalid": None, "192.0.2.1": None, "127.0.0.1": taken}
        for host, port in hosts.items():
            with input_error(f"can't be served at --host {host}"):
                check_address(host, port)
    check_address("127.0.0.1", None)
    for port in (0, 65_536, 99_999):
        assert f"--port is {port}; it must be 1 to 65535" in refused(f"play --port {port}")
    assert "nohost.invalid" in refused("play --host nohost.invalid")


def test_foreign_names_of_the_host_are_refused():
    for host in ("127.0.0.1", "0.0.0.0", "Me.example"):
        hosts = list_hosts(host)
        # browsers send small letters
        assert all(is_admitted(name, hosts) for name in (*LOOPBACK, host, host.lower()))
        assert not any(is_admitted(name, hosts) for name in ("rebound.example", ""))
        for name in ("192.0.2.7", socket.gethostname()):
            assert is_admitted(name, hosts) == (host != "127.0.0.1")
