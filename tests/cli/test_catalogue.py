"""What there is: presets and data sets, for people and for programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hrvqvae.config import presets
from hrvqvae.config.registry import DATASETS
from hrvqvae.models import published
from hrvqvae.utils.files import locked
from tests.cli.helpers import do, refused

GOLDEN = Path(__file__).parents[1] / "golden" / "runs"


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    do("presets")
    listed = [tuple(line.split(maxsplit=1)) for line in capsys.readouterr().out.splitlines()]
    assert listed == [(name, presets.get(name).about) for name in presets.names()]
    do("presets", "--json")
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == [*presets.names()]


def test_a_preset_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    do("presets", "hrvqvae/ffhq")
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert rows["hrvqvae/ffhq:"][:1] == ["FFHQ,"]
    assert rows["model.quantizer.codewords"] == ["8", "Table", "6"]
    assert rows["model.quantizer.decay"] == ["0.95", "ours"]
    assert rows["compression_ratio"] == ["170.67", "computed;", "printed:", "171"]
    assert rows["training_steps"] == ["750,000", "computed;", "printed:", "875,000"]
    assert rows["Note:"]
    do("presets", "hrvqvae/mnist", "--json")
    entry = json.loads(capsys.readouterr().out)
    assert entry["values"]["prior.training.batch_size"] == {"value": [512], "source": "Table 8"}
    assert entry["derived"]["training_steps"] == entry["printed"]["training_steps"] == 468_281


def test_runs_are_listed_with_what_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(GOLDEN, runs / "more")
    shutil.copytree(GOLDEN / "vqvae", runs / "other")
    shutil.copy(runs / "other" / "model.safetensors", runs / "more" / "treevq")
    (runs / "bad" / "checkpoints").mkdir(parents=True)
    (runs / "bad" / "config.yaml").write_text("model: [")
    with locked(runs / "other"):
        script = "import sys; from hrvqvae.cli import main; main(sys.argv[1:])"
        done = subprocess.run([sys.executable, "-c", script, "runs", runs, "--json"], capture_output=True, check=True)
    bad, tree, plain, other = json.loads(done.stdout)
    assert "damaged" in bad["fault"]
    assert (tree["run"], tree["system"], tree["step"]) == (str(runs / "more" / "treevq"), "treevq", 8)
    assert tree["stale"] == ["priors/levels-1-3", "prefixes", "tables.hrvt"]
    assert plain == other | {"run": str(runs / "more" / "vqvae"), "in_use": False}
    assert other["in_use"]
    assert other["mse"] == pytest.approx(0.288086, abs=1e-6)
    assert (other["preset"], other["priors"]) == ("vqvae/mnist", [])
    do("runs", runs)
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert "there is no such folder" in refused(["runs", runs / "gone"], capsys)


def test_data_is_listed(mnist_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    do("data", "list", "--root", mnist_root)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"root folder: {mnist_root}"
    assert [line.split()[0] for line in lines] == [*DATASETS, "any", *published.NETWORKS]
    rows = {line.split()[0]: line for line in lines}
    assert f" in {mnist_root / 'mnist'} " in rows["mnist"]
    for absent in ("fashion-mnist", "cifar10", "ffhq"):
        assert " not there " in rows[absent]
    assert "hrvqvae data get cifar10" in rows["cifar10"]
    assert "hrvqvae data get" not in rows["ffhq"]
