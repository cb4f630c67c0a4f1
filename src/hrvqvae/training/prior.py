"""Train priors on the codes of a trained autoencoder, and evaluate them on held-out images."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae import distributed
from hrvqvae.checkpoints.folder import (
    RunFolder,
    open_run,
    prior_folder,
    prior_folders,
    require_trainable,
    save_model,
)
from hrvqvae.codes.maps import CodeMaps, join_maps
from hrvqvae.codes.store import load_or_make, read_codes
from hrvqvae.config import Config, Levels, level_names
from hrvqvae.config.parsing import stage_config
from hrvqvae.data.batches import make_rng, sample_stream
from hrvqvae.data.copies import list_copies
from hrvqvae.data.loading import open_images
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.objective import MODEL, Metrics
from hrvqvae.plots import curves
from hrvqvae.priors.base import Level, Prior, build_prior, measure_bits
from hrvqvae.training.loggers import Record, read_records
from hrvqvae.training.state import TrainState
from hrvqvae.training.trainer import Evaluation, Outcome, Task, Trainer
from hrvqvae.utils.errors import InputError, expand_home
from hrvqvae.utils.grouping import slices
from hrvqvae.utils.progress import say
from hrvqvae.utils.quantities import counted

_EPOCHS_PER_EVALUATION = 5  # at most
_WORTH_A_PRIOR = 0.99  # a prior that needs a larger share of the bits of guessing is reported
_FEW_IMAGES = 5_000  # a set of fewer images gets changed copies, unless options say otherwise
_COPIES_OF_FEW = {"prior.shifts": 8, "prior.variants": 3}


class CodeBatch(NamedTuple):
    """A batch for a prior: the codes to predict, and their conditions."""

    codes: tuple[Tensor, ...]  # of each level of the prior, (B, H, W) int64
    coarser: tuple[Tensor, ...]  # codeword indices of the coarser levels, (B, H_j, W_j) int64
    label: Tensor | None  # (B,) int64
    copies: Tensor | None = None  # (B,) int64, indices of the augmented copies

    def to(self, device: torch.device) -> CodeBatch:
        def move(values: Any) -> Any:
            """Move a tensor, None or a tuple of tensors."""
            if values is None:
                return None
            if isinstance(values, tuple):
                return tuple(map(move, values))
            return values.to(device, non_blocking=True)

        return CodeBatch(*map(move, self))


def read_batch(
    maps: CodeMaps, model: Autoencoder, levels: Levels, indices: NDArray[np.int64]
) -> CodeBatch:
    """Read the codes of images for the prior of `levels`."""
    codes, labels = maps.read(indices)
    coarser = model.codeword_indices(codes[: levels.start])
    return CodeBatch(codes[levels.start : levels.stop], coarser, labels if maps.classes else None)


def split_held_out(
    images: int, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide images into training images and held-out images, `share` of all; each part has at
    least one image.

    Returns the sorted indices of the training images and the shuffled indices of the held-out
    images. Raises InputError if there is only one image.
    """
    if images < 2:
        raise InputError("a prior needs at least 2 training images: one is held out")
    order = make_rng("held out", seed, images).permutation(images)
    count = min(images - 1, max(1, round(images * share)))
    return np.sort(order[count:]), order[:count]


def drop_classes(
    label: Tensor | None, level: Level, share: float, seed: int, step: int
) -> Tensor | None:
    """Replace about `share` of the labels (B,) by `level.classes`, the label of "no class".

    This enables guidance (Ho and Salimans 2022). Which labels go depends on seed and step, not on
    the number of ranks.
    """
    if label is None or not share:
        return label
    # Draw for the whole batch. All ranks have equal, contiguous shares of it: one row per rank.
    ranks = distributed.rank_slice()
    draws = make_rng("class dropout", seed, step).random((ranks.count, len(label)))
    is_dropped = torch.from_numpy(draws[ranks.rank] < share).to(label.device, non_blocking=True)
    return torch.where(is_dropped, level.classes, label)


