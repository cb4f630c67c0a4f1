"""Configurations from files and options: what is right gives the same values, what is wrong is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hrvqvae.config import Config, TrainingConfig, TreeQuantizerConfig, flatten, presets, to_dict
from hrvqvae.config.parsing import from_dict, from_file, override
from hrvqvae.config.schema import nested
from hrvqvae.utils.errors import InputError


def mnist() -> Config:
    return presets.get("hrvqvae/mnist").config


@pytest.mark.parametrize("name", [*presets.names()])
def test_a_preset_survives_a_file(name: str, tmp_path: Path) -> None:
    config = presets.get(name).config
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    assert from_file(path) == config
    assert override(config, {}) == config


def test_options_replace_fields_and_only_those() -> None:
    changed = override(mnist(), {"model.quantizer.codewords": "8", "data.labels": "false", "data.on_error": "skip"})
    before, after = dict(flatten(to_dict(mnist()))), dict(flatten(to_dict(changed)))
    assert {name: after[name] for name in after if after[name] != before[name]} == {
        "model.quantizer.codewords": 8, "data.labels": False, "data.on_error": "skip",
    }  # fmt: skip
    back = {"model.quantizer.codewords": "4", "data.labels": "true", "data.on_error": "stop"}
    assert override(changed, back) == mnist()


@pytest.mark.parametrize(
    ("text", "values"), [("16", (16,)), ("128,64,32", (128, 64, 32)), ("[16]", (16,)), ("[128, 64, 32]", (128, 64, 32))]
)
def test_a_value_a_level(text: str, values: tuple[int, ...]) -> None:
    assert override(mnist(), {"prior.training.batch_size": text}).prior.training.batch_size == values


@pytest.mark.parametrize(("written", "values"), [("16", (16,)), ("[16]", (16,)), ("[128, 64, 32]", (128, 64, 32))])
def test_a_value_a_level_in_a_file(written: str, values: tuple[int, ...]) -> None:
    tree = yaml.safe_load(f"prior: {{training: {{batch_size: {written}}}}}")
    assert from_dict(tree, "here").prior.training.batch_size == values


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0, 0.99), min_size=1, max_size=5))
def test_any_shares_a_level(shares: list[float]) -> None:
    text = ",".join(map(repr, shares))
    assert override(mnist(), {"prior.network.dropout": text}).prior.network.dropout == tuple(shares)  # type: ignore[attr-defined]


def test_another_network_of_priors_begins_with_its_defaults() -> None:
    changed = override(mnist(), {"prior.network.kind": "transformer", "prior.network.layers": "3"})
    network = to_dict(changed.prior.network)
    assert (network["kind"], network["layers"], network["heads"]) == ("transformer", 3, 8)
    assert changed.prior.training == mnist().prior.training
    assert override(changed, {"prior.network.kind": "transformer"}) == changed


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.quantizer.codewords", "1", "model.quantizer.codewords is 1; it must be at least 2"),
        ("model.quantizer.codewords", "many", "model.quantizer.codewords is 'many'; it must be a whole number"),
        ("model.quantizer.levels", "0", "levels is 0"),
        ("model.stride", "3", "stride is 3; it must be a power of two"),
        ("model.kernel", "4", "kernel is 4; it must be odd"),
        ("model.kernel", "-1", "kernel is -1"),
        ("model.quantizer.codewords", "1000", "4 GiB of leaves"),
        ("training.seed", "20240101120000", "seed is 20240101120000"),
        ("training.seed", "-1", "training.seed is -1; it must be at least 0"),
        ("training.max_minutes", "nan", "max_minutes is 'nan'; it must be a number"),
        ("training.max_minutes", ".nan", "max_minutes is nan"),
        ("training.max_minutes", ".inf", "training.max_minutes is inf"),
        ("model.quantizer.beta", ".inf", "model.quantizer.beta is inf"),
        ("data.memory_mb", "-1", "data.memory_mb is -1; it must be at least 0"),
        ("data.max_pixels", "999999999", "max_pixels is 999999999"),
        ("data.channels", "2", "channels is 2; it must be 1"),
        ("data.labels", "maybe", "data.labels is 'maybe'; it must be true or false"),
        ("data.on_error", "ignore", "data.on_error is 'ignore'; it must be stop or skip"),
        ("training.learning_rate", "-1", "learning_rate is -1"),
        ("training.learning_rate", "fast", "training.learning_rate is 'fast'; it must be a number"),
        ("training.precision", "fp8", "training.precision is 'fp8'; it must be auto or fp32 or bf16"),
        ("prior.training.batch_size", "", "prior.training.batch_size is (); it must be one number, or one a level"),
        ("prior.training.batch_size", "[16", "prior.training.batch_size"),
        ("prior.training.batch_size", "16,0", "prior.training.batch_size is 0; it must be at least 1"),
        ("prior.training.batch_size", "few", "is 'few'; it must be a whole number, or one for each level"),
        ("prior.training.seed", "-1", "prior.training.seed is -1; it must be at least 0"),
        ("prior.training.epochs", "0", "no budget: give prior.training.epochs, "),
        ("prior.held_out", "1", "prior.held_out is 1.0; it must be between 0 and 1"),
        ("prior.network.kind", "pixelsnial", "unknown network of priors 'pixelsnial': did you mean pixelsnail"),
        ("model.system", "vqvae", "--model.system can't change from hrvqvae: give a preset of that system"),
        (
            "model.quantizer.codwords",
            "8",
            "'--model.quantizer.codwords' of hrvqvae/mnist; did you mean",
        ),
        ("model.grids", "3", "unknown argument '--model.grids' of hrvqvae/mnist"),
        ("prior.batch_size", "32", "unknown argument '--prior.batch_size' of hrvqvae/mnist"),
        ("model.quantizer", "8", "unknown argument '--model.quantizer' of hrvqvae/mnist"),
    ],
)
def test_wrong_options(name: str, value: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        override(mnist(), {name: value})
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_near_name_is_the_whole_option() -> None:
    with pytest.raises(InputError, match=r"; did you mean --model\.quantizer\.codewords( or --[a-z._]+)*\?$"):
        override(mnist(), {"model.quantizer.codwords": "8"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "a configuration is a mapping with data, model and training"),
        ("", "a configuration is a mapping with data, model and training"),
        ("name: [", "can't be read as YAML or JSON (ParserError)"),
        ("model: {stride: 2, colour: red}", "unknown field 'model.colour'"),
        ("model: {strid: 2}", "unknown field 'model.strid'; did you mean model.stride"),
        ("model: {quantizer: 8}", "model.quantizer is 8; it must be a mapping"),
        ("model: 3", "model is 3; it must be a mapping"),
        ("training:", "training is None; it must be a mapping"),
        ("prior: 3", "prior is 3; it must be a mapping"),
        ("model: {system: gan}", "model.system is 'gan'; there are hrvqvae, treevq, vqvae"),
        ("model: {system: [vqvae]}", "model.system is ['vqvae']; there are hrvqvae, treevq, vqvae"),
        ("prior: {network: {kind: rnn}}", "prior.network.kind is 'rnn'; there are pixelsnail, transformer"),
        ("prior: {network: {kind: transformer, residual_blocks: 3}}", "unknown field 'prior.network.residual_blocks'"),
        ("training: {epochs: null}", "training.epochs is null; it must be a whole number"),
        ("training: {epochs: 2.5}", "training.epochs is 2.5; it must be a whole number"),
        ("training: {batch_size: 8}", "no budget"),
        ("data: {root: 5}", "data.root is 5; it must be text or null"),
        ("model: {quantizer: {codewords: 1}}", "model.quantizer.codewords is 1; it must be at least 2"),
        ("1: 2", "unknown field '1'"),
    ],
)
def test_files_that_are_no_configuration(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as refused:
        from_file(path)
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(InputError, match="can't be read"):
            from_file(path)


def test_missing_fields_take_their_defaults() -> None:
    config = from_dict({"name": "x"}, "here")
    assert (config.name, config.model.system, config.training.epochs) == ("x", "hrvqvae", 1)
    assert from_dict({"training": {"max_steps": 3, "learning_rate": "1e-4"}}, "here").training == TrainingConfig(
        max_steps=3, learning_rate=1e-4
    )


@given(st.dictionaries(st.lists(st.sampled_from("abc"), min_size=3, max_size=3).map(".".join), st.integers()))
def test_nested_and_flatten_are_inverse(values: dict[str, int]) -> None:
    assert dict(flatten(nested(values))) == values


def test_a_run_needs_a_budget() -> None:
    with pytest.raises(InputError, match="no budget"):
        TrainingConfig()


def test_too_many_leaves() -> None:
    with pytest.raises(InputError, match=r"2\^30"):
        TreeQuantizerConfig(levels=12, codewords=8)
