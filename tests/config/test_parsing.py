"""Configurations from files and options: what is right gives the same values, what is wrong is one
clear line.
"""

from pathlib import Path

import pytest

from benchmarks.common import fields
from hrvqvae.config import TrainingConfig, flatten, presets
from hrvqvae.config.parsing import (
    absolute_paths,
    autoencoder_config,
    from_dict,
    from_file,
    override,
    stage_config,
)
from hrvqvae.utils.errors import InputError
from tests.conftest import cells_of, input_error, parametrize, write_file

HUGE = 2**70


def mnist():
    return presets.get("hrvqvae/mnist").config


@parametrize("name", presets.names())
def test_a_preset_survives_a_file(name, tmp_path):
    config = presets.get(name).config
    assert from_file(write_file(config, tmp_path / "config.yaml")) == config
    assert override(config, {}) == config


def test_options_replace_fields_and_only_those():
    changes = fields("data", "labels=false root=5") | fields("training", "learning_rate=2e-3")
    changed = override(mnist(), changes)
    before = flatten(mnist())
    after = flatten(changed)
    assert {name: after[name] for name in after if after[name] != before[name]} == {
        "data.labels": False,
        "data.root": "5",
        "training.learning_rate": 2e-3,
    }
    assert override(changed, {"data.root": "null"}).data.root is None


@parametrize("value", ["128,64", "[128, 64]", [128, 64]])
def test_a_value_a_level(value):
    config = from_dict({"prior": {"training": {"batch_size": value}}}, "here")
    if isinstance(value, str):
        config = override(mnist(), {"prior.training.batch_size": value})
    assert config.prior.training.batch_size == (128, 64)


def test_another_network_of_priors_begins_with_its_defaults():
    changed = override(mnist(), fields("prior.network", "kind=gpt layers=3"))
    network = changed.prior.network
    assert network.kind == "gpt"
    assert network.layers == 3
    assert network.heads == 4
    assert changed.prior.training == mnist().prior.training
    assert override(changed, {"prior.network.kind": "gpt"}) == changed


@parametrize(
    "name, value, message",
    cells_of(f"""
        model.quantizer.codewords | 1 | model.quantizer.codewords is '1'
        model.quantizer.codewords | 1000 | 4 GiB of leaves
        model.stride | 3 | model.stride is '3'
        model.kernel | 4 | model.kernel is '4'
        model.padding | -1 | model.padding is '-1'
        model.hidden_units | {HUGE} | model.hidden_units is '{HUGE}'
        training.max_minutes | inf | training.max_minutes is 'inf'
        training.learning_rate | fast | training.learning_rate is 'fast'
        training.learning_rate | nan | training.learning_rate is 'nan'
        training.learning_rate | 0 | training.learning_rate is '0'
        training.precision | fp8 | training.precision is 'fp8'; it must be auto or fp32 or bf16
        training.seed | 20240101120000 | training.seed is '20240101120000'
        data.labels | maybe | data.labels is 'maybe'
        data.channels | 2 | data.channels is '2'
        data.test_fraction | 1 | data.test_fraction is '1'
        data.size | {HUGE} | data.size is {HUGE}
        data.size | -1 | data.size is -1
        prior.training.batch_size | 16,0 | prior.training.batch_size is '16,0'
        prior.training.epochs | 0 | no budget: give prior.training.epochs,
        prior.network.kind | pixelsnial | 'pixelsnial': there are pixelsnail
        model.system | vqvae | --model.system can't change from hrvqvae
        model.strid | 8 | unknown field 'model.strid': did you mean model.stride
        max_step | 8 | did you mean training.max_steps
        data_size | 8 | did you mean data.size
        model.quantizer | 8 | model.quantizer is '8'
        model.stride.b | 8 | unknown field 'model.stride.b'
        model.a.b | 8 | unknown field 'model.a.b'
        data.split | sorted | data.train_samples
    """),
)
def test_wrong_options(name, value, message):
    preset = "hrvqvae/photos" if name == "data.split" else "hrvqvae/mnist"
    with pytest.raises(InputError) as refused:
        override(presets.get(preset).config, {name: value})
    assert message in str(refused.value)


