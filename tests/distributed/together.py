"""A process of a training, started by torchrun or alone: python -m tests.distributed.together
FOLDER SYSTEM ...

It trains each system of FOLDER/SYSTEM.yaml into FOLDER/SYSTEM-WORLD, then priors and the decoders
of prefixes and of samples into the run FOLDER/priors-WORLD, and a transformer as the prior of
FOLDER/gpt-WORLD. It writes what it saw to FOLDER/seen-WORLD-RANK.json.
"""

import json
import sys
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

from hrvqvae import distributed
from hrvqvae.checkpoints.entropy import fit_entropy_model
from hrvqvae.checkpoints.folder import RunFolder, open_run
from hrvqvae.checkpoints.storage import weights_digest
from hrvqvae.config.parsing import from_file, override
from hrvqvae.data.images import BrokenImageError
from hrvqvae.distributed.launch import process_group
from hrvqvae.models.objective import MODEL
from hrvqvae.training import prior
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.state import TrainState
from hrvqvae.training.trainer import Trainer
from hrvqvae.utils.errors import InputError
from tests.conftest import with_training
from tests.trained_run import GIVEN, GIVEN_GPT, fields, silent, train_autoencoder
from tests.training.tasks import Case

PRIOR = fields("prior.training", "batch_size=12 max_steps=6 log_every=1 evaluate_every=3")
PRIOR |= {"prior.network.dropout": "0"}


def codebooks(model):
    return {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if "codebook" in name or "residual" in name
    }


@contextmanager
def watched():
    """Record the images of each step, the first codebooks and the last state."""
    seen = {"images": [], "start": None, "end": None}
    usual = AutoencoderTask.step

    def step(self, state, batch):
        if not state.step:
            seen["start"] = weights_digest(codebooks(state.model))
        seen["images"].append([zlib.crc32(image.numpy().tobytes()) for image in batch.images])
        metrics = usual(self, state, batch)
        seen["end"] = weights_digest(state.tensors())
        return metrics

    with patch.object(AutoencoderTask, "step", step):
        yield seen


def train_all(folder, systems):
    """Train each system, and then what stands on FOLDER/priors-WORLD and gpt-WORLD, if they
    exist.
    """
    size = distributed.world_size()
    results = {}
    for system in systems:
        with watched() as results[system]:
            run = RunFolder(folder / f"{system}-{size}")
            train_autoencoder(from_file(folder / f"{system}.yaml"), run)
    run = RunFolder(folder / f"priors-{size}")
    if run.path.is_dir():
        for path, network in ((run.path, GIVEN), (folder / f"gpt-{size}", GIVEN_GPT)):
            prior.train(path, network | PRIOR)
        for name in ("progressive", "generation"):
            case = Case(name, run.path, with_training(run.read_config(), batch_size=12))
            changes = {"generation.redraw": "0", "generation.class_dropout": "0"}
            changes["generation.training.batch_size"] = "12"
            case.train(config=override(case.config(max_steps=5, log_every=1), changes))
    return results


def fail(config, folder, rank, how):
    """Return the error of a training in which a process goes wrong in the fifth step."""
    minimize = TrainState.minimize
    read = Trainer._read
    here = distributed.rank() == rank

    def spoil_loss(state, losses):
        factor = float("nan") if state.step == 4 and how == "nan" and here else 1.0
        terms = {name: loss * factor for name, loss in losses[MODEL].items()}
        return minimize(state, losses | {MODEL: terms})

    def lose_images(self, state):
        if state.step == 4 and how == "broken" and here:
            self.batches = iter(broken())
        return read(self, state)

    with (
        patch.object(TrainState, "minimize", spoil_loss),
        patch.object(Trainer, "_read", lose_images),
    ):
        try:
            train_autoencoder(config, RunFolder(folder / how))
        except InputError as error:
            return str(error)
    return "nothing"


def broken():
    raise BrokenImageError("x.png is broken")
    yield


def fail_in_each_way(folder, system):
    config = with_training(from_file(folder / f"{system}.yaml"), checkpoint_every=2)
    failures = {how: fail(config, folder, 1, how) for how in ("nan", "broken")}
    refused = {"odd": with_training(config, batch_size=13), "fewer": config}
    if distributed.rank() == 1:
        refused["fewer"] = override(config, {"data.validation": "0.5"})
    for how, changed in refused.items():
        try:
            train_autoencoder(changed, RunFolder(folder / how))
        except InputError as error:
            failures[how] = str(error)
    return failures


def main(folder, systems):
    torch.set_num_threads(1)
    with process_group():
        seen = dict(train_all(folder, systems))
        if distributed.world_size() == 2:
            seen["failures"] = fail_in_each_way(folder, systems[0])
            run = open_run(folder / "priors-2")
            fit = partial(fit_entropy_model, run, duration=0.01, say=silent)
            seen["fitted"] = len(distributed.on_rank_zero(fit).networks)
        (folder / f"seen-{distributed.world_size()}-{distributed.rank()}.json").write_text(
            json.dumps(seen)
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
