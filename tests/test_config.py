"""Configurations: checked, and the same after a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hrvqvae import presets
from hrvqvae.config import TrainingConfig, TreeQuantizerConfig, to_dict
from hrvqvae.configfile import field_names, from_dict, from_file, override, parse_overrides
from hrvqvae.errors import InputError


@pytest.mark.parametrize("name", [*presets.PRESETS])
def test_a_preset_survives_a_file(name: str, tmp_path: Path) -> None:
    config = presets.get(name).config
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    assert from_file(path) == config


def test_overrides() -> None:
    base = presets.get("hrvqvae/mnist").config
    given = parse_overrides(["--model.quantizer.codewords", "8", "--data.labels=false", "--data.on_error", "skip"])
    changed = override(base, given)
    assert changed.model.quantizer.codewords == 8
    assert changed.data.labels is False
    assert changed.data.on_error == "skip"
    assert override(changed, {"model.quantizer.codewords": "4", "data.labels": "true", "data.on_error": "stop"}) == base


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.quantizer.codwords", "8"], "did you mean --model.quantizer.codewords"),
        (["--model.quantizer.codewords"], "needs a value"),
        (["stray"], "unknown argument 'stray'"),
    ],
)
def test_wrong_overrides(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_overrides(arguments)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.quantizer.codewords", "1", "codewords is 1; it must be at least 2"),
        ("model.quantizer.codewords", "many", "codewords"),
        ("model.quantizer.levels", "0", "levels is 0"),
        ("model.stride", "3", "stride is 3; it must be a power of two"),
        ("model.kernel", "4", "kernel is 4; it must be odd"),
        ("model.kernel", "-1", "kernel is -1"),
        ("model.quantizer.codewords", "1000", "4 GiB of leaves"),
        ("training.seed", "20240101120000", "seed is 20240101120000"),
        ("data.max_pixels", "999999999", "max_pixels is 999999999"),
        ("data.channels", "2", "channels is 2; it must be 1"),
        ("data.on_error", "ignore", "on_error"),
        ("training.learning_rate", "-1", "learning_rate is -1"),
        ("training.precision", "fp8", "precision"),
    ],
)
def test_values_out_of_range(name: str, value: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(presets.get("hrvqvae/mnist").config, {name: value})


def test_a_run_needs_a_budget() -> None:
    with pytest.raises(InputError, match="no budget"):
        TrainingConfig()


def test_too_many_leaves() -> None:
    with pytest.raises(InputError, match=r"2\^30"):
        TreeQuantizerConfig(levels=12, codewords=8)


@pytest.mark.parametrize("content", ["[1, 2]", "name: [", "model: {stride: 2, colour: red}"])
def test_files_that_are_no_configuration(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=r"config\.yaml"):
        from_file(path)


def test_every_field_has_a_name_for_the_command_line() -> None:
    assert "model.quantizer.codewords" in field_names()
    assert len(set(field_names())) == len(field_names())


def test_missing_fields_take_their_defaults() -> None:
    assert from_dict({"name": "x"}, "here").name == "x"