@parametrize(
    "content, message",
    cells_of("""
        [1, 2] | a configuration is a mapping with data, model and training
        name: &x {y: *x} | maximum recursion depth
        name: [ | can't be read as YAML or JSON: while parsing
        model: {stride: 2, colour: red} | unknown field 'model.colour'
        training: | training is None; it must be a mapping of fields
        training: {epochs: 2.5} | ; it must be a whole number
        training: {epochs: true} | ; it must be a whole number
        training: {epochs: [1]} | ; it must be a whole number
        model: {system: [vqvae]} | unknown system "['vqvae']"
        data: {root: 5} | data.root is 5
        1: 2 | unknown field '1'
    """),
)
def test_files_that_are_no_configuration(content, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as refused:
        from_file(path)
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)


def test_missing_fields_take_their_defaults():
    config = from_dict({"name": "x"}, "here")
    assert config.model.system == "hrvqvae"
    assert config.training.epochs == 1
    vqgan = from_dict({"model": {"system": "vqgan", "quantizer": {"dim": 8}}}, "here").model
    # the system's own default, not that of its quantizer
    assert vqgan.quantizer.codewords == 1024
    given = {"max_steps": 3, "learning_rate": "1e-4"}
    training = TrainingConfig(max_steps=3, learning_rate=1e-4)
    assert from_dict({"training": given}, "here").training == training


def test_a_budget_is_replaced_by_one_that_is_given():
    bases = {"none": from_dict({"training": {"batch_size": 8}}, "here"), "mnist": mnist()}
    for base, section, changes, expected in cells_of("""
            none | training | seed=0 | 1 0 0
            none | training | max_steps=500 | 0 500 0
            none | training | max_steps=0 max_minutes=3 | 0 0 3
            none | training | max_steps=0 seed=0 | 1 0 0
            none | prior.training | max_steps=9 | 0 9 0
            mnist | training | max_steps=500 | 0 500 0
            mnist | progressive.training | max_minutes=5 | 0 0 5
        """):
        values = flatten(override(bases[base], fields(section, changes)))
        limits = (values[f"{section}.{name}"] for name in ("epochs", "max_steps", "max_minutes"))
        assert [*limits] == [*map(int, expected.split())], changes
    with input_error("no budget"):
        TrainingConfig()


def test_paths_of_a_new_run_are_absolute(tmp_path, monkeypatch):
    """Later calls may start in other folders."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("data: {root: photos}\nprior: {codes: tokens}")
    config = autoencoder_config("mine.yaml", {})
    assert config.data.root == str(tmp_path / "photos")
    assert config.prior.codes == str(tmp_path / "tokens")
    assert absolute_paths({"data.root": "python:x"}) == {"data.root": "python:x"}


def test_a_prior_that_goes_on_keeps_its_held_out_images():
    for name in ("evaluation_images", "evaluate_every"):
        field = f"prior.training.{name}"
        with input_error(f"--{field} is .* there, 9 here"):
            stage_config("prior", mnist(), {field: "9"}, mnist())
    with input_error("--model.stride"):
        stage_config("progressive", mnist(), {"model.stride": "4"})


@parametrize(
    "preset, root, name",
    cells_of("""
            treevq/cifar10 | python:/runs/cifar10 | mine
            treevq/cifar10 | /home/me/data | cifar10
            treevq/ffhq | /home/me/mix | mine
            treevq/photos | /home/me/mix | photos
            hrvqvae/imagenet | ~/mix | mine
            hrvqvae/imagenet | ~/data | imagenet
        """),
)
def test_own_images_are_not_called_by_the_name_of_a_published_set(
    preset, root, name, tmp_path, monkeypatch
):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    (tmp_path / "data/imagenet").mkdir(parents=True)
    config = autoencoder_config(preset, {"data.root": root})
    assert config.data.dataset == name
    assert autoencoder_config(preset, {"data.root": root}, config) == config  # when it is resumed
    published = autoencoder_config(preset, {"data.root": root, "data.dataset": "imagenet"})
    assert published.data.dataset == "imagenet"
