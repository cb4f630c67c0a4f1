"""Train small runs. Runs that tests share are trained once per process and never written to."""

import shutil
from functools import cache
from pathlib import Path

from benchmarks.common import TINY, fields
from hrvqvae.checkpoints.entropy import fit_entropy_model
from hrvqvae.checkpoints.folder import RunFolder, open_run
from hrvqvae.config import QuantizerConfig, presets
from hrvqvae.config.parsing import override
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.classifier import (
    TrainedClassifier,
    build_classifier,
    describe_images,
    write_classifier,
)
from hrvqvae.training import prior
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.trainer import Trainer
from tests.conftest import do, with_training, write_file


def silent(_):
    """Say nothing."""


def train_autoencoder(config, run, *, resume=False):
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    task = AutoencoderTask(config, folder)
    return Trainer(task, resume=resume).train()


@cache
def tiny_run_with_priors(mnist_root):
    """Return a run folder of HR-VQVAE with three levels of three codewords and its priors."""
    folder = mnist_root.parent / "tiny-with-priors"
    folder.mkdir()
    file = write_file(with_training(tiny_run(mnist_root), max_steps=60), folder / "tiny.yaml")
    do(f"train {file} --out {folder}/run")
    do(f"train-prior {folder}/run --max-steps 30")
    return folder / "run"


@cache
def tiny_run_with_entropy_model(mnist_root):
    folder = mnist_root.parent / "tiny-with-entropy-model"
    shutil.copytree(tiny_run_with_priors(mnist_root), folder)
    fit_entropy_model(open_run(folder), duration=0.2, say=silent)
    return folder


SHORT = """
max_steps=12 evaluate_every=4 checkpoint_every=3 log_every=4 warmup_steps=2 polyak_decay=0.5
precision=fp32 device=cpu
"""
_PRIOR = fields("prior.training", SHORT + "batch_size=16")
_PIXELSNAIL = """
hidden_units=8 residual_units=8 residual_blocks=2 attention_layers=1 attention_heads=2
"""
_GPT = "kind=gpt hidden_units=16 layers=1 heads=2 path_units=8"
_PRIOR |= {"prior.shifts": "0"}  # no copies unless a test asks for them
GIVEN = _PRIOR | fields("prior.network", _PIXELSNAIL)
GIVEN_GPT = _PRIOR | fields("prior.network", _GPT)


def as_options(fields):
    """Return fields as options of a command."""
    return " ".join(f"--{name}={value}" for name, value in fields.items())


_TRAINED = {}


def trained_copy(config, folders, path):
    """Copy a run with a trained autoencoder to `path`; the run is trained once."""
    if config not in _TRAINED:
        _TRAINED[config] = folders.mktemp("trained") / "run"
        train_autoencoder(with_training(config, max_steps=60), _TRAINED[config])
    return shutil.copytree(_TRAINED[config], path)


def train_levels(path, level=None, changes="", *, resume=False, of=GIVEN):
    """Train the priors of a run, or of a level, with changed fields such as
    "training.max_steps=9".
    """
    given = of | fields("prior", changes)
    prior.train(path, given, level=level, resume=resume)


_NETWORK = fields("model", "stride=2 padding=1 hidden_units=8 residual_units=8")
_NETWORK |= fields("model.quantizer", "dim=8 init_vectors=1000")
_TREE = fields("model.quantizer", "levels=3 codewords=3 decay=0.95")
_FLAT = fields("model.quantizer", "codewords=27")
_ADVERSARIAL = "perceptual=none adversarial_start=2 discriminator_units=4 discriminator_layers=1"
_SYSTEMS = {
    "hrvqvae": _TREE,
    "treevq": _TREE | fields("model.quantizer", "beam=2 coarse_weight=0.1 level_beta=0"),
    "vqvae": _FLAT,
    "vqvae2": _FLAT | fields("model", "grids=2"),
    "vqgan": _FLAT | fields("model", _ADVERSARIAL) | fields("prior.network", _GPT),
    "rqvae": fields("model.quantizer", "levels=3 codewords=3 linked=1"),
}


def tiny_run(mnist_root):
    """Return the configuration of HR-VQVAE with three levels of three codewords, and small
    priors.
    """
    changes = (
        TINY
        | {"data.root": str(mnist_root), "name": "tiny"}
        | fields("training", "checkpoint_every=20")
        | fields("prior.training", "warmup_steps=3 learning_rate=0.01 polyak_decay=0.5")
        | fields("progressive.training", "max_steps=20 warmup_steps=2")
    )
    return override(presets.get("hrvqvae/mnist").config, changes)


def tiny_systems(mnist_root):
    """Return configurations by system; they differ in the model, VQGAN also in the prior's
    network.
    """
    configs = {}
    for name, changes in _SYSTEMS.items():
        model = SYSTEMS.get(name).config.replace(quantizer=QuantizerConfig())
        config = tiny_run(mnist_root).replace(name=f"{name}/mnist", model=model)
        configs[name] = override(config, _NETWORK | changes)
    return configs


def write_untrained_classifier(config, path):
    """Write an untrained classifier of a data set, and return its network."""
    classes = load_images(config, "test").classes
    network = build_classifier(config, len(classes)).eval().requires_grad_(False)
    trained = TrainedClassifier(network, 0.1, classes, describe_images(config))
    write_classifier(Path(path), trained)
    return network
