"""Configurations from files and options: what is right gives the same values, what is wrong is one
clear line.
"""

from typing import Optional

import pytest
import yaml

from benchmarks.common import fields
from hrvqvae.config import DataConfig, TrainingConfig, flatten, presets, to_dict
from hrvqvae.config.parsing import autoencoder_config, from_dict, from_file, override, stage_config
from hrvqvae.utils.errors import InputError
from tests.conftest import cells_of, input_error, parametrize

WHOLE = ("train_samples", "test_samples", "size", "channels", "workers", "memory_mb", "max_pixels")


def mnist():
    return presets.get("hrvqvae/mnist").config


def budget(stage):
    return stage.epochs, stage.max_steps, stage.max_minutes


@parametrize("name", [*presets.names()])
def test_a_preset_survives_a_file(name, tmp_path):
    config = presets.get(name).config
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    assert from_file(path) == config
    assert override(config, {}) == config


def test_options_replace_fields_and_only_those():
    changes = {"model.quantizer.codewords": "8", "data.labels": "false", "data.root": "5"}
    changed = override(mnist(), changes | {"training.learning_rate": "2e-3"})
    before = flatten(mnist())
    after = flatten(changed)
    assert {name: after[name] for name in after if after[name] != before[name]} == {
        "model.quantizer.codewords": 8,
        "data.labels": False,
        "data.root": "5",
        "training.learning_rate": 2e-3,
    }
    assert override(changed, {"data.root": "null"}).data.root is None


@parametrize("value", ["128,64", "[128, 64]", [128, 64]])
def test_a_value_a_level(value):
    given = {"prior": {"training": {"batch_size": value}}}
    config = (
        override(mnist(), {"prior.training.batch_size": value})
        if isinstance(value, str)
        else from_dict(given, "here")
    )
    assert config.prior.training.batch_size == (128, 64)


def test_another_network_of_priors_begins_with_its_defaults():
    changed = override(mnist(), {"prior.network.kind": "gpt", "prior.network.layers": "3"})
    network = to_dict(changed.prior.network)
    assert (network["kind"], network["layers"], network["heads"]) == ("gpt", 3, 4)
    assert changed.prior.training == mnist().prior.training
    assert override(changed, {"prior.network.kind": "gpt"}) == changed


@parametrize(
    "name, value, message",
    [
        *cells_of("""
            model.quantizer.codewords | 1 | codewords is '1'; it must be at least 2
            model.quantizer.codewords | 1000 | 4 GiB of leaves
            model.stride | 3 | stride is '3'; it must be a power of two
            model.kernel | 4 | kernel is '4'; it must be odd
            model.padding | -1 | padding is '-1'; it must be at least 0
            model.hidden_units | 1 | hidden_units is '1'; it must be at least 2
            training.max_minutes | inf | training.max_minutes is 'inf'
            training.learning_rate | fast | training.learning_rate is 'fast'; it must be a number
            training.precision | fp8 | training.precision is 'fp8'; it must be auto or fp32 or bf16
            data.labels | maybe | data.labels is 'maybe'; it must be true or false
            prior.training.batch_size | 16,0 | batch_size is '16,0'; it must be at least 1
            prior.held_out | 1 | prior.held_out is '1'; it must be between 0 and 1
            model.system | vqvae | --model.system can't change from hrvqvae
            model.strid | 8 | unknown field 'model.strid': did you mean stride?
            max_step | 8 | unknown field 'max_step': did you mean max_steps
            model.quantizer | 8 | model.quantizer is '8'; it must be a mapping of fields
            data_size | 8 | unknown field 'data_size': did you mean data.size?
            model.stride.b | 8 | unknown field 'model.stride.b'
            data.split | sorted | data.train_samples
        """),
        ("model.quantizer.codewords", "", "is ''; it must be a whole number"),
        (
            "prior.training.batch_size",
            "",
            "batch_size is ''; it must be one value, or one per level",
        ),
        ("prior.training.epochs", "0", "no budget: give prior.training.epochs, "),
        ("model.a.b", "8", "unknown field 'model.a.b': the fields are system, stride, "),
        *((f"data.{name}", "-1", f"data.{name} is '-1'; it must be ") for name in WHOLE),
        *(
            (f"data.{name}", "1", f"data.{name} is '1'; it must be ")
            for name in ("test_fraction", "validation")
        ),
        *(
            (name, f"{2**70}", f"{name} is '{2**70}'; it must be at least ")
            for name in ("data.size", "data.workers", "training.batch_size", "model.hidden_units")
        ),
        ("data.max_pixels", "1000000000", "data.max_pixels is '1000000000'; it must be 1 to "),
        (
            "training.seed",
            "20240101120000",
            "seed is '20240101120000'; it must be at least 0 and below",
        ),
        (
            "prior.network.kind",
            "pixelsnial",
            "unknown network of priors 'pixelsnial': did you mean pixelsnail",
        ),
    ],
)
def test_wrong_options(name, value, message):
    with pytest.raises(InputError) as refused:
        override(
            presets.get("hrvqvae/photos" if name == "data.split" else "hrvqvae/mnist").config,
            {name: value},
        )
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@parametrize(
    "content, message",
    [
        *cells_of("""
            [1, 2] | a configuration is a mapping with data, model and training
            name: [ | can't be read as YAML or JSON (while parsing
            model: {stride: 2, colour: red} | unknown field 'model.colour'
            training: | training is None; it must be a mapping of fields
            model: {system: [vqvae]} | unknown system "['vqvae']"
            data: {root: 5} | data.root is 5; it must be text or null
            1: 2 | unknown field '1'
            model: &model {inner: *model} | is nested too deeply
        """),
        ("name: " + "[" * 999, "can't be read as YAML or JSON (maximum recursion"),
        *(
            (f"training: {{epochs: {value}}}", "; it must be a whole number")
            for value in ("null", 2.5, "true")
        ),
        ("a: {" * 900 + "}" * 900, "can't be read as YAML"),
        (
            "prior: {network: {kind: rnn}}",
            "unknown network of priors 'rnn': there are pixelsnail, gpt",
        ),
    ],
)
def test_files_that_are_no_configuration(content, message, tmp_path):
    path = tmp_path / "config.yaml"
    with input_error("there is no such file"):
        from_file(path)
    path.write_text(content)
    with pytest.raises(InputError) as refused:
        from_file(path)
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_fields_take_their_defaults():
    config = from_dict({"name": "x"}, "here")
    assert (config.name, config.model.system, config.training.epochs) == ("x", "hrvqvae", 1)
    vqgan = from_dict({"model": {"system": "vqgan", "quantizer": {"dim": 8}}}, "here").model
    # the system's own default, not that of its quantizer
    assert to_dict(vqgan)["quantizer"]["codewords"] == 1024
    assert from_dict(
        {"training": {"max_steps": 3, "learning_rate": "1e-4"}}, "here"
    ).training == TrainingConfig(max_steps=3, learning_rate=1e-4)


