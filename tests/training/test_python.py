"""Training from Python, on a torch data set, gives the run of the command line."""

from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

import hrvqvae
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.config import Config
from hrvqvae.data.sources import datasets
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.stages import collect_fields
from hrvqvae.utils.errors import InputError, name_arguments
from tests.conftest import do, drawn_digits, input_error, same, with_data, write_file
from tests.kills import Killed, at_step
from tests.trained_run import GIVEN

IMAGES, LABELS = drawn_digits(70, seed=3)


class Digits(Dataset[tuple[Tensor, int]]):
    classes = None

    def __init__(self, rows: slice, floats: bool = False) -> None:
        self.images = IMAGES[rows]
        self.labels = LABELS[rows]
        self.floats = floats

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self.images[row])[None]
        return image.double() / 255 if self.floats else image, int(self.labels[row])


@pytest.fixture
def tiny_file(tiny: Config, tmp_path: Path) -> str:
    return str(write_file(with_data(tiny, dataset="mine", root=None), tmp_path / "tiny.yaml"))


def tensors(run: RunFolder) -> dict[str, Tensor]:
    return storage.read(run.saved()[0])[0] | {
        f"file {name}": one for name, one in storage.read(run.model)[0].items()
    }


def test_it_is_the_training_of_the_command_line(tiny_file: str, tmp_path: Path) -> None:
    arrays = {
        "x_train": IMAGES[:50],
        "y_train": LABELS[:50],
        "x_test": IMAGES[50:],
        "y_test": LABELS[50:],
    }
    np.savez(tmp_path / "digits.npz", **arrays)
    typed = RunFolder(tmp_path / "typed")
    called = RunFolder(tmp_path / "called")
    options = {"data.flip": True, "training.schedule": "constant"}
    typed_options = [
        word
        for name, value in (options | GIVEN).items()
        for word in (f"--{name}", str(value).lower())
    ]
    do(
        "train",
        tiny_file,
        "--data",
        tmp_path / "digits.npz",
        "--out",
        typed.path,
        "--max-steps",
        9,
        *typed_options[:4],
    )
    do("train-prior", typed.path, *typed_options[4:])

    data = {"data": Digits(slice(50), floats=True), "test_data": Digits(slice(50, None))}
    hrvqvae.train(tiny_file, **data, out=called.path, max_steps=6, **options)
    model = hrvqvae.train(str(called.path), **data, resume=True, max_steps=9)
    model.train_prior(**GIVEN)
    for left, right in (
        (typed, called),
        *((prior_folder(path.path, 1) for path in (typed, called)),),
    ):
        assert same(tensors(left), tensors(right)), left.path
    assert {path.name for path in called.pictures.iterdir()} == {
        path.name for path in typed.pictures.iterdir()
    }
    assert model.sample(2, class_name=str(LABELS[0])).shape == (2, 1, 12, 12)
    assert len(model.compress(torch.from_numpy(IMAGES[:2, None]))) == 2, (
        "the data set fits the entropy model"
    )
    assert "test: 20 images" in do("evaluate", called.path), (
        "which knows the data set in this process"
    )


def test_a_run_that_is_killed_before_its_first_checkpoint_keeps_its_options(
    tiny_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"model.hidden_units": 5}
    at_step(monkeypatch, AutoencoderTask, 1, Mock(side_effect=Killed))
    with pytest.raises(Killed):
        hrvqvae.train(tiny_file, data=Digits(slice(None)), out=tmp_path, **fields)
    monkeypatch.undo()
    with input_error("hidden_units is 5 there, 8 here"):
        hrvqvae.train(tiny_file, data=Digits(slice(None)), out=tmp_path, resume=True)
    hrvqvae.train(str(tmp_path), data=Digits(slice(None)), resume=True, max_steps=1)
    assert RunFolder(tmp_path).read_config().model.hidden_units == 5
    bad_data = tmp_path / "second"
    with input_error("is not an image"):
        hrvqvae.train(tiny_file, data=[torch.zeros(12, 12)], out=bad_data, **fields)
    assert RunFolder(bad_data).read_config().model.hidden_units == 5, "written before the data"


def test_files_that_are_of_no_run_stay(tiny_file: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.jsonl").write_text('{"mine": 1}')
    with input_error("metrics.jsonl is there already, and of no run: choose another out"):
        hrvqvae.train(tiny_file, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "metrics.jsonl").read_text() == '{"mine": 1}'


def test_errors_name_arguments_and_leave_commands() -> None:
    told = "resume=True and more max_steps, or data.on_error skip, or hrvqvae train --resume"

    @name_arguments
    def fail(count: int | None = None) -> None:
        raise InputError(
            "--resume and more --max-steps, or --data.on_error skip, or hrvqvae train --resume"
        )

    with pytest.raises(InputError) as caught:
        fail()
    assert str(caught.value) == told
    for value in (1.5, "3", True, 2**70):
        with pytest.raises(InputError, match="^count is .*; it must be a whole number or None$"):
            fail(value)  # type: ignore[arg-type]


def test_one_data_set_is_divided(
    tiny_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    count = torch.get_num_threads()
    hrvqvae.train(
        tiny_file, data=Digits(slice(None)), out=run, max_steps=2, **{"training.threads": count + 1}
    )
    assert torch.get_num_threads() == count, "the process is left as it was"
    assert "tiny: 65 training images" in capsys.readouterr().out, "of 70"
    with input_error("continue it with resume=True"):
        hrvqvae.train(tiny_file, data=Digits(slice(None)), out=run, max_steps=2)
    with input_error("trained on other images"):
        hrvqvae.train(str(run), data=Digits(slice(60)), resume=True, max_steps=4)
    with input_error("test_data needs a data set as data"):
        hrvqvae.train(tiny_file, data=tmp_path, test_data=Digits(slice(60)))
    with input_error("~no-such-user/x: there is no home folder here; give a path without ~"):
        hrvqvae.train(tiny_file, data="~no-such-user/x", out=tmp_path / "other")
    with input_error("mine.yaml: there is no such file"):
        hrvqvae.train(Path("mine.yaml"))
    assert collect_fields("training", {"data.root": Path("x")}, run, None) == {
        "data.root": str(Path("x").absolute())
    }
    with input_error("holds no run to resume"):
        hrvqvae.train(tiny_file, out=tmp_path / "typo", resume=True)
    told = "trained on a data set given from Python: give it again"
    with (
        patch.object(datasets, "_REGISTERED", {}),
        input_error(told),
    ):  # as in another process
        hrvqvae.load(run).train_prior()