class PriorTask(Task):
    """Train the prior of consecutive levels; save the averaged weights that need the fewest bits
    for held-out images.

    Args:
        path: the run folder.
        autoencoder: the run's autoencoder, the autoencoder's configuration, and the digest of its
            weights file.
    """

    parent_run: Path

    def __init__(
        self,
        path: str | Path,
        levels: Levels,
        config: Config,
        autoencoder: tuple[Autoencoder, Config, str],
    ) -> None:
        training = config.prior.training_of(levels.start)
        super().__init__(config, prior_folder(path, *levels), training)
        self.parent_run = Path(path)
        self.levels = levels
        self.model, self.model_config, self.autoencoder_digest = autoencoder

    def read_data(self) -> None:
        prior = self.config.prior
        copies = list(list_copies(prior.flip, prior.shifts, prior.variants))
        if prior.codes is None:
            # read or make the codes of each copy, with the autoencoder's own configuration
            config = dataclasses.replace(self.model_config, data=self.config.data)
            folder = RunFolder(self.parent_run).codes
            maps = []
            for copy in copies:
                codes = load_or_make(
                    folder.with_name(copy.folder),
                    self.model,
                    self.autoencoder_digest,
                    config,
                    "train",
                    self.compute.device,
                    say,
                    copy.augment,
                )
                maps.append(codes)
        elif len(copies) == 1:
            maps = [read_codes(Path(prior.codes), self.autoencoder_digest)]
        else:
            raise InputError(
                "prior.flip, prior.shifts and prior.variants need the run's own images: give"
                " --prior.flip false --prior.shifts 0 --prior.variants 0, or leave out prior.codes"
            )
        self.maps = join_maps(maps)
        uncopied = maps[0]
        self.num_images = len(uncopied)
        self.copy_labels = torch.tensor([copy.index for copy in copies])
        self.labels = uncopied.labels
        self.classes = uncopied.classes
        if prior.class_dropout and not self.classes:
            raise InputError(
                f"prior.class_dropout is {prior.class_dropout:g}; it must be 0 for images without"
                " classes"
            )
        seed = self.training.seed
        self.train_indices, self.held_out = split_held_out(self.num_images, prior.held_out, seed)
        self.num_samples = len(self.train_indices) * len(copies)
        name = f"{self.config.name}, prior of {level_names(self.levels)}"
        num_images = counted(len(self.train_indices), "image")
        self.description = f"{name}: {num_images}, {len(self.held_out):,} held out"
        digest = hashlib.blake2b(self.labels.tobytes(), digest_size=8)
        digest.update(np.ascontiguousarray(uncopied.levels[0]).data)
        self.data_digest = digest.hexdigest()

        # a prior learns a small set by heart within a few epochs
        epoch = -(-self.num_samples // self.training.batch_size)
        interval = min(self.training.evaluate_every, _EPOCHS_PER_EVALUATION * epoch)
        self.training = dataclasses.replace(self.training, evaluate_every=interval)

    def build(self) -> Prior:
        return build_prior(self.config, self.levels, len(self.classes))

    def batches(self, first_step: int) -> Generator[CodeBatch, None, None]:
        training = self.training
        ranks = distributed.rank_slice()
        stream = sample_stream(
            self.num_samples, training.batch_size, training.seed, first_step, ranks
        )
        for samples in stream:
            # A sample is a training image of a copy: first all of copy 0, then all of copy 1, ...
            # The maps hold the held-out images of each copy too.
            copies, rows = np.divmod([index for index, _ in samples], len(self.train_indices))
            indices = copies * self.num_images + self.train_indices[rows]
            batch = read_batch(self.maps, self.model, self.levels, indices)
            if self.config.prior.variants:
                batch = batch._replace(copies=self.copy_labels[copies])
            yield batch

    def step(self, state: TrainState, batch: CodeBatch) -> Metrics:
        model = state.model
        batch = batch.to(self.compute.device)
        share = self.config.prior.class_dropout
        label = drop_classes(batch.label, model.level, share, self.training.seed, state.step)
        with self.compute.autocast():
            nats = model.image_nats(batch.codes, batch.coarser, label, batch.copies)
            losses = {"nats_per_code": nats.mean() / model.num_codes}
        metrics = state.minimize({MODEL: losses})
        state.averaged.update_parameters(model)
        return {**metrics, "bits_per_code": metrics["nats_per_code"] / math.log(2)}

    def evaluate(self, state: TrainState, records: Sequence[Record]) -> Evaluation:
        """Measure the bits of held-out codes under the averaged prior; save it if no earlier prior
        needed fewer.
        """
        prior = state.averaged.module.eval()
        bits = torch.zeros(len(prior.levels), dtype=torch.float64)
        held_out = self.held_out[: self.training.evaluation_images]
        share = held_out[distributed.rank_slice().of(len(held_out))]  # of this process
        for indices in slices(share, self.training.batch_size):
            batch = read_batch(self.maps, self.model, self.levels, indices).to(self.compute.device)
            with self.compute.autocast():
                bits += torch.tensor(measure_bits(prior, batch.codes, batch.coarser, batch.label))
        gathered = distributed.all_gather_numbers(*bits.tolist())

        # the bits of each level, per image and per code
        image_bits = [sum(column) / len(held_out) for column in zip(*gathered, strict=True)]
        code_bits = [level_bits / math.prod(prior.level.grid) for level_bits in image_bits]
        bits_per_code = sum(code_bits) / len(code_bits)
        bits_per_image = sum(image_bits)

        # The trainer logs the evaluation after this. A run that is killed in between evaluates this
        # step again.
        best = min(list_held_out_bits(records), default=math.inf)
        is_best = bits_per_code <= best
        if is_best and distributed.rank() == 0:
            self._write(state, bits_per_code)
        record = {
            "bits_per_code": bits_per_code,
            "bits_per_image": bits_per_image,
            "level_bits_per_code": code_bits,
        }
        comparison = "best so far, kept" if is_best else f"best: {best:.4f}"
        line = f"held out: {bits_per_code:.4f} bits per code, {bits_per_image:.1f} bits per image"
        return Evaluation(record, f"{line}  ({comparison})")

    def draw(self, state: TrainState, records: Sequence[Record]) -> None:
        curves.plot_prior(records, self.run.pictures / "curves.png")

    def is_finished(self, records: Sequence[Record]) -> bool:
        """Return whether no evaluation of the last `prior.patience` was the best."""
        patience = self.config.prior.patience
        bits = list_held_out_bits(records)
        return 0 < patience < len(bits) and min(bits[-patience:]) > min(bits)

    def summarize(self, records: Sequence[Record]) -> str:
        """Return which prior was kept, and whether it is worth anything."""
        best = min(list_held_out_bits(records))
        symbols = [self.model_config.model.num_symbols[level] for level in self.levels]
        guess = fmean(map(math.log2, symbols))
        if best < _WORTH_A_PRIOR * guess:
            return f"kept: the prior with the fewest bits per held-out code, {best:.4f}"
        return (
            f"no better than guessing: {best:.4f} bits per held-out code, {guess:.4f} by guessing;"
            " train on more images, or on changed copies of each (--prior.variants 3)"
        )

    def save(self, state: TrainState) -> None:
        """Do nothing: evaluations write the best prior."""

    def _write(self, state: TrainState, bits_per_code: float) -> None:
        """Write the averaged prior, with its bits per held-out code."""
        counts = np.bincount(self.labels, minlength=max(1, len(self.classes)))
        save_model(
            self.run.model,
            self.config,
            state.averaged.module.state_dict(),
            state.step,
            "prior",
            level=self.levels.start,
            autoencoder=self.autoencoder_digest,
            classes=list(self.classes),
            class_counts=counts.tolist(),
            bits_per_code=bits_per_code,
        )


def list_held_out_bits(records: Sequence[Record]) -> list[float]:
    """Return the held-out bits per code of each evaluation in a log."""
    return [record["bits_per_code"] for record in records if record["kind"] == "evaluation"]


def train(
    path: str | Path,
    fields: Mapping[str, Any],
    *,
    level: int | None = None,
    resume: bool = False,
) -> dict[Levels, Outcome]:
    """Train the priors of a run one after another, until a signal stops a training; return how each
    training ended.

    Args:
        fields: Fields of the configuration by dotted name, as for `autoencoder.train`.
        level: Train only the prior that covers this level, counted from 1.

    Raises as `Trainer.train` and `resolve_priors`. Errors that can be found early are raised before
    the first training.
    """
    path = expand_home(path)
    configs = distributed.on_rank_zero(partial(resolve_priors, path, level, fields, resume=resume))
    run = open_run(path)
    autoencoder = (*run.load(decoder=None), run.digest)
    tasks = [PriorTask(path, levels, config, autoencoder) for levels, config in configs.items()]

    # refuse early, and write the configurations, which a later --resume reads
    for task in tasks:
        with distributed.lock_on_rank_zero(task.run.path):
            distributed.on_rank_zero(Trainer(task, resume=resume).prepare_folder)
    outcomes = {}
    for task in tasks:
        outcomes[task.levels] = Trainer(task, resume=resume).train()
        if outcomes[task.levels].signal is not None:
            break
        say(f"{level_names(task.levels)}: {task.summarize(read_records(task.run.metrics))}")
    return outcomes


def resolve_priors(
    path: str | Path, level: int | None, fields: Mapping[str, Any], *, resume: bool
) -> dict[Levels, Config]:
    """Return the configurations of a run's priors, coarse first; each key is the levels of its
    prior.

    With `resume`, priors that have begun keep their configurations except for changed `fields`; the
    remaining levels get new priors. With `level`, counted from 1, only the prior that covers this
    level is returned. Raises InputError if there is no such run or level, or as `stage_config`.
    """
    run = require_trainable(path)
    stored = run.read_config()
    num_levels = len(stored.model.num_symbols)
    if level is not None and not 1 <= level <= num_levels:
        raise InputError(f"--level is {level}; this model has levels 1 to {num_levels}")
    missing = {*range(num_levels)} if level is None else {level - 1}
    configs = {}
    folders = prior_folders(path)
    for levels, folder in folders.items():
        if resume and missing & {*levels} and folder.config.is_file():
            configs[levels] = stage_config("prior", stored, fields, folder.read_config())
            missing -= {*levels}
    if missing:
        new = stage_config("prior", stored, fields)
        # missing data is reported before a folder is made
        if new.prior.codes is None:
            new = add_copies(new, len(open_images(new.data, "train")), fields)
        else:
            read_codes(Path(new.prior.codes), run.digest)
        configs |= {levels: new for levels in new.prior_levels if missing & {*levels}}

    # two priors must not share a level
    for levels in configs:
        others = [other for other in folders if other != levels and {*other} & {*levels}]
        if others:
            names = ", ".join(str(folders[other].path) for other in others)
            raise InputError(f"delete {names} to train {level_names(levels)}")
    return dict(sorted(configs.items(), key=lambda item: item[0].start))


def add_copies(config: Config, images: int, fields: Mapping[str, Any]) -> Config:
    """Return the configuration of a new prior with changed copies of each image, if there are few
    images, the network can tell copies apart, and no field says otherwise.
    """
    is_given = any(f"prior.{name}" in fields for name in ("flip", "shifts", "variants"))
    if is_given or config.prior.network.kind != "gpt" or images >= _FEW_IMAGES:
        return config
    return config.replace(**_COPIES_OF_FEW)
