"""Device and precision: decided when a run begins, and kept."""

import pytest
import torch

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config.parsing import autoencoder_config, override, stage_config
from hrvqvae.config.schema import decide_auto
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.utils.device import Compute
from tests.conftest import input_error, parametrize, with_training
from tests.kills import at_step
from tests.trained_run import fields, train_autoencoder


@pytest.fixture
def left_open(tiny):
    """The tiny configuration with precision and device of both stages left to the machine."""
    auto = "precision=auto device=auto"
    return override(tiny, fields("training", auto) | fields("prior.training", auto))


@parametrize("present", [True, False])
def test_bf16_is_chosen_if_the_processor_has_it(present, left_open, monkeypatch):
    auto = left_open.training
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": present})
    assert Compute(auto).bf16 is present
    assert Compute(auto.replace(precision="bf16")).bf16
    assert not Compute(auto.replace(precision="fp32")).bf16
    for name in ("gpu", "cuda:99", "mps:x"):
        with input_error(f"device is '{name}'"):
            Compute(auto.replace(device=name))


def test_float32_stays_float32_in_a_training(tiny, tmp_path, monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    seen = []
    at_step(monkeypatch, AutoencoderTask, 1, lambda _: seen.append(cudnn.allow_tf32))
    train_autoencoder(with_training(tiny, max_steps=2), tmp_path / "run")
    assert seen == [False]
    assert cudnn.allow_tf32


def test_what_is_decided_is_kept(left_open, monkeypatch):
    def machine(*, bf16):
        monkeypatch.setattr("hrvqvae.utils.device.computes_bf16", lambda _: bf16)

    machine(bf16=True)
    begun = decide_auto(left_open.replace(name="hrvqvae/mnist"), "model", "training")
    assert begun.training.device == "cpu"
    assert begun.training.precision == "bf16"
    assert begun.prior == left_open.prior  # which may be trained on another machine
    machine(bf16=False)
    assert decide_auto(begun, "model", "training") == begun
    assert decide_auto(left_open, "training").training.precision == "fp32"
    assert autoencoder_config("hrvqvae/mnist", {"training.device": "auto"}, begun) == begun
    of_prior = stage_config("prior", begun, {})
    assert of_prior.prior.training.device == "cpu"
    assert of_prior.prior.training.precision == "fp32"
    assert of_prior.training == begun.training
    machine(bf16=True)
    longer = stage_config("prior", begun, {"prior.training.max_steps": "7"}, of_prior)
    assert longer.prior.training.precision == "fp32"


def test_a_run_goes_on_on_another_device(tiny, tmp_path):
    run = RunFolder(tmp_path / "run")
    train_autoencoder(with_training(tiny, max_steps=3), run)
    run.write_config(with_training(tiny, max_steps=3, device="cuda:99"))
    with input_error("use --device cpu"):
        train_autoencoder(with_training(run.read_config(), max_steps=4), run, resume=True)
    stored = run.read_config().replace(name="hrvqvae/mnist")
    further = fields("training", "device=cpu max_steps=4")
    config = autoencoder_config("hrvqvae/mnist", further, stored)
    assert train_autoencoder(config, run, resume=True).step == 4
