"""The command line itself: the order of options, wrong commands, help, JSON."""

import contextlib
import io
import json
import subprocess
import sys

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import hrvqvae
from hrvqvae.cli import main
from hrvqvae.cli.console import print_json, split_fields
from hrvqvae.utils.errors import InputError
from tests.conftest import refused

TRAIN = (
    ["hrvqvae/mnist"], ["--print-config"], ["--max-steps", "5"], ["--data=somewhere"],
    ["--model.quantizer.codewords", "8"], ["--training.learning_rate=1e-3"],
    ["--prior.training.batch_size", "128,64,32"],
)  # fmt: skip


@settings(deadline=None, max_examples=6)
@given(st.permutations(TRAIN))
def test_options_stand_before_and_after_the_preset(parts: list[list[str]]) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["train", *(word for part in parts for word in part)]) == 0
    printed = yaml.safe_load(out.getvalue())
    assert printed["name"] == "hrvqvae/mnist"
    assert printed["model"]["quantizer"]["codewords"] == 8
    assert (printed["training"]["max_steps"], printed["training"]["learning_rate"]) == (5, 1e-3)
    assert printed["prior"]["training"]["batch_size"] == [128, 64, 32]
    assert printed["data"]["root"].endswith("/somewhere")


def test_fields_are_told_from_the_rest() -> None:
    assert split_fields(["a", "--x.y=", "--", "--x.z", "3"]) == (["a", "--", "--x.z", "3"], {"x.y": ""})
    assert split_fields(["--x.y", "-1e-3", "b c", "--z.w=-2", "--x"]) == (["b c", "--x"], {"x.y": "-1e-3", "z.w": "-2"})
    assert split_fields(["--x.y", "1", "--x.y=1"]) == ([], {"x.y": "1"})
    assert split_fields(["--out=runs/a.b", "--out", "runs/a.b"]) == (["--out=runs/a.b", "--out", "runs/a.b"], {})
    with pytest.raises(InputError, match=r"--x\.y 2 contradicts --x\.y 1"):
        split_fields(["--x.y", "1", "--x.y=2"])
    for after in ([], ["--resume"], ["-o", "x.png"], ["--"], ["--x.z", "3"]):
        with pytest.raises(InputError, match=r"--x\.y needs a value"):
            split_fields(["train", "--x.y", *after])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "hrvqvae/mnst"], "unknown preset 'hrvqvae/mnst': did you mean hrvqvae/mnist"),
        (["train", "hrvqvae/mnist", "--data", "/nowhere"], "get it with: hrvqvae data get mnist"),
        (["train", "hrvqvae/mnist", "--max-step", "5"], "'--max-step' of hrvqvae train: did you mean --max-steps"),
        (["train", "hrvqvae/mnist", "--seed", "-1"], "training.seed is '-1'; it must be at least 0"),
        (["evaluate", "nowhere"], "there is no such run folder"),
        (["evaluate", "nowhere", "--data.size", "12"], "'--data.size' of hrvqvae evaluate: did you mean --data"),
        (["data", "get", "ffhq"], "can't be got by command"),
        (["compres", "mnist"], "unknown command 'compres': did you mean compress"),
        (["xyz"], "unknown command 'xyz': there are presets, runs, "),
        (["data", "gte"], "unknown action 'gte': did you mean get? (see hrvqvae data --help)"),
        (["presets", "mnist"], "unknown preset 'mnist': did you mean hrvqvae/mnist or treevq/mnist"),
        (["train", "mine.yaml"], "mine.yaml: there is no such file"),
        (["sample", "no\x1b[31mrun", "-o", "x.png"], r"no\x1b[31mrun: there is no such run"),
        ([], "COMMAND"),
        (["reconstruct", "run"], "required: IMAGE"),
        (["compare", "mnist", "--max-steps", "1", "--out", "x", "--model.quantizer.codwords", "2"], "mean codewords"),
        (["sample", "mnist", "--top-k", "0", "-o", "x.png"], "--top-k is 0; it must be at least 1"),
        (["train", "hrvqvae/mnist", "--max-steps", "9", "--training.max_steps", "20"], "contradicts"),
        (["train-prior", "run", "--data.root", "a", "--data", "b"], "contradicts --data.root"),
        (["train-progressive", "mnist", "--max-steps", "1"], "hrvqvae export mnist DIR"),
    ],
)  # fmt: skip
def test_wrong_commands(arguments: list[str], message: str) -> None:
    assert message in refused([*arguments])


def test_help_shows_every_command_in_one_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main(["train", "--help"])
    assert capsys.readouterr().out.startswith("usage: hrvqvae train ")
    with pytest.raises(SystemExit, match="^0$"):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != "-"]
    names = refused(["xyz"]).partition("there are ")[2].partition(" (see")[0]
    assert sorted(shown) == sorted(names.split(", "))
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"hrvqvae {hrvqvae.__version__}\n"


def test_arguments_stand_before_and_after_options(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("hrvqvae.cli.share._export", lambda arguments: called.append(arguments) or 0)
    for words in (["mnist", "small", "--compact"], ["mnist", "--compact", "small"], ["--compact", "mnist", "small"]):
        assert main(["export", *words]) == 0
    assert {(each.run, str(each.out), each.compact) for each in called} == {("mnist", "small", True)}
    assert "unknown argument 'more'" in refused(["export", "mnist", "--compact", "small", "more"])


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m hrvqvae presets hrvqvae/mnist | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "hrvqvae/mnist: MNIST, 28x28 greyscale\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[...] DefaultCPUAllocator: can't ...")],
)
def test_out_of_memory_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(_: object) -> int:
        raise error

    monkeypatch.setattr("hrvqvae.cli.run", runs)
    assert "out of memory: take a smaller batch (--training.batch_size" in refused(["train"])
    error = RuntimeError("a mistake of ours")
    with pytest.raises(RuntimeError, match="ours"):
        main(["train"])


def test_json_has_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"psnr": float("inf"), "levels": (1, float("nan"), 0.5)}])
    assert json.loads(capsys.readouterr().out) == [{"psnr": None, "levels": [1, None, 0.5]}]
