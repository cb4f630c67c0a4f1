"""Lists of presets, runs and data sets, as text and JSON."""

import json

from hrvqvae.config import presets
from hrvqvae.config.registry import DATASETS
from hrvqvae.models import published
from tests.conftest import do


def test_presets_are_listed():
    listed = [tuple(line.split(maxsplit=1)) for line in do("presets").splitlines()]
    assert listed == [(name, presets.get(name).about) for name in presets.names()]
    assert [entry["name"] for entry in json.loads(do("presets --json"))] == [*presets.names()]


def test_a_preset_is_shown():
    rows = [line.split() for line in do("presets hrvqvae/ffhq").splitlines()]
    assert ["model.quantizer.codewords", "8", "Table", "6"] in rows
    assert ["compression_ratio", "170.67", "computed"] in rows
    entry = json.loads(do("presets hrvqvae/mnist --json"))
    assert entry["values"]["prior.training.batch_size"] == {"value": [512], "source": "Table 8"}
    assert entry["derived"]["training_steps"] == 468_281


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
