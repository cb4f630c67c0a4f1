"""Fixtures: drawn digits, colour images, a tiny configuration; helpers that run commands."""

import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from unittest.mock import Mock, patch

import numpy as np
import pytest
import yaml
from hypothesis import settings
from PIL import Image, ImageDraw

os.environ.setdefault("OMP_NUM_THREADS", "1")  # xdist runs one process a core

import torch

from benchmarks.common import fields
from hrvqvae.cli import main
from hrvqvae.config import presets, to_dict
from hrvqvae.config.parsing import from_dict, override
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.data.fetch import write_idx
from hrvqvae.utils import progress
from hrvqvae.utils.errors import DamagedFileError, InputError, NonFiniteError
from hrvqvae.utils.locks import InUseError
from hrvqvae.utils.outputs import write_atomic

# where `datasets` keeps its Arrow files; read when it is imported
os.environ["HF_DATASETS_CACHE"] = f"{tempfile.gettempdir()}/hrvqvae-arrow"
torch.set_num_threads(1)
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
parametrize = pytest.mark.parametrize
shared_fixture = pytest.fixture(scope="module")
approx = pytest.approx
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
on_each_device = parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])


def same(left, right):
    """Return whether two tensors, modules, states or sequences of tensors are equal bit for bit."""
    modules = torch.nn.Module
    left, right = (x.state_dict() if isinstance(x, modules) else x for x in (left, right))
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(
            torch.equal(value, right[name]) for name, value in left.items()
        )
    return len(left) == len(right) and all(map(torch.equal, left, right))


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def random_images(*shape, rng=None):
    return torch.randint(256, shape, dtype=torch.uint8, generator=rng)


@contextmanager
def double_precision():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawn_digits(count, seed, size=12):
    generator = np.random.default_rng(seed)
    images = np.zeros((count, size, size), np.uint8)
    labels = generator.integers(0, 10, count).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 : size - 2, label % size // 2 + 2] = 255
        image[generator.integers(2, size - 2), 2:-2] = 180
    return images, labels


def write_mnist(folder, train=96, test=40, size=12):
    folder.mkdir(parents=True)
    for part, count, seed in (("train", train, 1), ("t10k", test, 2)):
        images, labels = drawn_digits(count, seed, size)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_mnist(root / "mnist")
    return root


def write_picture(path, seed, size=(40, 30), mode="RGB"):
    """Write a disc on a background, both of a random colour."""
    rng = np.random.default_rng(seed)
    background = tuple(rng.integers(0, 255, 3).tolist())
    corner = rng.integers(1, 10, 2).tolist()
    image = Image.new("RGB", size, background)
    colour = tuple(rng.integers(0, 255, 3).tolist())
    ImageDraw.Draw(image).ellipse((*corner, 25, 25), colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path)


@pytest.fixture
def picture_folder(tmp_path):
    folder = tmp_path / "pictures"
    for index in range(30):
        suffix = ("png", "jpg", "webp")[index % 3]
        write_picture(folder / ("cats" if index % 2 else "dogs") / f"{index:03d}.{suffix}", index)
    return folder


@pytest.fixture
def tiny(mnist_root):
    """A configuration that trains in a second: 12x12 greyscale images, 2 levels of 3 codewords."""
    training = """
        batch_size=16 max_steps=24 warmup_steps=4 log_every=4 evaluate_every=100
        checkpoint_every=3 evaluation_images=40 device=cpu precision=fp32
    """
    small = (
        {"data.root": str(mnist_root)}
        | fields("data", "size=12 channels=1 workers=0")
        | fields("model", "stride=2 padding=1 hidden_units=8 residual_units=8 residual_blocks=1")
        | fields("model.quantizer", "levels=2 codewords=3 dim=4 init_vectors=1000 restart_every=4")
        | fields("training", training)
    )
    return override(from_dict({"name": "tiny"}, "tests"), small)


@pytest.fixture(scope="session", autouse=True)
def _undrawn():
    """Trainings write the files of their curves without drawing them, which takes a second."""

    def write(_, path):
        write_atomic(path, b"not drawn")

    plots = Mock(plot_training=write, plot_prior=write, plot_usage=write)
    with (
        patch("hrvqvae.training.autoencoder.curves", plots),
        patch("hrvqvae.training.prior.curves", plots),
    ):
        yield


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """Enter the folder of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(mnist_root):
    """A run folder with priors. Do not write to it."""
    from tests.trained_run import tiny_run_with_priors

    return tiny_run_with_priors(mnist_root)


@pytest.fixture
def added_systems():
    """Forget the systems that a test registers."""
    yield
    SYSTEMS.added.clear()
    presets.get.cache_clear()


def with_fields(section, config, **changes):
    """Return a configuration with other values of fields of a section."""
    return config.replace(**{f"{section}.{name}": value for name, value in changes.items()})


with_data = partial(with_fields, "data")
with_training = partial(with_fields, "training")
with_quantizer = partial(with_fields, "model.quantizer")


def read_json(path):
    return json.loads(path.read_text())


def write_file(config, path):
    path.write_text(yaml.safe_dump(to_dict(config)))
    return path


def done(*arguments):
    """Run a command; return its exit code, stdout and stderr.

    The first argument may be a whole command line; further ones are taken as they are.
    """
    line, *others = arguments or [""]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([*shlex.split(str(line)), *map(str, others)])
    return code, out.getvalue(), err.getvalue()


def ended(code, command):
    """Run a command that ends with an exit code; return all that it printed."""
    ended_with, out, err = done(command)
    assert ended_with == code
    return out + err


def do(*arguments):
    """Run a command that succeeds; print and return its stdout."""
    code, out, err = done(*arguments)
    print(out, end="")
    print(err, end="", file=sys.stderr)
    assert code == 0
    return out


def cells_of(text):
    """Return the cells of each line, which stand between bars."""
    return [line.strip().split(" | ") for line in text.strip().splitlines()]


def expected(kind):
    """Return a function that expects an error of a kind, whose message holds a pattern."""
    return lambda message=None: pytest.raises(kind, match=message)


input_error = expected(InputError)
damage_error = expected(DamagedFileError)
in_use_error = expected(InUseError)
nonfinite_error = expected(NonFiniteError)


def names_in(folder, pattern="*"):
    return sorted(path.name for path in folder.glob(pattern))


def run_python(*words, code=0, **options):
    """Run Python in another process, which ends with `code`; return what it printed."""
    ended = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, check=False, **options
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended


def refused(command):
    """Run a command that is refused with exit code 2; return its only line."""
    # one line, however slow the machine is
    with patch.object(progress, "LINE_SECONDS", 600):
        code, out, err = done(*([command] if isinstance(command, str) else command))
    lines = [line for line in err.splitlines() if "compiling for this processor" not in line]
    assert code == 2
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("hrvqvae: ")
    return lines[0]


def check_refusals(table):
    """Check that each command of a table "command | part of its line" is refused."""
    for command, message in cells_of(table):
        assert message in refused(command)
