"""Codes of a set of images: made once, stored as Parquet, and read in order."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hrvqvae import load
from hrvqvae.checkpoints.folder import prior_folders
from hrvqvae.codes import store
from hrvqvae.codes.maps import encode_images
from hrvqvae.codes.store import load_or_make, read_codes
from hrvqvae.data.loading import open_images
from hrvqvae.models.build import build
from tests.conftest import (
    check_refusals,
    damage_error,
    do,
    input_error,
    parametrize,
    refused,
    same,
    with_quantizer,
    write_picture,
)
from tests.trained_run import tiny_run_with_priors


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """A folder of 20 digits in two classes, each file of codes has 8 of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "FILE_SIZE", 8)
    for index in range(20):
        path = tmp_path / "digits" / "ab"[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, index, (28, 28), "L")
    return tmp_path / "digits"


def equal(first, second):
    pairs = [*zip(first.levels, second.levels, strict=True), (first.labels, second.labels)]
    alike = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
    return alike and first.classes == second.classes


def test_codes_of_a_folder_are_those_of_the_model(digits):
    model = load("mnist")
    do("tokenize mnist digits out")
    maps = read_codes(digits.parent / "out", model.run.digest)
    assert maps.classes == ("a", "b")
    paths = sorted(digits.rglob("*.png"), key=lambda path: path.relative_to(digits).as_posix())
    assert maps.labels.tolist() == [0] * 10 + [1] * 10
    for position, path in enumerate(paths):
        codes, _ = maps.read([position])
        assert same(codes, model.encode(path))
    table = pq.read_table("out/part-000001.parquet")
    assert table["name"].to_pylist()[0] == "a/16.png"
    assert [*table.column_names[:3]] == ["index", "name", "label"]


def test_parts_and_an_interrupted_call_make_the_same_files(digits, monkeypatch):
    do("tokenize mnist digits out")
    whole = read_codes(digits.parent / "out", load("mnist").run.digest)
    do("tokenize mnist digits parts --part 2/2")
    with input_error("has 1 of 3 files"):
        read_codes(digits.parent / "parts", load("mnist").run.digest)
    kept = (digits.parent / "parts/part-000001.parquet").stat().st_mtime_ns
    do("tokenize mnist digits parts")
    assert (digits.parent / "parts/part-000001.parquet").stat().st_mtime_ns == kept
    assert equal(read_codes(digits.parent / "parts", load("mnist").run.digest), whole)


def test_other_codes_are_refused(digits):
    do("tokenize mnist digits out")
    check_refusals("""
        tokenize mnist digits out --effort 1 | was begun with another value of effort
        tokenize treevq-mnist digits out | was begun with another value of autoencoder
        tokenize mnist digits out --part 3/2 | part
        tokenize mnist nowhere out | nowhere
    """)
    with input_error("out was made for another state of the autoencoder"):
        read_codes(digits.parent / "out", "another")
    with input_error("is no folder of codes"):
        read_codes(digits, "another")
    (digits.parent / "out/part-000001.parquet").write_bytes(b"broken")
    with damage_error("part-000001.parquet is damaged"):
        read_codes(digits.parent / "out", load("mnist").run.digest)
    (digits.parent / "out/_codes.json").write_text("{")
    check_refusals("tokenize mnist digits out | _codes.json is damaged")


def test_broken_images_stop_or_are_left_out(digits):
    (digits / "a" / "04.png").write_bytes(b"broken")
    check_refusals("tokenize mnist digits out | 04.png")
    do("tokenize mnist digits out --on-error skip")
    names = pq.read_table("out")["name"].to_pylist()
    assert len(names) == 19
    assert "a/04.png" not in names


def test_ray_writes_the_same_codes(digits):
    do("tokenize mnist digits out")
    command = [sys.executable, *["-m", "hrvqvae", "tokenize", "mnist", "digits", "by-ray", "--ray"]]
    subprocess.run(command, check=True)
    digest = load("mnist").run.digest
    assert equal(*(read_codes(digits.parent / name, digest) for name in ("out", "by-ray")))

    # files that are there, such as those of an interrupted call, are not mixed with new ones
    assert "has files of codes already" in refused("tokenize mnist digits by-ray --ray")


def test_a_prior_is_trained_on_a_folder_of_codes(mnist_root, tmp_path):
    run = shutil.copytree(tiny_run_with_priors(mnist_root), tmp_path / "run")
    trained = load(run)
    codes = run / "priors" / "codes"  # the codes of the training images, as training made them
    own = read_codes(codes, trained.run.digest)
    images = open_images(trained.config.data, "train")
    encoded = encode_images(trained.autoencoder.encode, images, trained.config.model.num_symbols)
    assert equal(own, encoded)
    shutil.move(codes, tmp_path / "codes")
    shutil.rmtree(run / "priors")
    do(f"train-prior {run} --codes {tmp_path}/codes --max-steps 2 --level 1")
    assert [*prior_folders(run)] == [range(1)]


@parametrize("symbols, kind", [(256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_every_symbol_fits(symbols, kind, tiny, tmp_path):
    config = with_quantizer(tiny, levels=1, codewords=symbols, dim=1)
    model = build(config)
    model.encode = lambda images: (torch.full((len(images), 7, 7), symbols - 1),)
    maps = load_or_make(tmp_path, model, "digest", config, "test")
    assert maps.levels[0].dtype == kind
    assert bool((maps.read(np.arange(40))[0][0] == symbols - 1).all())


def test_codes_of_something_else_are_made_again(tiny, tmp_path):
    model = build(tiny)
    first = load_or_make(tmp_path, model, "first", tiny, "train")
    assert equal(load_or_make(tmp_path, model, "first", tiny, "train"), first)
    load_or_make(tmp_path, model, "second", tiny, "train")
    assert json.loads((tmp_path / "_codes.json").read_text())["autoencoder"] == "second"