def test_a_budget_is_replaced_by_one_that_is_given():
    without = from_dict({"training": {"batch_size": 8}}, "here")
    assert budget(without.training) == (1, 0, 0)
    for limits, expected in (
        ("max_steps=500", (0, 500, 0)),
        ("max_steps=0 max_minutes=3", (0, 0, 3)),
        ("max_steps=0 seed=0", (1, 0, 0)),
    ):
        assert budget(override(without, fields("training", limits)).training) == expected
    assert budget(override(mnist(), {"training.max_steps": "500"}).training) == (0, 500, 0)
    later = stage_config("progressive", mnist(), {"progressive.training.max_minutes": "5"})
    assert budget(later.progressive.training) == (0, 0, 5)
    assert budget(override(without, {"prior.training.max_steps": "9"}).prior.training) == (0, 9, 0)
    with input_error("no budget"):
        TrainingConfig()


def test_an_edited_file_is_refused_where_a_run_goes_on(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntraining: {max_steps: 3, device: cpu, precision: fp32, seed: 5}")
    stored = from_file(path)
    assert autoencoder_config(str(path), {}, stored) == stored
    began = autoencoder_config(str(path), {"training.learning_rate": "0.1"})
    assert autoencoder_config(str(path), {}, began) == began  # the option need not be given again
    path.write_text(
        path.read_text().replace("max_steps: 3", "max_steps: 4").replace("seed: 5", "seed: 7")
    )
    with input_error(r"--training\.seed is 5 there, 7 here"):
        autoencoder_config(str(path), {}, stored)
    assert autoencoder_config(str(path), {"training.seed": "5"}, stored) == stored
    with input_error(r"--training\.seed is 5 there, 0 here"):
        autoencoder_config(str(path), {"training.seed": "0"}, stored)
    options = {"training.seed": "5", "training.max_steps": "9", "data.on_error": "skip"}
    on = autoencoder_config(str(path), options, stored)
    assert (on.training.max_steps, on.data.on_error) == (9, "skip")


def test_a_prior_that_goes_on_keeps_its_held_out_images():
    with input_error(r"--prior\.training\.evaluation_images is 1000 there, 9 here"):
        stage_config("prior", mnist(), {"prior.training.evaluation_images": "9"}, mnist())
    with input_error("--model.stride"):
        stage_config("progressive", mnist(), {"model.stride": "4"})


class TheirData(DataConfig):
    """Types that a third party's configuration may have."""

    ratio: Optional[float] = None  # noqa: UP045
    names: tuple[str, ...] = ()


def test_types_of_a_third_party():
    data = override(
        mnist().replace(data=TheirData()), {"data.ratio": "0.5", "data.names": "a, b"}
    ).data
    assert (data.ratio, data.names) == (0.5, ("a", "b"))
    with input_error("data.ratio is 'wide'; it must be a number or null"):
        TheirData(ratio="wide")


@parametrize(
    "preset, root, name",
    cells_of("""
            treevq/cifar10 | python:/runs/cifar10 | mine
            treevq/cifar10 | /home/me/data | cifar10
            treevq/ffhq | /home/me/mix | mine
            treevq/ffhq | /data/FFHQ/images | ffhq
            treevq/photos | /home/me/mix | photos
        """),
)
def test_own_images_are_not_called_by_the_name_of_a_published_set(preset, root, name):
    config = autoencoder_config(preset, {"data.root": root})
    assert config.data.dataset == name
    assert autoencoder_config(preset, {"data.root": root}, config) == config  # when it is resumed
    published = autoencoder_config(preset, {"data.root": root, "data.dataset": "imagenet"})
    assert published.data.dataset == "imagenet"
