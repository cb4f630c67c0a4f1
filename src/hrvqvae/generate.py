"""New images from a run: samples, completions, and how recognizable and how new they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hrvqvae import data
from hrvqvae.checkpoint import Priors, load_priors, load_with_config
from hrvqvae.config import Config, DataConfig, Grid
from hrvqvae.data.images import read_square
from hrvqvae.errors import InputError
from hrvqvae.evaluation.classifier import train_judge
from hrvqvae.pictures import sheets
from hrvqvae.sampling import Draw, Known, Sampler, draw_labels, sample_cached, sample_codes

SAMPLING_BATCH = 64
_COMPLETIONS_A_ROW = 8
_NEAREST_BLOCK = 2_048


@dataclass(frozen=True)
class Sampled:
    """Samples of a run: images (B, C, Y, X) float32 in [0, 1], and the class of each ("" where there are none)."""

    images: Tensor
    classes: tuple[str, ...]


def _class_number(run: str | Path, priors: Priors, name: str) -> int:
    """Number of the class of that name, or of that number. Raises InputError with the names there are."""
    if not priors.classes:
        raise InputError(f"the priors of {run} know no classes; leave --class out")
    if name in priors.classes:
        return priors.classes.index(name)
    if name.isdecimal() and int(name) < len(priors.classes):
        return int(name)
    raise InputError(f"class {name!r} is not one of {', '.join(priors.classes)} (or 0..{len(priors.classes) - 1})")


class Generative:
    """A run with its priors: draws new images and completes given ones, on the CPU, in float32.

    Raises:
        InputError: no such run, a level without a prior.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = run
        self.model, self.config = load_with_config(run)
        self.priors = load_priors(run)
        self.model.requires_grad_(False)

    @torch.inference_mode()
    def sample(
        self, count: int, *, seed: int = 0, class_name: str | None = None, draw: Draw | None = None,
        known: Known | None = None, sampler: Sampler = sample_cached,
    ) -> Sampled:  # fmt: skip
        """Draw `count` images; without a class, classes come as often as in training.

        Args:
            known: codes of one image that each sample keeps.

        Raises:
            InputError: an unknown class, a value out of range.
        """
        if count < 1:
            raise InputError(f"the number of samples is {count}; it must be at least 1")
        if seed < 0:
            raise InputError(f"seed is {seed}; it must be at least 0")
        priors, size = self.priors, self.config.data.size
        number = None if class_name is None else _class_number(self.run, priors, class_name)
        images, names = [], list[str]()
        for start in range(0, count, SAMPLING_BATCH):
            numbers = range(start, min(start + SAMPLING_BATCH, count))
            label = None
            if priors.classes:
                label = draw_labels(priors.class_counts, seed, numbers)
                label = label if number is None else torch.full_like(label, number)
                names += [priors.classes[index] for index in label.tolist()]
            some = None
            if known is not None:
                some = Known(tuple(codes.expand(len(numbers), -1, -1) for codes in known.codes), known.where)
            codes = sample_codes(
                priors.levels, self.model.paths, numbers, seed=seed, label=label, draw=draw or Draw(), known=some,
                sampler=sampler,
            )  # fmt: skip
            images.append(self.model.decode(codes, size=(size, size)))
        return Sampled(torch.cat(images), tuple(names or [""] * count))


def sample(
    run: str, count: int, out: Path, *, seed: int = 0, class_name: str | None = None, draw: Draw | None = None,
    save_dir: Path | None = None,
) -> None:  # fmt: skip
    """Write a sheet of samples, and a PNG file of each to `save_dir`, named with class and number.

    Raises:
        InputError: as `Generative`; a file can't be written.
    """
    sheets.check_name(out)
    generative = Generative(run)
    if save_dir is not None:
        try:
            save_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{save_dir} can't be made ({error.strerror or error})") from error
    drawn = generative.sample(count, seed=seed, class_name=class_name, draw=draw)
    sheets.save(sheets.grid(list(drawn.images)), out)
    if save_dir is not None:
        digits = max(4, len(str(count - 1)))
        for number, (image, name) in enumerate(zip(drawn.images, drawn.classes, strict=True)):
            prefix = f"{name}-" if name else ""
            sheets.save(sheets.to_pil(image), save_dir / f"{prefix}{number:0{digits}d}.png")


