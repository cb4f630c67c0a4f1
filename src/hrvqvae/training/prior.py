"""The prior stage: from a run with a trained autoencoder to a prior for each of its levels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae import processes
from hrvqvae.config import Config
from hrvqvae.data.batches import Stream
from hrvqvae.data.random import stream
from hrvqvae.errors import InputError
from hrvqvae.priors.base import Prior, bits, code_loss, total_bits
from hrvqvae.priors.build import build_prior
from hrvqvae.quantities import counted
from hrvqvae.runs import storage
from hrvqvae.runs.codemaps import CodeMaps, stored_or_extracted
from hrvqvae.runs.folder import RunFolder, prior_folder
from hrvqvae.runs.loading import load_with_digest, save_prior
from hrvqvae.systems.base import Autoencoder
from hrvqvae.tokens.maps import maps_of_shards
from hrvqvae.training import loggers
from hrvqvae.training.device import Compute
from hrvqvae.training.hooks import Display, MetricsLog, Say, saving_errors
from hrvqvae.training.loop import Metrics, update
from hrvqvae.training.stage import Outcome, begin, count_parameters, require_new, seed_step, train_stage
from hrvqvae.training.start import start_prior
from hrvqvae.training.state import TrainState

Evaluated = Callable[[RunFolder, Sequence[Mapping[str, Any]]], None]


@dataclass(frozen=True)
class LevelBatch:
    """Codes of one level with what its prior sees: codes (B, H, W), paths of the coarser levels, label (B,) or None."""

    codes: Tensor
    coarser: tuple[Tensor, ...]
    label: Tensor | None


class LevelCodes:
    """The code maps of a split, seen from one level (0 is the coarsest)."""

    def __init__(self, maps: CodeMaps, model: Autoencoder, level: int) -> None:
        self.maps, self.model, self.level = maps, model, level

    def read(self, indices: NDArray[np.int64]) -> LevelBatch:
        """The batch of some images."""
        codes, labels = self.maps.read(indices)
        coarser = self.model.paths(codes[: self.level])
        return LevelBatch(codes[self.level], coarser, labels if self.maps.classes else None)

    def stream(self, kept: NDArray[np.int64], batch_size: int, seed: int, first: int) -> Generator[LevelBatch]:
        """This process's part of training batches of the images of those numbers, from step `first` on, without end."""
        for samples in Stream(len(kept), batch_size, seed, first, processes.part()):
            yield self.read(kept[[index for index, _ in samples]])

    def in_order(self, kept: NDArray[np.int64], batch_size: int) -> Iterator[LevelBatch]:
        """Each image of those numbers once."""
        for start in range(0, len(kept), batch_size):
            yield self.read(kept[start : start + batch_size])


