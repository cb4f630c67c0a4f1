"""The task of training a prior on the codes of a trained autoencoder; held-out images tell how good it is.

Class dropout: a prior that is trained without the class of some images can be guided (Ho and Salimans 2022).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hrvqvae import distributed
from hrvqvae.checkpoints.codemaps import CodeMaps, moved_copies, stored_or_extracted
from hrvqvae.checkpoints.folder import RunFolder, prior_folder, prior_folders
from hrvqvae.checkpoints.run import Run, save_model
from hrvqvae.config import Config, Levels, level_names
from hrvqvae.config.parsing import prior_config
from hrvqvae.data.batches import sample_stream
from hrvqvae.data.image_sets import make_rng
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.objective import MODEL, Metrics
from hrvqvae.priors.base import Level, Prior, build_prior, code_loss, total_bits
from hrvqvae.tokens.maps import load_shard_maps
from hrvqvae.training.loggers import Record
from hrvqvae.training.state import TrainState, copy_weights
from hrvqvae.training.trainer import Callback, Evaluation, Outcome, Say, Task, Trainer, explain_save_errors
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted


class CodeBatch(NamedTuple):
    """Codes of some images as a prior sees them."""

    codes: tuple[Tensor, ...]  # (B, H, W) int64 of each level that it covers
    coarser: tuple[Tensor, ...]  # paths of the coarser levels, (B, H_j, W_j) int64
    label: Tensor | None  # (B,) int64

    def to(self, device: torch.device) -> CodeBatch:
        label = None if self.label is None else self.label.to(device, non_blocking=True)
        codes, coarser = (
            [level.to(device, non_blocking=True) for level in maps] for maps in (self.codes, self.coarser)
        )
        return CodeBatch(tuple(codes), tuple(coarser), label)


def read_codes(maps: Sequence[CodeMaps], model: Autoencoder, levels: Levels, indices: NDArray[np.int64]) -> CodeBatch:
    """The codes of some images of a split, as the prior of some levels sees them; numbers go on from map to map."""
    which, places = np.divmod(indices, len(maps[0]))
    of_maps = [one.read(places[which == number]) for number, one in enumerate(maps)]
    back = torch.from_numpy(np.argsort(np.argsort(which, kind="stable")))  # from the order of maps to that of indices
    own = tuple(torch.cat(each)[back] for each in zip(*(codes for codes, _ in of_maps), strict=True))
    label = torch.cat([labels for _, labels in of_maps])[back] if maps[0].classes else None
    return CodeBatch(own[levels.start : levels.stop], model.codeword_indices(own[: levels.start]), label)


def split_held_out(images: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(trained on, held out): numbers of images, at least one of each; the held-out ones in an order drawn by the seed.

    Raises InputError where there is only one image.
    """
    if images < 2:
        raise InputError("a prior needs at least 2 training images: one is held out")
    order = make_rng("held out", seed, images).permutation(images)
    count = min(images - 1, max(1, round(images * share)))
    return np.sort(order[count:]), order[:count]


def drop_classes(label: Tensor | None, level: Level, share: float, seed: int, step: int) -> Tensor | None:
    """The labels (B,) of this process's part of a batch, of which about that share is "no class" instead.

    Which images of the whole batch lose their class depends on (seed, step) alone.
    """
    if label is None or not share:
        return label
    part = distributed.rank_slice()
    places = part.of(len(label) * part.count)
    drawn = make_rng("class dropout", seed, step).random(len(label) * part.count)[places.start : places.stop]
    return torch.where(torch.from_numpy(drawn < share).to(label.device, non_blocking=True), level.no_class, label)