def kept_parts(keep: str, grids: Sequence[Grid]) -> tuple[Tensor, ...]:
    """(H_l, W_l) bool of each grid: what `top`, `left`, or a fraction of the rows from the top, keeps.

    The border is one of the coarsest grid's, so that no code is kept whose parent is drawn anew.

    Raises:
        InputError: it is none of these, or keeps nothing or everything.
    """
    rows, columns = min(grids)
    where = torch.zeros(rows, columns, dtype=torch.bool)
    if keep == "left":
        where[:, : columns // 2] = True
    else:
        try:
            share = 0.5 if keep == "top" else float(keep)
        except ValueError as error:
            raise InputError(f"--keep is {keep!r}; it must be top, left, or a fraction between 0 and 1") from error
        if not 0 < share < 1:
            raise InputError(f"--keep is {keep}; a fraction lies between 0 and 1")
        where[: round(rows * share)] = True
    if where.all() or not where.any():
        raise InputError(f"--keep {keep} keeps {int(where.sum())} of {where.numel()} codes of a grid of {rows} rows")
    return tuple(where.repeat_interleave(h // rows, 0).repeat_interleave(w // columns, 1) for h, w in grids)


@torch.inference_mode()
def complete(
    run: str, path: Path, keep: str, count: int, out: Path, *, seed: int = 0, class_name: str | None = None,
    draw: Draw | None = None,
) -> None:  # fmt: skip
    """Write a sheet: an image, what is kept of it, and `count` completions whose codes of the kept part are its own.

    The image is brought to the size that the run was trained on. Codes at the border of the kept part have seen a few
    pixels beyond it, as far as the encoder's filters reach.

    Raises:
        InputError: as `Generative`; the image can't be read; `keep` is none of top, left, a fraction.
    """
    sheets.check_name(out)
    generative = Generative(run)
    model, config = generative.model, generative.config
    size = config.data.size
    pixels = torch.from_numpy(read_square(path, model.channels, size, config.data.max_pixels, (0.5, 0.5)))
    codes = model.encode(pixels[None])
    where = kept_parts(keep, [(code.shape[1], code.shape[2]) for code in codes])
    drawn = generative.sample(count, seed=seed, class_name=class_name, draw=draw, known=Known(codes, where))
    shown = torch.nn.functional.interpolate(where[-1][None, None].float(), (size, size))[0]
    part = pixels / 255 * shown + 0.5 * (1 - shown)
    rows = [sheets.Row("original, and what is kept", [pixels, part])]
    images = list(drawn.images)
    for start in range(0, count, _COMPLETIONS_A_ROW):
        rows.append(sheets.Row("" if start else "completions", images[start : start + _COMPLETIONS_A_ROW]))
    sheets.save(sheets.draw(rows), out)


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """What a classifier, trained on the data alone, takes samples for.

    Attributes:
        samples: drawn, a class after the other.
        recognized: share that is taken for the class that was asked for.
        classifier_accuracy: its accuracy on the test split.
    """

    samples: int
    recognized: float
    classifier_accuracy: float


def recognize(
    run: str | Path, config: DataConfig, count: int, *, seed: int = 0, say: Callable[[str], None] = print
) -> Recognized:
    """Draw `count` images, classes in turn, and have them classified.

    Raises:
        InputError: as `Generative`; no classes, or others than the data has; the data is not there.
    """
    generative = Generative(run)
    classes = generative.priors.classes
    if not classes:
        raise InputError(f"the priors of {run} know no classes: nothing can be recognized")
    if data.load(config, "train").classes != classes:
        raise InputError(f"the priors of {run} know other classes than the data has: {', '.join(classes)}")
    judge = train_judge(config, say=say)
    right = 0
    for number, name in enumerate(classes):
        wanted = count // len(classes) + (number < count % len(classes))
        if wanted:
            drawn = generative.sample(wanted, seed=seed + number, class_name=name)
            right += int((judge.classes(drawn.images) == number).sum())
    return Recognized(samples=count, recognized=right / count, classifier_accuracy=judge.accuracy)


def nearest_training_images(images: Tensor, config: Config) -> tuple[Tensor, list[float]]:
    """For each image (B, C, Y, X) in [0, 1] the training image with the least squared error, and its MSE."""
    best = torch.full((len(images),), float("inf"))
    found = torch.zeros_like(images)
    flat = images.flatten(1)
    batches = data.evaluation_batches(
        data.load(config.data, "train"), batch_size=_NEAREST_BLOCK, workers=config.data.workers,
        on_error=config.data.on_error,
    )  # fmt: skip
    for batch in batches:
        candidates = batch.images.float() / 255
        errors = torch.cdist(flat, candidates.flatten(1)).square() / flat.shape[1]
        error, index = errors.min(1)
        better = error < best
        best[better], found[better] = error[better], candidates[index[better]]
    return found, best.tolist()


def figure_classes(run: str, out: Path, count: int = 8, *, seed: int = 0) -> int:
    """Write a row of samples for each class, under its name; -> how many classes there are.

    Raises:
        InputError: as `Generative`; the priors know no classes; the file can't be written.
    """
    sheets.check_name(out)
    generative = Generative(run)
    classes = generative.priors.classes
    if not classes:
        raise InputError(f"the priors of {run} know no classes; draw samples: hrvqvae sample {run} -o {out}")
    rows = [
        sheets.Row(name, list(generative.sample(count, seed=seed + number, class_name=name).images))
        for number, name in enumerate(classes)
    ]
    sheets.save(sheets.draw(rows), out)
    return len(classes)


def figure_nearest(run: str, out: Path, count: int = 64, *, seed: int = 0, root: str | None = None) -> list[float]:
    """Write samples, each beside the training image that is nearest in pixels: a copy would show; -> their MSEs.

    Raises:
        InputError: as `Generative`; the data is not there; the file can't be written.
    """
    sheets.check_name(out)
    generative = Generative(run)
    drawn = generative.sample(count, seed=seed)
    found, errors = nearest_training_images(drawn.images, generative.config.with_root(root))
    pairs = [torch.cat([sample, near], dim=2) for sample, near in zip(drawn.images, found, strict=True)]
    sheets.save(sheets.grid(pairs), out)
    return errors
