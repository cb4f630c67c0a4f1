"""The command line itself: the order of options, wrong commands, help, JSON, progress; formats of
numbers.
"""

import errno
import io
import json
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrvqvae
from hrvqvae.cli import main
from hrvqvae.cli.console import print_json, split_fields
from hrvqvae.utils import progress
from hrvqvae.utils.progress import Meter, say, tracked, waiting
from tests.conftest import check_refusals, do, input_error, parametrize, refused

TRAIN = (
    "hrvqvae/mnist",
    "--print-config",
    "--max-steps 5",
    "--data=somewhere",
    "--model.quantizer.codewords 8",
    "--training.learning_rate=1e-3",
)


@settings(max_examples=6)
@given(st.permutations(TRAIN))
def test_options_stand_before_and_after_the_preset(parts):
    """Their values: test_fields_are_told_from_the_rest, and tests/config/test_parsing.py."""
    printed = do(" ".join(["train", *parts]))
    assert "codewords: 8" in printed
    assert printed == do(" ".join(["train", *TRAIN]))


def test_fields_are_told_from_the_rest():
    for line, words, fields in (
        ("a --x.y= -- --x.z 3", "a -- --x.z 3", {"x.y": ""}),
        ("--x.y -1e-3 b --z.w=-2 --x", "b --x", {"x.y": "-1e-3", "z.w": "-2"}),
        ("--x.y 1 --x.y=1", "", {"x.y": "1"}),
        ("--out=runs/a.b --out runs/a.b", "--out=runs/a.b --out runs/a.b", {}),
    ):
        assert split_fields(line.split()) == (words.split(), fields)
    with input_error(r"--x\.y 2 contradicts --x\.y 1"):
        split_fields(["--x.y", "1", "--x.y=2"])
    for after in ("", "--resume", "-o x.png", "--", "--x.z 3"):
        with input_error(r"--x\.y needs a value"):
            split_fields(f"train --x.y {after}".split())


def test_wrong_commands():
    check_refusals(r"""
        train hrvqvae/mnst | unknown preset 'hrvqvae/mnst': did you mean hrvqvae/mnist
        train hrvqvae/mnist --data /nowhere | get it with: hrvqvae data get mnist
        evaluate mnist --data.size 12 | --data.size
        data gte | (see hrvqvae data --help)
        presets mnist | unknown preset 'mnist': did you mean
        train mine.yaml | mine.yaml can't be read as YAML or JSON
        reconstruct run | required: IMAGE
        train hrvqvae/mnist --max-steps 1 --model.quantizer.codwords 2 | quantizer.codewords
        train hrvqvae/mnist --max-steps 9 --training.max_steps 20 | contradicts
        train hrvqvae/mnist --max-step 5 | '--max-step': did you mean --max-steps
        train hrvqvae/mnist --learning-rate 5 | did you mean --training.learning_rate
        train-prior run --data.root a --data b | contradicts --data.root
        demo --max-steps -3 | --max-steps: it must be at least 0
        train-decoder mnist --decoder progressive --max-steps 1 | hrvqvae export mnist DIR
        train hrvqvae/mnist --out '' | --out: it is empty
    """)


def test_no_command_prints_the_help(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_help_shows_every_command_in_one_group(capsys):
    def printed(*words):
        with pytest.raises(SystemExit, match="^0$"):
            main(words)
        return capsys.readouterr().out

    assert printed("train", "--help").startswith("usage: hrvqvae train ")
    shown = re.findall(r"^  ([a-z]\S*)", printed("--help"), re.MULTILINE)
    names = refused("xyz").partition("(choose from ")[2].partition(")")[0].replace("'", "")
    assert sorted(shown) == sorted(names.split(", "))
    assert printed("--version") == f"hrvqvae {hrvqvae.__version__}\n"


def test_arguments_stand_before_and_after_options():
    for line in ("mnist small --compact", "mnist --compact small", "--compact mnist small"):
        with patch("hrvqvae.checkpoints.export.export", return_value=[]) as export:
            do(f"export {line}")
        export.assert_called_once_with("mnist", Path("small"), license=None, compact=True)
    check_refusals("export mnist --compact small more | unknown argument 'more'")


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m hrvqvae presets hrvqvae/mnist | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "hrvqvae/mnist: MNIST, 28x28 greyscale\n"
    assert done.stderr == ""


def test_out_of_memory_is_one_line():
    on_cpu = RuntimeError("[...] DefaultCPUAllocator: can't ...")
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), on_cpu):
        with patch("hrvqvae.cli.run", side_effect=error):
            check_refusals("train | out of memory: take a smaller batch (--training.batch_size")
    ours = patch("hrvqvae.cli.run", side_effect=RuntimeError("ours"))
    with ours, pytest.raises(RuntimeError, match="ours"):
        main(["train"])


def work(count, name="work"):
    return list(tracked(range(count), name, count, lambda _: 1))


def test_json_has_no_infinity(capsys):
    print_json([{"psnr": float("inf"), "levels": (1, float("nan"), 0.5)}])
    assert json.loads(capsys.readouterr().out) == [{"psnr": None, "levels": [1, None, 0.5]}]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def every_line(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)


@pytest.fixture
def shown(caplog):
    caplog.set_level("INFO", "hrvqvae")


@pytest.mark.usefixtures("every_line")
def test_a_library_shows_nothing(capsys, caplog):
    waiting("reading")
    assert work(5) == list(range(5))
    assert tuple(capsys.readouterr()) == ("", "")
    assert caplog.messages == []


@parametrize("stream", [Terminal(), io.StringIO()])
def test_lines_and_the_bar_of_a_training(stream, every_line):
    with closing(Meter(stream)) as meter:
        meter.show("step 5", 0.5, "loss 0.1")
        meter.say("step 5  evaluated")
    for part in ("step 5", "loss 0.1", "step 5  evaluated\n"):
        assert part in stream.getvalue()


@parametrize("terminal", [False, True])
def test_a_training_outlives_its_terminal(terminal, every_line, monkeypatch):
    stream = Mock(isatty=lambda: terminal, write=Mock(side_effect=OSError(errno.EIO, "gone")))
    monkeypatch.setattr(sys, "stdout", stream)
    with closing(Meter(stream)) as meter:
        meter.show("step 5", 0.5, "loss 0.1", last=True)
        meter.say("step 5  evaluated")
        say("a prior follows")
    assert stream.write.called
