"""Measurements by command: what they measure, and in which form they print it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import search as bench_search_module
from benchmarks.search import bench_search
from hrvqvae.cli import main
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.data.images import read_image
from hrvqvae.plots.curves import search_growth
from tests.cli.helpers import refused
from tests.trained_run import tiny_run_with_priors


@pytest.mark.parametrize("system", [system.name for system in SYSTEMS.entries() if system.available])
def test_bench_train(system: str, capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["--model.hidden_units", "8", "--training.batch_size", "4", "--training.device", "cpu"]
    fields += ["--model.adversarial_start", "0"] if system == "vqgan" else []
    command = ["bench", "train", "--preset", f"{system}/mnist", *fields, "--rounds"]
    assert main([*command, "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["plain", "hrvqvae"]
    assert all(row["images_per_second"] > 0 and row["batch"] == 4 for row in rows)
    assert main([*command, "1", "--profile"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["method", "preset", "batch", "images/s", "ratio"]
    assert "hrvqvae: the quantizer takes" in out


def test_bench_search(tmp_path: Path) -> None:
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


def test_bench_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "start", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["cache"], row["method"]) for row in rows] == [
        (cache, method) for cache in ("cold", "warm") for method in ("tree", "flat")
    ]
    assert all(row["seconds"] > 0 for row in rows)


def test_bench_files(picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "files", "emoji32", "--data", str(picture_folder), "--data.size", "16"]
    command += ["--formats", "webp", "jpeg", "--images", "2", "--bytes", "60", "400"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["shape"], found["ahead"]) == (2, [3, 16, 16], {})
    assert [curve["title"] for curve in found["curves"]] == ["WebP", "JPEG", "ThumbHash", "PCA, ideal codes"]
    assert [one["budget"] for one in found["curves"][0]["budgets"]] == [60, 400]
    assert found["curves"][1]["budgets"][0] == {"budget": 60, "fixed": None, "fitted": None}
    assert found["curves"][3]["model_bytes"] > 0
    assert main([*command, "--no-linear", "-o", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "emoji32: 2 test images, 3 x 16 x 16"
    assert any(line.split()[:4] == ["file", "model", "smallest", "60"] for line in lines)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["curves.png", "sheet.png"]


def test_bench_files_of_the_shipped_model(mnist_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "files", "mnist", "--data", str(mnist_root), "--data.size", "12", "--images", "3"]
    assert main([*command, "--formats", "jpeg-scan", "--no-linear"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("hrvqvae mnist: dB above (below: -) the others at the same mean bytes")
    assert lines[start + 1].split()[:4] == ["setting", "bytes", "PSNR", "SSIM"]
    rows = [line.split() for line in lines[start + 2 :]]
    assert {row[0] for row in rows} <= {"level", "levels"}
    sizes = [float(row[row.index("weight") + 2]) for row in rows if "weight" in row]
    assert len(sizes) > 1
    assert sizes == sorted(sizes)


def test_bench_files_refuses(picture_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command: list[object] = ["bench", "files", "emoji32", "--data", picture_folder]
    assert "there is no format gif" in refused([*command, "--formats", "gif"], capsys)
    assert "--bytes is 0" in refused([*command, "--bytes", "0"], capsys)
    assert "--images is 0" in refused([*command, "--images", "0"], capsys)
    assert "there is no such run folder" in refused([*command, "--models", "nowhere"], capsys)


def test_bench_codec(mnist_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tiny_run_with_priors(mnist_root))
    capsys.readouterr()
    command = ["bench", "codec", run, "--images", "64", "--archived", "200", "--damaged", "300"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 40, "all test images that there are"
    assert found["bytes"] == pytest.approx(sum(found["parts"]))
    assert found["raw"] == pytest.approx(3 * 49 * 1.58496 / 8, rel=1e-4)
    assert found["archive"]["lost in ten kills"] == 0
    assert 0 < found["archive"]["overhead an image"] < 3
    damage = found["damage"]
    assert sum(damage[name] for name in ("refused", "told", "not noticed", "not damaged")) == 300
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"{found['bytes']:.1f} bytes an image (header 5.0, level 1" in out
    assert "network, to codes" in out