def held_out_split(images: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(trained on, held out): numbers of images, at least one of each; the held-out ones in an order drawn by the seed.

    Raises:
        InputError: there is only one image.
    """
    if images < 2:
        raise InputError("a prior needs at least 2 training images: one is held out")
    order = stream("held out", seed, images).permutation(images)
    count = min(images - 1, max(1, round(images * share)))
    return np.sort(order[count:]), order[:count]


class PriorStep:
    """One update of a level's prior."""

    def __init__(self, model: Prior, seed: int, compute: Compute) -> None:
        self.model, self.seed, self.compute = model, seed, compute

    def __call__(self, state: TrainState, batch: LevelBatch) -> Metrics:
        seed_step(self.seed, state.step)
        self.model.train()
        codes, coarser, label = _placed(batch, self.compute)
        with self.compute.autocast():
            loss = code_loss(self.model, codes, coarser, label)
        metrics = update(self.model, state.optimizer, {"nats_per_code": loss})
        state.averaged.update_parameters(self.model)
        return {**metrics, "bits_per_code": bits(metrics["loss"])}


def _placed(batch: LevelBatch, compute: Compute) -> tuple[Tensor, list[Tensor], Tensor | None]:
    label = None if batch.label is None else batch.label.to(compute.device)
    return batch.codes.to(compute.device), [paths.to(compute.device) for paths in batch.coarser], label


class HeldOutHook:
    """Bits that held-out codes take under the averaged prior; keeps the state that needs fewest for sampling."""

    def __init__(
        self, stage: PriorStage, every: int, run: RunFolder, log: MetricsLog, display: Display, compute: Compute
    ) -> None:
        self.stage, self.every, self.run = stage, every, run
        self.log, self.display, self.compute = log, display, compute
        known = [record["bits_per_code"] for record in log.records if record["kind"] == "evaluation"]
        self.best = min(known, default=math.inf)

    def due(self, state: TrainState) -> bool:
        return state.step % self.every == 0

    def __call__(self, state: TrainState, metrics: Metrics) -> None:
        prior = state.averaged.module
        assert isinstance(prior, Prior)
        prior.eval()
        spent = codes = images = 0.0
        for batch in self.stage.held_out_batches():
            with self.compute.autocast():
                spent += total_bits(prior, *_placed(batch, self.compute))
            codes += batch.codes.numel()
            images += len(batch.codes)
        spent, codes, images = (sum(each) for each in zip(*processes.numbers(spent, codes, images), strict=True))
        found = spent / codes
        better = found <= self.best
        if better:  # before the log: a kill in between leaves an evaluation to be made again
            self.best = found
            if processes.first():
                self.stage.write(state, found)
        record = {"kind": "evaluation", "step": state.step, "bits_per_code": found, "bits_per_image": spent / images}
        self.log.write(record)
        self.display.say(
            f"step {state.step}  held out: {found:.4f} bits a code, {spent / images:.1f} bits an image"
            + ("  (best so far, kept)" if better else f"  (best: {self.best:.4f})")
        )
        if processes.first():
            self.stage.evaluated(self.run, self.log.records)


class PriorStage:
    """The training of one level's prior: its codes, its folder, and what is kept of it."""

    def __init__(
        self, run: RunFolder, config: Config, maps: CodeMaps, model: Autoencoder, model_digest: str, level: int,
        evaluated: Evaluated,
    ) -> None:  # fmt: skip
        self.run = run
        self.config, self.maps, self.level, self.model_digest = config, maps, level, model_digest
        self.training = config.prior.training_of(level)
        self.codes = LevelCodes(maps, model, level)
        self.kept, self.held_out = held_out_split(len(maps), config.prior.held_out, self.training.seed)
        self.evaluated = evaluated

    @property
    def source(self) -> Path:
        """The file that says whose codes the prior knows."""
        return self.run.path / "autoencoder.txt"

    def held_out_batches(self) -> Iterator[LevelBatch]:
        """This process's part of the held-out codes; as many images as `training.evaluation_images` in all, at most."""
        held_out = self.held_out[: self.training.evaluation_images]
        return self.codes.in_order(held_out[processes.part().of(len(held_out))], self.training.batch_size)

    def write(self, state: TrainState, bits_per_code: float) -> None:
        """Write the averaged prior for sampling."""
        counts = np.bincount(self.maps.labels, minlength=max(1, len(self.maps.classes)))
        with saving_errors(self.run, state):
            save_prior(
                self.run.model, self.config, state.averaged.module.state_dict(), level=self.level, step=state.step,
                autoencoder=self.model_digest, classes=self.maps.classes, class_counts=counts.tolist(),
                bits_per_code=bits_per_code,
            )  # fmt: skip

    def like(self) -> Prior:
        """A network of this level's shapes, whose weights are drawn."""
        return build_prior(self.config, self.level, len(self.maps.classes))

    def start(self, start_from: str) -> tuple[Prior, str]:
        """A network with the weights of that model's prior of this level, and a line that says so.

        Raises:
            InputError: it has no prior of this level, or one of other shapes.
        """
        prior = self.like()
        return prior, start_prior(prior, self.config, self.level, self.maps.classes, start_from)

    def _prepare(self) -> None:
        """Make the level's folder. Raises InputError where it holds a prior of another state of the autoencoder."""
        if self.source.is_file() and self.run.begun() and self.source.read_text() != self.model_digest:
            raise InputError(
                f"{self.run.path} holds a prior of another state of the autoencoder; "
                "delete that folder to train it anew"
            )
        self.run.prepare(self.config)
        storage.write_atomic(self.source, self.model_digest.encode())

    def train(self, compute: Compute, *, resume: bool, say: Say) -> Outcome:
        """Train into the level's folder.

        Raises:
            InputError: it holds a prior of another state of the autoencoder.
            NonFiniteError: as `train_stage` does.
        """
        run, start_from = self.run, self.training.start_from
        processes.require_equal_parts(self.training.batch_size)
        if start_from and not processes.on_first(run.begun):
            self.start(start_from)  # raises where it does not fit, before anything is written
        processes.on_first(self._prepare)

        def fresh() -> Prior:
            if not start_from:
                return compute.place_model(self.like())
            model, told = self.start(start_from)
            say(told)
            return compute.place_model(model)

        state = begin(run, self.training, compute, fresh=fresh, like=self.like, resume=resume, say=say)
        prior = state.model
        assert isinstance(prior, Prior)
        say(
            f"{self.config.name}, prior of level {self.level + 1}: {counted(len(self.kept), 'image')}, "
            f"{len(self.held_out):,} held out, {count_parameters(prior):,} parameters, {compute.precision}"
        )
        return train_stage(
            run, self.training, compute, state, samples=len(self.kept),
            stream=self.codes.stream(self.kept, self.training.batch_size, self.training.seed, state.step),
            step=PriorStep(prior, self.training.seed, compute),
            evaluation=lambda log, display: HeldOutHook(
                self, self.training.evaluate_every, run, log, display, compute
            ),
            write_model=lambda state: None,
        )  # fmt: skip


def train_priors(
    path: str | Path, configs: dict[int, Config], *, resume: bool, evaluated: Evaluated = lambda *_: None,
    say: Say = print,
) -> dict[int, Outcome]:  # fmt: skip
    """Train the priors of a run's levels, one after the other; -> how each ended.

    Ends early where a signal stopped one.

    Args:
        path: the run folder, whose autoencoder is trained.
        configs: level (0 is the coarsest) -> the configuration of its prior.
        evaluated: called with a level's folder and the records of its log after each evaluation, to draw them.

    Raises:
        InUseError: another process trains one of them.
        InputError: no trained autoencoder, no data, a prior that is there already (without `resume`).
        NonFiniteError: as the autoencoder's training does.
    """
    folders = {level: prior_folder(path, level) for level in configs}
    run = RunFolder(Path(path))
    model, config, digest = load_with_digest(path)
    first = next(iter(configs.values()))
    loggers.require(first.prior.training.loggers)
    config = dataclasses.replace(config, data=first.data)
    device = Compute.of(first.prior.training).device
    outcomes = {}

    def prepare() -> None:
        """What was asked for holds for levels that a signal keeps from beginning."""
        for level, folder in folders.items():
            folder.prepare(configs[level])

    def require_all_new() -> None:
        for folder in folders.values():
            require_new(folder, "delete that folder to train it anew")

    with ExitStack() as locks:
        for folder in folders.values():
            locks.enter_context(processes.held_by_first(folder.locked))
        if not resume:
            processes.on_first(require_all_new)
        if first.prior.codes is None:
            maps = stored_or_extracted(run.codes, model, digest, config, "train", device, say)
        else:
            maps = maps_of_shards(run.codes, Path(first.prior.codes), model, config, say)
        processes.on_first(prepare)
        for level, folder in folders.items():
            training = configs[level].prior.training
            if training.threads:
                torch.set_num_threads(training.threads)
            stage = PriorStage(folder, configs[level], maps, model, digest, level, evaluated)
            outcomes[level] = stage.train(Compute.of(training), resume=resume, say=say)
            if outcomes[level].signal is not None:
                break
    return outcomes
