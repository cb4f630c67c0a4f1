"""The commands as a person uses them, and bad input: one clear line, exit code 2, no traceback."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import hrvqvae
from hrvqvae import commands, presets
from hrvqvae.bench import search as bench_search_module
from hrvqvae.bench.search import bench_search
from hrvqvae.checkpoint import RunFolder
from hrvqvae.cli import main
from hrvqvae.config import Config, to_dict
from hrvqvae.configfile import override
from hrvqvae.data import fetch, read_image
from hrvqvae.pictures.curves import search_growth
from tests.conftest import with_training, write_picture


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Path:
    """A run folder of a tiny model, trained by the command line from a configuration file."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(to_dict(with_training(_tiny(mnist_root), max_steps=60))))
    assert main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def _tiny(mnist_root: Path) -> Config:
    base = presets.get("hrvqvae/mnist").config
    arguments = {
        "data.root": str(mnist_root), "data.size": "12", "data.workers": "0", "model.hidden_units": "8",
        "model.residual_units": "8", "model.padding": "1", "model.quantizer.codewords": "3",
        "model.quantizer.init_vectors": "1000", "training.batch_size": "16", "training.device": "cpu",
        "training.checkpoint_every": "20", "training.evaluation_images": "40", "name": "tiny",
        "prior.network.hidden_units": "8", "prior.network.residual_units": "8", "prior.network.residual_blocks": "2",
        "prior.network.attention_layers": "[1]", "prior.training.batch_size": "16", "prior.training.device": "cpu",
        "prior.training.warmup_steps": "3", "prior.training.learning_rate": "0.01",
        "prior.training.polyak_decay": "0.5",
    }  # fmt: skip
    return override(base, arguments)


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in presets.PRESETS)
    assert main(["presets", "hrvqvae/ffhq"]) == 0
    shown = capsys.readouterr().out
    assert "170.67" in shown
    assert "printed: 875,000" in shown
    line = next(line for line in shown.splitlines() if line.startswith("model.quantizer.codewords"))
    assert line.split() == ["model.quantizer.codewords", "8", "Table", "6"]
    assert main(["presets", "hrvqvae/mnist", "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["values"]["model.quantizer.dim"] == {"value": 8, "source": "Table 6"}
    assert entry["derived"]["training_steps"] == entry["printed"]["training_steps"] == 468_281


def test_data_is_listed(mnist_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "--root", str(mnist_root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("mnist") and f"in {mnist_root / 'mnist'}" in line for line in lines)
    assert any(line.startswith("cifar10") and "not there" in line for line in lines)


def test_print_config_is_a_file_that_trains(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        main(["train", "hrvqvae/mnist", "--model.quantizer.codewords", "8", "--max-steps", "5", "--print_config"]) == 0
    )
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["quantizer"]["codewords"] == 8
    assert printed["training"]["max_steps"] == 5


def test_evaluation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {
        "dataset", "split", "images", "mse", "psnr", "ssim", "bits_per_image", "compression_ratio", "levels",
        "prior_bits_per_image", "path_bits_per_image", "neighbours_bits_per_image", "no_priors",
    }  # fmt: skip
    assert (report["dataset"], report["split"], report["images"]) == ("mnist", "test", 40)
    of_level = {"codewords", "used", "usage", "perplexity", "mse"}
    of_level |= {f"{name}_bits_per_code" for name in ("prior", "path", "neighbours")}
    assert [set(level) for level in report["levels"]] == [of_level] * 3
    assert report["prior_bits_per_image"] is None, "there are no priors"
    assert [level["codewords"] for level in report["levels"]] == [3, 9, 27]
    assert report["mse"] == report["levels"][-1]["mse"]
    assert main(["evaluate", str(run), "--split", "train", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "mnist train: 96 images" in out
    assert "no priors:" in out
    assert "train them: hrvqvae train-prior" in out


@pytest.mark.parametrize("levels", [None, 1])
def test_reconstruction(levels: int | None, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_picture(tmp_path / "a.png", 1, (12, 12), "L")
    write_picture(tmp_path / "b.jpg", 2, (33, 21), "L")
    out = tmp_path / "sheet.png"
    extra = [] if levels is None else ["--levels", str(levels)]
    assert (
        main(["reconstruct", str(run), str(tmp_path / "a.png"), str(tmp_path / "b.jpg"), "-o", str(out), *extra]) == 0
    )
    printed = capsys.readouterr().out
    model = hrvqvae.load(run)
    pixels = torch.from_numpy(read_image(tmp_path / "a.png", 1))[None]
    decoded = model.decode(model.encode(pixels), levels=levels, size=(12, 12))
    assert f"a.png: MSE {float((decoded - pixels / 255).square().mean().detach()):.3e}" in printed
    assert read_image(out, 3).shape[2] >= 33 * 2


def test_resuming_by_command(mnist_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(to_dict(_tiny(mnist_root))))
    command = ["train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]
    assert main([*command, "--max-steps", "10"]) == 0
    assert main([*command, "--max-steps", "14", "--resume"]) == 0
    assert "resuming" in capsys.readouterr().out
    assert main([*command, "--max-steps", "14", "--resume", "--model.quantizer.codewords", "5"]) == 2
    assert "--model.quantizer.codewords is 3 there, 5 here" in capsys.readouterr().err
    assert main(["train", "hrvqvae/mnist", "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "holds a run of tiny, not of hrvqvae/mnist" in capsys.readouterr().err


def test_a_signal_leaves_with_a_message(mnist_root: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(to_dict(_tiny(mnist_root))))
    command = [sys.executable, "-m", "hrvqvae.cli", "train", "tiny.yaml", "--out", "run", "--max-steps", "1000000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not RunFolder(tmp_path / "run").saved() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "continue with --resume" in out
    assert err == ""
    assert RunFolder(tmp_path / "run").model.is_file()


def test_the_demo(
    mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch, "check", lambda name, folder: None)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(to_dict(_tiny(mnist_root))))
    preset = presets.Preset(config=_tiny(mnist_root), sources={}, printed={}, about="")
    monkeypatch.setattr(presets, "get", lambda name: preset)
    for _ in range(2):  # the second time all is there already
        commands.demo(tmp_path / "demo", str(mnist_root), 5.0, 12)
        out = capsys.readouterr().out
        assert "40 test images: MSE" in out
        pictures = [Path(line.strip()) for line in out.splitlines() if line.endswith(".png")]
        assert len(pictures) == 6
        assert all(read_image(path, 3).shape[2] > 100 for path in pictures)


@pytest.mark.parametrize("system", ["hrvqvae", "vqvae", "vqvae2", "vqgan"])
def test_bench_train(system: str, capsys: pytest.CaptureFixture[str]) -> None:
    preset = ["--preset", f"{system}/mnist", *(["--model.adversarial_start", "0"] if system == "vqgan" else [])]
    fields = ["--model.hidden_units", "8", "--training.batch_size", "4", "--training.device", "cpu"]
    fields += preset
    assert main(["bench", "train", "--rounds", "2", "--json", *fields]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["plain", "hrvqvae"]
    assert all(row["images_per_second"] > 0 and row["batch"] == 4 for row in rows)
    assert main(["bench", "train", "--rounds", "1", "--profile", *fields]) == 0
    out = capsys.readouterr().out
    assert "ratio" in out
    assert "hrvqvae: the quantizer takes" in out


def test_bench_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = [(levels, 3) for levels in (1, 2)]
    rows = bench_search(grid, vectors=600, width=5)
    assert {row["method"] for row in rows} == {"tree", "flat", "cdist", "vector_quantize", "residual_vq"}
    for row in rows:
        assert {"vectors", "width", "levels", "codewords", "leaves", "seconds"} <= set(row)
        assert row["leaves"] == 3 ** row["levels"]
        assert row["seconds"] > 0
        assert row["distances"] == (3 * row["levels"] if row["method"] in ("tree", "residual_vq") else row["leaves"])
        assert row["agreement"] in (1.0, None)
    tree = next(row for row in rows if row["method"] == "tree" and row["levels"] == 2)
    assert tree["bytes"] == 4 * 5 * (600 + 3 + 9) + 8 * 600 * 2 + 4 * 5 * 600
    search_growth([{**row, "codewords": 8} for row in rows], tmp_path / "growth.png")
    assert read_image(tmp_path / "growth.png", 3).shape[0] == 3


def test_bench_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "start", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["cache"], row["method"]) for row in rows] == [
        (cache, method) for cache in ("cold", "warm") for method in ("tree", "flat")
    ]
    seconds = {(row["cache"], row["method"]): row["seconds"] for row in rows}
    assert seconds["cold", "tree"] > seconds["warm", "tree"] > 0, "what is compiled is kept"


def test_bench_search_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_search_module, "GRID", ((1, 8), (2, 8)))
    command = ["bench", "search", "--vectors", "300", "--no-libraries"]
    assert main([*command, "--json", "--plot", str(tmp_path / "growth.png")]) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)] == ["tree", "flat", "cdist"] * 2
    assert (tmp_path / "growth.png").is_file()
    assert main(command) == 0
    assert "tree is faster" in capsys.readouterr().out


# Bad input


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command refuses with."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("hrvqvae: ")
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "hrvqvae/mnst"], "did you mean hrvqvae/mnist"),
        (["presets", "hrvqvae/cifar"], "hrvqvae/cifar10"),
        (["train", "hrvqvae/mnist", "--data", "/nowhere"], "get it with: hrvqvae data get mnist"),
        (["train", "hrvqvae/photos", "--data", "/nowhere"], "/nowhere is not a folder"),
        (["train", "hrvqvae/mnist", "--model.quantizer.codewords", "1"], "at least 2"),
        (["train", "hrvqvae/mnist", "--max-steps", "many"], "max_steps"),
        (["train", "hrvqvae/mnist", "--max-step", "5"], "unknown argument '--max-step'"),
        (["train", "hrvqvae/mnist", "--seed", "-1"], "seed is -1"),
        (["train", "nowhere.yaml"], "nowhere.yaml can't be read"),
        (["evaluate", "nowhere"], "there is no such run folder"),
        (["evaluate", "nowhere", "--colour"], "unknown argument '--colour'"),
        (["data", "get", "mnits"], "unknown data set 'mnits'"),
        (["data", "get", "ffhq"], "can't be got by command"),
        (["nothing"], "invalid choice: 'nothing'"),
        ([], "COMMAND"),
        (["reconstruct", "run"], "required: IMAGE"),
    ],
)
def test_bad_commands(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(list(arguments), capsys)


def test_bad_data(mnist_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    train_photos: list[object] = ["train", "hrvqvae/photos", "--out", tmp_path / "run", "--data.workers", "0", "--data"]
    assert "has no PNG, JPEG or WebP image" in refused([*train_photos, empty], capsys)
    broken = tmp_path / "broken"
    for index in range(4):
        write_picture(broken / f"{index}.png", index, (300, 300))
        (broken / f"{index}.png").write_bytes((broken / f"{index}.png").read_bytes()[:100])
    line = refused([*train_photos, broken], capsys)
    assert "broken/" in line
    assert "--data.on_error skip" in line
    channels = ["train", "hrvqvae/mnist", "--data.channels", "3", "--data", mnist_root, "--out", tmp_path / "run2"]
    assert "mnist has 1 channels, data.channels is 3" in refused(channels, capsys)


def test_bad_runs_and_images(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_picture(tmp_path / "colour.png", 1)
    write_picture(tmp_path / "grey.png", 1, mode="L")
    (tmp_path / "text.png").write_text("no image")
    out = tmp_path / "sheet.png"

    def reconstruct(image: str, *extra: object, folder: Path = run, to: Path = out) -> str:
        return refused(["reconstruct", folder, tmp_path / image, "-o", to, *extra], capsys)

    assert "colour.png has 3 channels (colour); 1 is expected" in reconstruct("colour.png")
    assert "text.png is not a readable PNG, JPEG or WebP" in reconstruct("text.png")
    assert "no such image" in reconstruct("none.png")
    for levels in (0, 4):
        assert f"levels is {levels}; this model has levels 1 to 3" in reconstruct("grey.png", "--levels", levels)
    assert "is not a run folder" in reconstruct("grey.png", folder=tmp_path)
    assert "can't be written" in reconstruct("grey.png", to=tmp_path / "nowhere" / "sheet.png")
    assert not out.exists()
    copy = tmp_path / "copy"
    copy.mkdir()
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-50] ^= 8
    (copy / "model.safetensors").write_bytes(content)
    assert "is damaged: its content does not match its checksum" in reconstruct("grey.png", folder=copy)
    assert "split is 'dev'; there are train and test" in refused(["evaluate", run, "--split", "dev"], capsys)
    assert "device is 'tpu'" in refused(["evaluate", run, "--device", "tpu"], capsys)
    assert "get it with" in refused(["evaluate", run, "--data", tmp_path / "nowhere"], capsys)


def test_bad_output_folder(mnist_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", Path("/proc/run")):
        size = ["--data.size", "12", "--max-steps", 1]
        line = refused(["train", "hrvqvae/mnist", "--data", mnist_root, *size, "--out", out], capsys)
        assert "can't be written" in line


def test_a_full_disk_is_one_line(mnist_root: Path, tmp_path: Path) -> None:
    """Files may grow to 30 KB: the third kind of error that a disk gives, in the middle of a real write."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(to_dict(_tiny(mnist_root))))
    command = [sys.executable, "-m", "hrvqvae.cli", "train", "tiny.yaml", "--out", "run", "--max-steps", "20"]

    def limit(size: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, preexec_fn=limit(30_000))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "could not be saved (File too large)" in done.stderr
    assert not list((tmp_path / "run").rglob(".writing*"))
    again = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "")


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        [],
        ["train"],
        ["data", "get"],
        ["bench", "train"],
        ["evaluate"],
        ["reconstruct"],
        ["demo"],
        ["sample"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        assert ended.value.code == 0
        assert "usage: hrvqvae" in capsys.readouterr().out


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m hrvqvae.cli presets hrvqvae/mnist | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stderr == ""