class PriorTask(Task[CodeBatch]):
    """The prior of some levels of a run. What is kept is the averaged state that codes held-out images in fewest bits.

    `config` is that of the run, with `prior` as it is to be trained; `trained` is the
    run's autoencoder, its configuration and its digest.
    """

    parent_run: Path

    def __init__(
        self, path: str | Path, levels: Levels, config: Config, trained: tuple[Autoencoder, Config, str]
    ) -> None:
        super().__init__(prior_folder(path, *levels), config, config.prior.training_of(levels.start))
        self.parent_run, self.levels = Path(path), levels
        self.model, self.trained, self.autoencoder = trained

    def check(self) -> None:
        found = prior_folders(self.parent_run)
        others = [one for one in found if one != self.levels and set(one) & set(self.levels)]
        if others:
            names, paths = ", ".join(map(level_names, others)), ", ".join(str(found[one].path) for one in others)
            raise InputError(f"there is a prior of {names}: delete {paths} to train one of {level_names(self.levels)}")

    def open(self, say: Say) -> None:
        prior, codes = self.config.prior, RunFolder(self.parent_run).codes
        config = dataclasses.replace(self.trained, data=self.config.data)
        if prior.codes is None:
            of = (self.model, self.autoencoder, config, "train", self.compute.device, say)
            self.maps = [
                stored_or_extracted(codes.with_name(name), *of, move)
                for name, move in moved_copies(prior.flip, prior.shifts)
            ]
        elif prior.flip or prior.shifts:
            raise InputError("prior.flip and prior.shifts need the run's own images: leave them or prior.codes out")
        else:
            self.maps = [load_shard_maps(codes, Path(prior.codes), self.model, config, say)]
        self.labels, self.classes = self.maps[0].labels, self.maps[0].classes
        if prior.class_dropout and not self.classes:
            raise InputError(f"prior.class_dropout is {prior.class_dropout:g}; it must be 0 for images without classes")
        self.kept, self.held_out = split_held_out(len(self.labels), prior.held_out, self.training.seed)
        self.samples = len(self.kept) * len(self.maps)
        digest = hashlib.blake2b(self.labels.tobytes(), digest_size=8)
        digest.update(np.ascontiguousarray(self.maps[0].levels[0]).data)
        self.data = digest.hexdigest()

    def describe(self) -> str:
        images = f"{counted(len(self.kept), 'image')}, {len(self.held_out):,} held out"
        return f"{self.config.name}, prior of {level_names(self.levels)}: {images}"

    def build(self) -> Prior:
        return build_prior(self.config, self.levels, len(self.classes))

    def init_from(self, model: nn.Module) -> str:
        """From the prior of the same levels.

        Where the classes differ, what belongs to a class begins anew. Where only one of the two priors knows
        "no class", that is left out, or begins as the mean of the classes.
        """
        assert isinstance(model, Prior)
        name, own = self.training.init_from, model.state_dict()
        prior = Run(name).priors.get(self.levels)
        if prior is None or not prior.exists():
            raise InputError(f"{name} has no prior of {level_names(self.levels)} to begin with")
        weights, about = prior.read()
        anew = list[str]()
        for of_classes in self._find_class_tensors():
            if self.classes != tuple(about["classes"]):
                anew.append(of_classes)
            elif of_classes in weights and weights[of_classes].shape != own[of_classes].shape:
                rows, labels = weights[of_classes], model.level.labels
                more = rows.mean(0).expand(max(0, labels - len(rows)), *rows.shape[1:])
                weights[of_classes] = torch.cat([rows, more])[:labels]
        copy_weights(model, weights, f"{name}, {level_names(self.levels)},", anew)
        told = f"beginning with the prior of {level_names(self.levels)} of {name}"
        return told + (f", {', '.join(sorted(anew))} anew: other classes" if anew else "")

    def _find_class_tensors(self) -> list[str]:
        """Names of the tensors whose shapes depend on the number of classes."""
        with torch.device("meta"):
            one, two = (build_prior(self.config, self.levels, count).state_dict() for count in (1, 2))
        return [name for name, tensor in two.items() if tensor.shape != one[name].shape]

    def batches(self, first_step: int) -> Generator[CodeBatch, None, None]:
        size, seed = self.training.batch_size, self.training.seed
        for samples in sample_stream(self.samples, size, seed, first_step, distributed.rank_slice()):
            flipped, places = np.divmod([index for index, _ in samples], len(self.kept))
            images = flipped * len(self.labels) + self.kept[places]
            yield read_codes(self.maps, self.model, self.levels, images)

    def step(self, state: TrainState, batch: CodeBatch) -> Metrics:
        model, placed = state.model, batch.to(state.compute.device)
        assert isinstance(model, Prior)
        label = drop_classes(placed.label, model.level, self.config.prior.class_dropout, self.training.seed, state.step)
        with state.autocast():
            loss = code_loss(model, placed.codes, placed.coarser, label)
        metrics = state.take_gradient({"nats_per_code": loss})
        state.update(MODEL)
        state.averaged.update_parameters(model)
        return {**metrics, "bits_per_code": metrics["loss"] / math.log(2)}

    def evaluate(self, state: TrainState, records: Sequence[Record]) -> Evaluation:
        """Bits that held-out codes take under the averaged prior, which is kept if none before needed fewer."""
        prior = state.averaged.module.eval()
        assert isinstance(prior, Prior)
        an_image = self._bits_per_image(prior)
        levels = [bits / math.prod(prior.level.grid) for bits in an_image]
        found, more = sum(levels) / len(levels), {"level_bits_per_code": levels} if len(levels) > 1 else {}
        best = min((one["bits_per_code"] for one in records if one["kind"] == "evaluation"), default=math.inf)
        if found <= best and distributed.is_rank_zero():  # before the log: a kill in between leaves it to be made again
            counts = np.bincount(self.labels, minlength=max(1, len(self.classes)))
            with explain_save_errors(self.run, state.step):
                save_model(
                    self.run.model, self.config, prior.state_dict(), state.step, "prior", level=self.levels.start,
                    autoencoder=self.autoencoder, classes=list(self.classes), class_counts=counts.tolist(),
                    bits_per_code=mean(levels), **({"levels": len(levels)} if more else {}), **more,
                )  # fmt: skip
        record = {"bits_per_code": found, "bits_per_image": sum(an_image)}
        compared = "best so far, kept" if found <= best else f"best: {best:.4f}"
        line = f"held out: {found:.4f} bits a code, {sum(an_image):.1f} bits an image  ({compared})"
        return Evaluation({**record, **more}, line)

    def _bits_per_image(self, prior: Prior) -> list[float]:
        """Bits an image of each level, over the held-out images of all processes."""
        spent, images = torch.zeros(len(prior.levels), dtype=torch.float64), 0
        held_out, size = self.held_out[: self.training.evaluation_images], self.training.batch_size
        held_out = held_out[distributed.rank_slice().of(len(held_out))]
        for start in range(0, len(held_out), size):
            some = held_out[start : start + size]
            placed = read_codes(self.maps[:1], self.model, self.levels, some).to(self.compute.device)
            with self.compute.autocast():
                spent += torch.tensor(total_bits(prior, *placed))
            images += len(some)
        every = distributed.all_gather_numbers(*spent.tolist(), images)
        *levels, number = (sum(each) for each in zip(*every, strict=True))
        return [bits / number for bits in levels]

    def save(self, state: TrainState) -> None:
        """Nothing: evaluations write the prior."""


