"""Lists of presets, runs and data sets, as text and JSON; the report on this installation."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from hrvqvae.config import presets
from hrvqvae.config.registry import DATASETS
from hrvqvae.models import published
from hrvqvae.utils import extras
from tests.conftest import do, done
from tests.kills import in_another_process
from tests.trained_run import undrawn


def test_presets_are_listed() -> None:
    listed = [tuple(line.split(maxsplit=1)) for line in do("presets").splitlines()]
    assert listed == [(name, presets.get(name).about) for name in presets.names()]
    assert [entry["name"] for entry in json.loads(do("presets", "--json"))] == [*presets.names()]


def test_a_preset_is_shown() -> None:
    rows = {
        line.split()[0]: line.split()[1:]
        for line in do("presets", "hrvqvae/ffhq").splitlines()
        if line
    }
    assert rows["hrvqvae/ffhq:"][:1] == ["FFHQ,"]
    assert rows["model.quantizer.codewords"] == ["8", "Table", "6"]
    assert rows["model.quantizer.decay"] == ["0.95", "ours"]
    assert rows["compression_ratio"] == ["170.67", "computed;", "printed:", "171"]
    assert rows["training_steps"] == ["750,000", "computed;", "printed:", "875,000"]
    assert rows["Note:"]
    entry = json.loads(do("presets", "hrvqvae/mnist", "--json"))
    assert entry["values"]["prior.training.batch_size"] == {"value": [512], "source": "Table 8"}
    assert entry["derived"]["training_steps"] == entry["printed"]["training_steps"] == 468_281


def test_runs_are_listed_with_what_is_stale(run: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("plain", "trained-on"):
        shutil.copytree(run, runs / name)
    with undrawn():
        do("train", runs / "trained-on", "--resume", "--max-steps", 61)
    (runs / "bad" / "checkpoints").mkdir(parents=True)
    (runs / "bad" / "config.yaml").write_text("model: [")
    shutil.copytree(run, runs / "other")
    (runs / "other" / "metrics.jsonl").write_text(
        '{"kind": "evaluation", "step": 1, "mse": "low"}\n'
    )
    with in_another_process(runs / "trained-on"):
        bad, other, plain, trained_on = json.loads(do("runs", runs, "--json"))
    assert "could not convert" in other["fault"]
    assert "can't be read as YAML" in bad["fault"]
    assert (plain["run"], plain["system"], plain["step"]) == (str(runs / "plain"), "hrvqvae", 60)
    assert (plain["in_use"], trained_on["in_use"]) == (False, True)
    assert (plain["stale"], trained_on["stale"]) == (
        [],
        [f"priors/level-{level}" for level in (1, 2, 3)],
    )
    measured = json.loads(do("evaluate", runs / "trained-on", "--json", "--device", "cpu"))
    assert measured["mse"] == pytest.approx(trained_on["mse"], rel=1e-3), (
        "although its priors are stale"
    )
    assert measured["no_priors"].startswith(
        "priors/level-1, priors/level-2, priors/level-3: made for another state"
    )
    assert plain["mse"] == pytest.approx(
        json.loads(do("evaluate", run, "--json", "--device", "cpu"))["mse"], rel=1e-3
    )
    assert (plain["preset"], plain["priors"]) == ("tiny", ["level 1", "level 2", "level 3"])


def test_data_is_listed(mnist_root: Path) -> None:
    first, *lines = do("data", "list", "--root", mnist_root).splitlines()
    assert first == f"root folder: {mnist_root}"
    assert [line.split()[0] for line in lines] == [*DATASETS, "any", *published.NETWORKS]
    rows = {line.split()[0]: line for line in lines}
    assert f" in {mnist_root / 'mnist'} " in rows["mnist"]
    for absent in ("fashion-mnist", "cifar10", "ffhq"):
        assert " not there " in rows[absent]
    assert "hrvqvae data get cifar10" in rows["cifar10"]
    assert "hrvqvae data get" not in rows["ffhq"]
    rows = {
        line.split()[0]: line
        for line in do("data", "list", "--root", mnist_root / "mnist").splitlines()
    }
    assert f" in {mnist_root / 'mnist'} " in rows["mnist"]
    assert " not there " in rows["fashion-mnist"], "whose files have the same names"


def examined(code: int = 0) -> tuple[dict[str, Any], str, list[str]]:
    text = done("doctor")
    plain = done("doctor", "--json")
    assert text[0] == plain[0] == code
    return json.loads(plain[1]), text[1], text[2].splitlines()


@contextmanager
def requirements(*lines: str) -> Iterator[None]:
    """Give the package other requirements, as pip keeps them."""
    extras.packages.cache_clear()
    with patch.object(metadata, "requires", return_value=lines):
        yield
    extras.packages.cache_clear()


def test_this_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    report, printed, problems = examined()
    assert report["problems"] == problems == []
    assert report["versions"]["torch"] == metadata.version("torch")
    assert report["precision"] in ("bf16", "fp32")
    assert report["folders"]["data sets (HRVQVAE_DATA)"] == str(tmp_path / "data")
    assert report["folders"]["published networks (TORCH_HOME)"] == str(
        tmp_path / "hub" / "checkpoints"
    )
    assert report["extras"]["figures"] == []
    assert str(tmp_path / "data") in printed
    assert all(f"extra {extra} " in printed for extra in report["extras"])


def test_an_extra_that_is_not_whole() -> None:
    lines = ('no-such-package>=1; extra == "one"', 'numpy; extra == "one"', 'numpy; extra == "two"')
    with requirements("torch>=2", *lines):
        report, printed, _ = examined()
    assert report["extras"] == {"one": ["no-such-package"], "two": []}
    assert "pip install 'hrvqvae[one]' for no-such-package\n" in printed


def test_what_keeps_it_from_working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with requirements("no-such-package>=1"):
        report, _, problems = examined(code=1)
    missing, broken, folder = report["problems"]
    assert missing == "no-such-package is missing: pip install no-such-package"
    assert broken.startswith("torch can't be used: ")
    assert folder.endswith(f"can't be written: {tmp_path / 'file' / 'data'}")
    assert "device" not in report
    assert problems == [f"hrvqvae: {problem}" for problem in report["problems"]]
