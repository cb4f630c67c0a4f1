"""Samples are written as they are drawn; closed streams and a second call change nothing."""

import subprocess
import sys
from functools import partial
from unittest.mock import DEFAULT, Mock, patch

import pytest

import hrvqvae
from hrvqvae import pictures
from hrvqvae.data.images import read_image
from hrvqvae.priors.sampling import SamplingParams
from tests.conftest import input_error

COARSE = SamplingParams(levels=1)  # draws fastest


def contents(folder):
    return {path: path.read_bytes() for path in folder.glob("*.png")}


def test_a_second_call_goes_on(tmp_path):
    folder = tmp_path / "single"

    def sample(count, seed=1):
        out = tmp_path / f"{count}.png"
        pictures.sample("mnist", count, out, save_dir=folder, seed=seed, params=COARSE)
        return contents(folder)

    before = sample(3)
    min(before).unlink()
    after = sample(5)
    assert len(after) == 5
    assert before.items() <= after.items()
    samples = hrvqvae.load("mnist").sample(5, seed=1, levels=1)
    drawn = {bytes((sample * 255).round().byte().numpy()) for sample in samples}
    assert drawn == {bytes(read_image(path).numpy()) for path in after}

    with input_error("begun with other options"):
        sample(2, seed=2)
    (folder / "samples.json").write_bytes(b"damaged")
    with input_error("begun with other options"):
        sample(2)
    assert after == contents(folder)


def test_a_forced_call_keeps_no_file_of_another(tmp_path):
    folder = tmp_path / "single"

    def draw(seed, class_name="7", force=True):
        out = tmp_path / f"{seed}.png"
        options = {"seed": seed, "class_name": class_name, "force": force, "params": COARSE}
        pictures.sample("mnist", 3, out, save_dir=folder, **options)

    draw(1, force=False)
    first = contents(folder)
    with input_error("class"):
        draw(1, class_name="99")
    assert contents(folder) == first
    interrupt = Mock(wraps=pictures.write_image, side_effect=[DEFAULT, KeyboardInterrupt])
    with patch.object(pictures, "write_image", interrupt), pytest.raises(KeyboardInterrupt):
        draw(2)
    assert not {*first.values()} & {*contents(folder).values()}


def test_memory_is_bounded_and_the_sheet_shows_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_SHEET_PIXELS", 2 * 28 * 28)
    sample = partial(pictures.sample, "mnist", params=COARSE)
    with input_error("at most 2 samples"):
        sample(3, tmp_path / "a.png")
    sample(2, tmp_path / "a.png")
    sample(3, tmp_path / "b.png", save_dir=tmp_path / "single")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_closed_streams(tmp_path):
    command = f"{sys.executable} -m hrvqvae sample mnist -n 1 --levels 1 -o {tmp_path / 'a.png'}"
    done = subprocess.run(
        f"{command} >&- 2>&-", check=False, shell=True, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert read_image(tmp_path / "a.png").shape[1] >= 28
