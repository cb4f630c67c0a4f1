"""Runs to look at: of an autoencoder alone, and with all that can lie beside one."""

import shutil
from dataclasses import replace

import pytest

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.entropy import bare_entropy_model
from hrvqvae.checkpoints.folder import (
    GENERATION,
    PROGRESSIVE,
    RunFolder,
    decoder_folder,
    open_run,
    save_model,
)
from hrvqvae.models.build import (
    build_progressive_decoder,
    build_sample_decoder,
    require_several_levels,
)
from tests.trained_run import tiny_run_with_priors


@pytest.fixture
def run(mnist_root, tmp_path):
    """A run folder with a trained autoencoder alone."""
    ignored = shutil.ignore_patterns("priors", "checkpoints")
    return shutil.copytree(tiny_run_with_priors(mnist_root), tmp_path / "run", ignore=ignored)


def write_decoder(run, name, shift):
    """Write a decoder of prefixes: the autoencoder's decoder with `shift` added to its weights."""
    trained = open_run(run)
    model, config = trained.load(decoder=None)
    build_decoder = build_sample_decoder if name == GENERATION else build_progressive_decoder
    weights = build_decoder(require_several_levels(model, config), config).state_dict()
    shifted = {key: tensor + shift for key, tensor in weights.items()}
    file = decoder_folder(run, name).model
    file.parent.mkdir()
    save_model(file, config, shifted, 5, name, autoencoder=trained.digest)


@pytest.fixture
def full_run(mnist_root, tmp_path):
    """A run folder with priors, a progressive decoder that is another than the autoencoder's, and
    an entropy model.
    """
    run = shutil.copytree(tiny_run_with_priors(mnist_root), tmp_path / "run")
    write_decoder(run, PROGRESSIVE, 0.05)
    RunFolder(run).tables.write_bytes(
        replace(bare_entropy_model(open_run(run)), name="tiny").content
    )
    return run


def change(run):
    """Make the autoencoder of a run another one."""
    file = RunFolder(run).model
    weights, meta = storage.read(file)
    weights["decoder.0.bias"] = weights["decoder.0.bias"] + 1
    storage.write(file, weights, meta)


@pytest.fixture
def changed(full_run):
    change(full_run)
    return full_run
