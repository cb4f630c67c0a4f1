"""Training from Python, on a torch data set, gives the run of the command line."""

import io
from functools import partial
from unittest.mock import Mock, patch

import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

import hrvqvae
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.data import datasets
from hrvqvae.training.autoencoder import AutoencoderTask
from tests.conftest import do, drawn_digits, input_error, names_in, same, with_data, write_file
from tests.data.stored import write_parquet
from tests.kills import Killed, at_step
from tests.trained_run import GIVEN, as_options
from tests.training.tasks import Case

IMAGES, LABELS = drawn_digits(70, seed=3)
PIXELS = torch.from_numpy(IMAGES)[:, None]
DIGITS = TensorDataset(PIXELS, torch.from_numpy(LABELS))


def encode_png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def tiny_file(tiny, tmp_path):
    return str(write_file(with_data(tiny, dataset="mine", root=None), tmp_path / "tiny.yaml"))


def test_it_is_the_training_of_the_command_line(tiny_file, tiny, tmp_path):
    floats = TensorDataset(PIXELS.double() / 255, torch.from_numpy(LABELS))
    files = [encode_png(image) for image in IMAGES]
    write_parquet(tmp_path / "digits" / "train.parquet", files[:50], LABELS[:50])
    write_parquet(tmp_path / "digits" / "test.parquet", files[50:], LABELS[50:])
    typed = tmp_path / "typed"
    called = tmp_path / "called"
    data = f"--data {tmp_path}/digits --data.flip true --training.schedule constant"
    do(f"train {tiny_file} {data} --out {typed} --max-steps 9")
    do(f"train-prior {typed} {as_options(GIVEN)}")

    train = Subset(floats, range(50))
    test = Subset(DIGITS, range(50, 70))
    images = {"data": train, "test_data": test}
    changes = {"data.flip": True, "training.schedule": "constant"}
    hrvqvae.train(tiny_file, **images, out=called, max_steps=6, **changes)
    model = hrvqvae.train(str(called), **images, resume=True, max_steps=9)
    model.train_prior(**GIVEN)
    for name in ("autoencoder", "prior"):
        left, right = (Case(name, run, tiny) for run in (typed, called))
        assert same(left.state(), right.state())
    assert names_in(RunFolder(typed).pictures) == names_in(RunFolder(called).pictures)
    assert model.sample(2, class_name=str(LABELS[0])).shape == (2, 1, 12, 12)
    assert "test: 20 images" in do(f"evaluate {called}")  # this process knows the data set


def test_a_run_that_is_killed_before_its_first_checkpoint_keeps_its_options(
    tiny_file, tmp_path, monkeypatch
):
    narrow = {"model.hidden_units": 5}
    at_step(monkeypatch, AutoencoderTask, 1, Mock(side_effect=Killed))
    with pytest.raises(Killed):
        hrvqvae.train(tiny_file, data=DIGITS, out=tmp_path, **narrow)
    monkeypatch.undo()
    hrvqvae.train(str(tmp_path), data=DIGITS, resume=True, max_steps=1)
    assert RunFolder(tmp_path).read_config().model.hidden_units == 5
    bad_data = tmp_path / "second"
    with input_error("is not a readable image"):
        hrvqvae.train(tiny_file, data=[torch.zeros(12, 12)] * 2, out=bad_data, **narrow)
    assert RunFolder(bad_data).read_config().model.hidden_units == 5


def test_files_that_are_of_no_run_stay(tiny_file, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"mine": 1}')
    with input_error("metrics.jsonl is there already, and of no run: choose another --out"):
        hrvqvae.train(tiny_file, out=tmp_path)
    assert file.read_text() == '{"mine": 1}'


def test_one_data_set_is_divided(tiny_file, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    count = torch.get_num_threads()
    train = partial(hrvqvae.train, tiny_file)
    train(data=DIGITS, out=run, max_steps=2, **{"training.threads": count + 1})
    assert torch.get_num_threads() == count  # the process is left as it was
    assert "tiny: 65 training images" in capsys.readouterr().out  # of 70
    with input_error("continue it with"):
        train(data=DIGITS, out=run, max_steps=2)
    with input_error("trained on other images"):
        hrvqvae.train(str(run), data=Subset(DIGITS, range(60)), resume=True, max_steps=4)
    # as in another process
    datasets.open_registered.cache_clear()
    told = "trained on a data set given from Python: give it again"
    with patch.object(datasets, "_REGISTERED", {}), input_error(told):
        hrvqvae.load(run).train_prior()
