"""Lists of presets, runs and data sets, as text and JSON; the report on this installation."""

import json
import sys
from contextlib import contextmanager
from importlib import metadata
from unittest.mock import patch

from hrvqvae.config import presets
from hrvqvae.config.registry import DATASETS
from hrvqvae.models import published
from hrvqvae.utils import extras
from tests.conftest import do, done


def test_presets_are_listed():
    listed = [tuple(line.split(maxsplit=1)) for line in do("presets").splitlines()]
    assert listed == [(name, presets.get(name).about) for name in presets.names()]
    assert [entry["name"] for entry in json.loads(do("presets --json"))] == [*presets.names()]


def test_a_preset_is_shown():
    rows = [line.split() for line in do("presets hrvqvae/ffhq").splitlines()]
    assert ["model.quantizer.codewords", "8", "Table", "6"] in rows
    assert ["compression_ratio", "170.67", "computed;", "printed:", "171"] in rows
    entry = json.loads(do("presets hrvqvae/mnist --json"))
    assert entry["values"]["prior.training.batch_size"] == {"value": [512], "source": "Table 8"}
    assert entry["derived"]["training_steps"] == entry["printed"]["training_steps"] == 468_281


def test_data_is_listed(mnist_root, monkeypatch):
    """Folders whose files have the same names are not taken for one another."""

    def listed(root):
        monkeypatch.setenv("HRVQVAE_DATA", str(root))
        first, *lines = do("data list").splitlines()
        assert first == f"root folder: {root}"
        assert [line.split()[0] for line in lines] == [*DATASETS, "any", *published.NETWORKS]
        return dict(zip(DATASETS, lines, strict=False))

    rows = listed(mnist_root)
    assert f" in {mnist_root}/mnist " in rows["mnist"]
    for absent in ("fashion-mnist", "cifar10", "ffhq"):
        assert " not there " in rows[absent]
    assert "hrvqvae data get cifar10" in rows["cifar10"]
    assert "hrvqvae data get" not in rows["ffhq"]
    rows = listed(mnist_root / "mnist")
    assert f" in {mnist_root}/mnist " in rows["mnist"]
    assert " not there " in rows["fashion-mnist"]


def examined(code=0):
    text_code, printed, problems = done("doctor")
    json_code, report, _ = done("doctor --json")
    assert text_code == json_code == code
    return json.loads(report), printed, problems.splitlines()


@contextmanager
def requirements(*lines):
    """Give the package other requirements, as pip keeps them."""
    extras.packages.cache_clear()
    with patch.object(metadata, "requires", return_value=lines):
        yield
    extras.packages.cache_clear()


def test_this_installation(tmp_path, monkeypatch):
    data = str(tmp_path / "data")
    monkeypatch.setenv("HRVQVAE_DATA", data)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    report, printed, problems = examined()
    assert report["problems"] == problems == []
    assert report["versions"]["torch"] == metadata.version("torch")
    assert report["precision"] in ("bf16", "fp32")
    folders = report["folders"]
    assert folders["data sets (HRVQVAE_DATA)"] == data
    assert folders["published networks (TORCH_HOME)"] == f"{tmp_path}/hub/checkpoints"
    assert report["extras"]["figures"] == []
    assert data in printed
    assert all(f"extra {extra} " in printed for extra in report["extras"])


def test_an_extra_that_is_not_whole():
    lines = ('no-such-package>=1; extra == "one"', 'numpy; extra == "one"', 'numpy; extra == "two"')
    with requirements("torch>=2", *lines):
        report, printed, _ = examined()
    assert report["extras"] == {"one": ["no-such-package"], "two": []}
    assert "pip install 'hrvqvae[one]' for no-such-package\n" in printed


def test_what_keeps_it_from_working(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("HRVQVAE_DATA", str(file / "data"))
    monkeypatch.setitem(sys.modules, "torch", None)
    for module in ("data.loading", "data.batches"):  # what imports torch is imported anew
        monkeypatch.delitem(sys.modules, f"hrvqvae.{module}", raising=False)
    with requirements("no-such-package>=1"):
        report, _, problems = examined(code=1)
    missing, broken, folder = report["problems"]
    assert missing == "no-such-package is missing: pip install no-such-package"
    assert broken.startswith("torch can't be used: ")
    assert folder.endswith(f"can't be written: {file}/data")
    assert "device" not in report
    assert problems == [f"hrvqvae: {problem}" for problem in report["problems"]]
