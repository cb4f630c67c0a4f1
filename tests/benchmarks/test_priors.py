"""Measurements of a prior's training: what is compared are forms of one network, which compute the same."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from benchmarks import depth
from benchmarks.prior import FORMS, MaskedConv2d, _replaced
from hrvqvae.cli import main
from hrvqvae.config.parsing import override
from hrvqvae.config.presets import get
from hrvqvae.priors.base import Level
from tests.cli.helpers import refused
from tests.priors.test_pixelsnail import inputs, network, random_prior


@pytest.mark.parametrize("name", FORMS)
def test_every_form_computes_the_same(name: str) -> None:
    level = Level(grid=(7, 6), symbols=3, coarser=(3,), classes=4)
    prior = random_prior(network(), level)
    codes, coarser, label = inputs(level, 2)
    form = copy.deepcopy(prior)
    _replaced(form, FORMS[name])
    assert FORMS[name].masked == any(isinstance(one, MaskedConv2d) for one in form.modules())
    expected = prior.logits(codes, coarser, label)
    torch.testing.assert_close(form.logits(codes, coarser, label), expected, rtol=1e-4, atol=1e-4)


def test_bench_prior(capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["--prior.network.hidden_units", "8", "--prior.network.residual_blocks", "4", "--level", "2"]
    command = ["bench", "prior", "--rounds", "1", "--prior.training.batch_size", "2", *fields]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == list(FORMS)
    assert {(row["level"], row["batch"]) for row in rows} == {(2, 2)}
    assert all(row["images_per_second"] > 0 for row in rows)
    assert main(command) == 0
    assert "cropped kernels" in capsys.readouterr().out


def test_bench_prior_is_of_a_pixelsnail(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["bench", "prior", "--preset", "vqgan/mnist"], capsys)
    assert "the parts of a PixelSNAIL; vqgan/mnist has a transformer" in line


def test_bench_depth(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"data.size": "8", "prior.network.residual_blocks": "4", "prior.training.batch_size": "2"}
    rows = depth.bench_depth(override(get("hrvqvae/cifar10").config, small), 1, batches=(2,))
    assert [(row["measured"], "ratio" in row) for row in rows] == [
        ("training", False), ("training", True), ("sampling", False), ("sampling", True)
    ]  # fmt: skip
    for several, single in (rows[:2], rows[2:]):
        assert single["ratio"] == pytest.approx(several["seconds_per_image"] / single["seconds_per_image"])
        assert several["parameters"] > single["parameters"]
    monkeypatch.setattr(depth, "bench_depth", lambda config, rounds: rows)
    assert main(["bench", "depth"]) == 0
    assert "one prior for all levels" in capsys.readouterr().out


def test_bench_depth_is_of_levels_of_one_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert "levels of one grid" in refused(["bench", "depth", "--preset", "vqvae2/mnist"], capsys)