def train_priors(
    path: str | Path, configs: Mapping[Levels, Config], *, resume: bool = False, renew: bool = False,
    callbacks: Sequence[Callback] = (), say: Say = print,
) -> dict[Levels, Outcome]:  # fmt: skip
    """Train priors of a run, one after the other; -> how each ended. Ends early where a signal stopped one.

    The options are those of `Trainer`. Raises InputError: no trained autoencoder; as `Trainer.train`, before any prior
    is trained where that can be known.
    """
    run = Run(path)
    trained = (*run.load(progressive=False), run.digest)
    trainers, outcomes = dict[Levels, Trainer[CodeBatch]](), dict[Levels, Outcome]()
    for levels, config in configs.items():
        task = PriorTask(path, levels, config, trained)
        trainers[levels] = Trainer(task, resume=resume, renew=renew, callbacks=callbacks, say=say)
    with ExitStack() as locks:
        for trainer in trainers.values():
            locks.enter_context(distributed.context_on_rank_zero(trainer.task.run.locked))
        for trainer in trainers.values():
            trainer.check()
        next(iter(trainers.values())).task.open(say)
        for trainer in trainers.values():  # what was asked for holds for priors that a signal keeps from beginning
            distributed.on_rank_zero(partial(trainer.task.run.prepare, trainer.task.config))
        for levels, trainer in trainers.items():
            outcomes[levels] = trainer.train()
            if outcomes[levels].signal is not None:
                break
    return outcomes


def resolve_priors(
    path: str | Path, level: int | None, given: Mapping[str, str], *, resume: bool
) -> dict[Levels, Config]:
    """The levels that each prior of a run covers, coarse first -> its configuration.

    With `resume`, priors that have begun keep their networks; the levels that are left get new priors.

    Args:
        level: counted from 1: the prior that covers it, alone; None takes all.
        given: dotted name -> text.

    Raises:
        InputError: no such run or level, or as `prior_config`.
    """
    stored = RunFolder(Path(path)).read_config()
    count = len(stored.model.num_symbols)
    if level is not None and not 1 <= level <= count:
        raise InputError(f"--level is {level}; this model has levels 1 to {count}")
    wanted = range(count) if level is None else range(level - 1, level)
    configs = {
        levels: prior_config(stored, given, folder.read_config())
        for levels, folder in prior_folders(path).items()
        if resume and {*levels} & {*wanted} and folder.config.is_file()
    }
    covered = {index for levels in configs for index in levels}
    if not {*wanted} <= covered:
        new = prior_config(stored, given)
        configs |= {levels: new for levels in new.prior_levels if {*levels} & {*wanted} and not {*levels} & covered}
    if len({config.prior.codes for config in configs.values()}) > 1:
        raise InputError("the levels were begun with codes of several places; go on with one at a time: --level L")
    return dict(sorted(configs.items(), key=lambda item: item[0].start))
