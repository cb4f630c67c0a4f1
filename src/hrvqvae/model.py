"""The Python interface: `Model` encodes, decodes, compresses, samples and completes; `train` and
`load` return it.

`torch_defaults` computes with torch's own defaults, whatever the caller has set.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.checkpoints import hub
from hrvqvae.checkpoints.entropy import (
    fit_entropy_model,
    load_entropy_model,
)
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import open_run
from hrvqvae.compression import hrv
from hrvqvae.compression.decoder_search import open_encoder
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.images import decode_images, make_files
from hrvqvae.config import Grid
from hrvqvae.config.parsing import OWN_IMAGES
from hrvqvae.data.images import as_images, list_images
from hrvqvae.data.loading import open_images
from hrvqvae.distributed import RankSlice
from hrvqvae.models.base import Autoencoder, Encode, pad_to_grid, to_unit_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.priors import generative
from hrvqvae.priors.base import Priors
from hrvqvae.priors.generative import KeptCodes, Sampled
from hrvqvae.priors.guidance import Guidance
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.quantize import Codes
from hrvqvae.utils.device import exact_float32, resolve_device, torch_defaults
from hrvqvae.utils.errors import InputError, expand_home, require
from hrvqvae.utils.grouping import slices
from hrvqvae.utils.locks import InUseError, lock_folder
from hrvqvae.utils.progress import note, tracked

Images = Any
"""Tensors, arrays, PIL images, paths, or a sequence of these (`data.images.list_images`)."""
Mask = Tensor | NDArray[np.bool_]
_BATCH_SIZE = 64


class Model:
    """An autoencoder in evaluation mode, its configuration, and its priors. The priors are loaded
    at first use.

    Images are (B, C, Y, X); codes are a tuple of int64 tensors (B, H_l, W_l), coarse first. The
    arguments are those of `load`.
    """

    @torch_defaults()
    def __init__(
        self, run: str | Path, device: str | torch.device = "cpu", beam: int | None = None
    ) -> None:
        self.run = open_run(run)
        self.autoencoder, self.config = self.run.load(str(device), beam)
        self.beam = beam
        self.device = resolve_device(device)
        self._entropy_model: EntropyModel | None = None
        self._fit_failed = False
        self._priors: Priors | None = None
        self._generators = dict[tuple[int | None, str | None], Autoencoder]()  # by levels, decoder

    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device and return it. Raises InputError if there is none."""
        self.device = resolve_device(str(device))
        self.autoencoder.to(self.device)
        self._generators.clear()
        self._priors = None
        return self

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device = "cpu",
        beam: int | None = None,
        **options: Any,
    ) -> Self:
        """Load a model as `load` does, or user/name from the Hugging Face hub.

        Options are those of `huggingface_hub.snapshot_download`: revision, token, cache_dir, ...
        """
        if hub.is_hub_name(name) and not expand_home(name).exists():
            name = hub.fetch(str(name), **options)
        return cls(name, device, beam)

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> None:
        """Write the model with its priors, config.json and a card into a new folder; see
        `hrvqvae export`.
        """
        export(self.run.path, expand_home(folder), license=license)

    def push_to_hub(self, name: str, *, license: str | None = None, **options: Any) -> str:
        """Upload the folder of `save_pretrained` to the hub as user/name; return its address.

        Options are private, and those of `huggingface_hub.HfApi.upload_folder`: token, ...
        """
        return hub.push(self.run.path, name, license=license, **options)

    @property
    def priors(self) -> Priors:
        """The priors of all levels. Raises InputError if a prior is missing or of another state."""
        return self.load_priors(len(self.config.model.num_symbols))

    @torch_defaults()
    def load_priors(self, num_levels: int) -> Priors:
        """Return the priors of the first levels at least. Raises InputError as `priors`."""
        priors = self._priors
        # the priors in memory may end before the last of these levels
        if priors is None or priors.networks[-1].levels[-1].index + 1 < num_levels:
            priors = self._priors = self.run.load_priors(num_levels)
            for network in priors.networks:
                network.to(self.device)
        return priors

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of the priors. Raises InputError without priors."""
        return self.load_priors(1).classes

    def load_generator(self, levels: int | None = None, decoder: str | None = None) -> Autoencoder:
        """Return the autoencoder with the decoder of samples; see `RunFolder.load_generator`."""
        key = (levels, decoder)
        if key not in self._generators:
            self._generators[key] = self.run.load_generator(self.autoencoder, self.config, *key)
        return self._generators[key]

    @property
    def entropy_model(self) -> EntropyModel:
        """The entropy model, which writes and reads files of codes; one without networks if none
        was fitted. Raises InputError if it is damaged or was fitted for other weights.
        """
        if self._entropy_model is None:
            self._entropy_model = load_entropy_model(self.run)
        return self._entropy_model

    def fit_entropy_model(self) -> None:
        """Fit the entropy model to the training images, unless the run has one.

        Without the training images, files are written without it, with one note.
        """
        if self._fit_failed or self.run.tables.is_file():
            return
        note(f"{self.run} has no entropy model: fitting it to the training images, once")
        try:
            self._entropy_model = fit_entropy_model(self.run, device=self.device)
        except InUseError:
            raise
        except InputError as error:
            note(f"files are larger without an entropy model: {error}")
            self._fit_failed = True

    @torch_defaults()
    @torch.no_grad()
    def encode(self, images: Images, *, effort: int = 0) -> Codes:
        """Return the codes of images of one size.

        Args:
            images: Tensors (B, C, Y, X), uint8 or float32 in [0, 1]; or arrays (B, Y, X, C), PIL
                images or paths. A single image is a batch of one.
            effort: Effort 0 takes the codewords nearest to the latents. Efforts 1 and 2 look at the
                decoded image too, for less error at the same number of codes; they take about
                two and seven times as long.

        Raises:
            InputError: The images do not fit the model; the effort is not 0, 1 or 2, or the model
                of several latent grids takes none.
        """
        batch = as_images(images, self.autoencoder.channels, self.config.data.max_pixels)
        return self.encoder(effort=effort)(batch.to(self.device))

    def encoder(self, levels: int | None = None, effort: int = 0) -> Callable[[Tensor], Codes]:
        """Return a function that encodes images on the model's device; see `encode`.

        With an effort, the codes minimize the error of the first `levels`; otherwise `levels`
        changes nothing. Raises InputError if they are out of range.
        """
        self.autoencoder.check_levels(levels)
        return open_encoder(self.autoencoder, levels, effort)

    @torch_defaults()
    @torch.no_grad()
    def decode(
        self, codes: Codes | Tensor, levels: int | None = None, size: Grid | None = None
    ) -> Tensor:
        """Return images (B, C, Y, X) float32 in [0, 1]. Fewer than all levels go to the progressive
        decoder, if any.

        Raises InputError if levels or codes are out of range, or the size does not fit the codes.

        Args:
            codes: A tuple with the codes of each level, or one tensor (B, L, H, W); at least the
                levels to use.
            levels: Number of levels to use, coarse first (default: all given).
            size: Height and width in pixels (default: the largest size that has the latent grid of
                the codes).
        """
        try:
            if hasattr(codes, "ndim"):
                codes = _to_tensor(codes).unbind(1)
            batch = tuple(_to_tensor(code).to(self.device) for code in codes)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise InputError(
                f"codes are {reprlib.repr(codes)}; they must be a tensor (B, H, W) per level"
            ) from error
        # other integers become int64; the autoencoder refuses floats
        batch = tuple(
            code.long() if torch.can_cast(code.dtype, torch.long) else code for code in batch
        )
        for level, code in enumerate(batch, 1):
            if code.ndim != 3 or 0 in code.shape[1:]:
                shape = tuple(code.shape)
                raise InputError(f"codes of level {level} have shape {shape}; expected (B, H, W)")
        return self.autoencoder.decode(batch, levels, size)

    @torch_defaults()
    def compress(
        self,
        images: Images,
        levels: int | None = None,
        max_bytes: int | None = None,
        names: Sequence[str] | None = None,
        effort: int = 0,
    ) -> list[bytes]:
        """Return the content of a file of codes (.hrv, docs/format.md) for each image.

        Args:
            images: As for `encode`, but images of a sequence may have several sizes.
            levels: Number of levels to write, coarse first (default: all).
            max_bytes: Largest size of a file. It has all levels if they fit; else each position
                stops at a level of its own, or all have the most levels that fit (docs/method.md).
            names: Names of the images in messages (default: image 1, image 2, ...).
            effort: As for `encode`, for the error of the written levels.

        Raises:
            InputError: As for `encode`; levels are out of range; max_bytes is too small.
        """
        self.encoder(levels, effort)  # raises InputError first
        self.fit_entropy_model()
        model = self.autoencoder
        entropy_model = self.entropy_model
        listed = list_images(images, model.channels, self.config.data.max_pixels)
        return make_files(
            model, entropy_model, listed, self.device, levels, max_bytes, effort, names
        )

    @torch_defaults()
    def decompress(
        self,
        files: bytes | Sequence[bytes],
        levels: int | None = None,
        max_pixels: int | None = None,
    ) -> list[Tensor]:
        """Return the image (C, Y, X) float32 in [0, 1] of each file of codes; a damaged file gives
        its intact levels.

        Args:
            files: The contents of the files; a single content is a list of one.
            levels: Largest number of levels to use, coarse first (default: all).
            max_pixels: Largest number of pixels of an image (default: `data.max_pixels` of the
                configuration).

        Raises:
            InputError: Levels are out of range, or a file was made by another model.
            DamagedFileError: The content is not a file of codes, fewer levels are intact than the
                model decodes, or the image exceeds max_pixels.
        """
        self.autoencoder.check_levels(levels)
        files = [files] if isinstance(files, bytes) else files
        max_pixels = max_pixels or self.config.data.max_pixels
        codes = hrv.read(self.entropy_model, files, levels, max_pixels=max_pixels)
        return decode_images(self.autoencoder, codes, self.device, levels)

    def tokenize(
        self,
        source: str | Path,
        out: str | Path,
        *,
        split: str = "all",
        effort: int = 0,
        part: tuple[int, int] = (1, 1),
        on_error: str = "stop",
        ray: bool = False,
    ) -> int:
        """Write the codes of the images in a folder as Parquet files, from which priors are
        trained; return the number of images. A second call goes on.

        Args:
            source: A folder of images, or what else `hrvqvae train --data` takes.
            out: The folder of the codes.
            split: "all", "train" or "test".
            effort: As for `encode`.
            part: (i, n) writes part i of n, so that n machines share the work.
            on_error: "skip" leaves out images that can't be read.
            ray: Encode on a cluster of Ray, or on all cores of this machine.

        Raises InputError if there are no images, or the folder holds other codes.
        """
        from hrvqvae.codes import store

        number, count = part
        require(1 <= number <= count, "part", f"{number}/{count}", "from 1/N to N/N")
        data = {"data.dataset": OWN_IMAGES, "data.root": str(source), "data.on_error": on_error}
        config = self.config.replace(**data)
        images = open_images(config.data, split)
        about = store.describe_codes(images, self.run.digest, config, effort, self.beam)
        out = expand_home(out)
        with lock_folder(out, note):
            if ray:
                opener = partial(_open_encoder, self.run.path, self.beam, effort)
                gpus = int(self.device.type == "cuda")
                store.write_on_ray(out, about, opener, images, gpus=gpus)
                return len(images)
            store.begin_codes(out, about)
        share = RankSlice(number - 1, count)
        encode = self.encoder(effort=effort)
        store.write_codes(out, about, encode, images, self.device, share=share)
        return len(images)

    def sample(
        self,
        count: int = 1,
        *,
        class_name: str | int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: Guidance | None = None,
        levels: int | None = None,
        decoder: str | None = None,
    ) -> Tensor:
        """Draw images (count, C, Y, X) float32 in [0, 1] of the training size; options are as in
        `SamplingParams`.

        Args:
            class_name: Name or index of a class (default: classes as often as in training).
            seed: Sample i depends on the seed and on i, not on count.
            guidance: How much samples follow their class; 1 leaves the prior's predictions as they
                are. A number, or a pair of numbers for the first and the last position.
            levels: Number of levels to draw, coarse first. For calls without guidance and levels,
                both come from sampling.json in the model's folder. With levels alone, guidance is
                1. With guidance alone, all levels are drawn, or those of sampling.json if a level
                has no prior.
            decoder: As in `SamplingParams`.

        Raises:
            InputError: A level has no prior, or a prior can't be guided; the class is unknown; a
                value is out of range.
        """
        options = self.run.sampling_options(guidance, levels)
        options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "decoder": decoder}
        params = SamplingParams(**options)
        return self.draw(count, seed=seed, class_name=class_name, params=params).images

    def draw(self, count: int, **options: Any) -> Sampled:
        """Draw as `sample` does, and return classes and codes beside the images; options are as in
        `draw_batches`.
        """
        if count < 1:
            raise InputError(f"the number of samples is {count}; it must be at least 1")
        batches = list(self.draw_batches(range(count), **options))
        classes = chain.from_iterable(batch.classes for batch in batches)
        levels = zip(*(batch.codes for batch in batches), strict=True)
        codes = tuple(torch.cat(level) for level in levels)
        return Sampled(torch.cat([batch.images for batch in batches]), tuple(classes), codes)

    def draw_batches(
        self,
        indices: Sequence[int],
        *,
        seed: int = 0,
        class_name: str | int | None = None,
        params: SamplingParams | None = None,
        kept: KeptCodes | None = None,
    ) -> Iterator[Sampled]:
        """Yield the samples of these indices in batches, so that any number fits into memory.

        `kept` codes are not drawn. `params` say how codes are drawn (default: as in sampling.json).
        """
        require(min(indices, default=0) >= 0, "indices", indices, "at least 0")
        require(seed >= 0, "seed", seed, "at least 0")
        params = params or SamplingParams(**self.run.sampling_options())
        num_levels = self.autoencoder.check_levels(params.levels)
        priors = self.load_priors(num_levels)
        networks = [prior for prior in priors.networks if prior.level.index < num_levels]

        # given kept codes, classes are not as frequent as in training
        weights: Sequence[float] = ()
        if kept is not None and priors.classes and class_name is None:
            with exact_float32(), torch_defaults():
                weights = generative.weigh_classes(
                    networks[0], priors.class_counts, kept, seed=seed
                )

        for batch in tracked(slices(indices, _BATCH_SIZE), "sample", len(indices), len):
            with exact_float32(), torch_defaults(), torch.no_grad():
                label = self.draw_labels(batch, seed, class_name, priors)
                if weights:
                    label = generative.draw_labels(weights, seed, batch)
                codes = generative.sample_codes(
                    networks,
                    self.autoencoder.codeword_indices,
                    batch,
                    seed=seed,
                    label=label,
                    params=params,
                    kept=kept,
                )[:num_levels]  # the last prior may cover more levels than wanted
                images = self._decode_samples(codes, label, params, kept)
            classes = [""] * len(images) if label is None else [priors.classes[i] for i in label]
            yield Sampled(images, tuple(classes), codes)

    def draw_labels(
        self, indices: Sequence[int], seed: int, class_name: str | int | None, priors: Priors
    ) -> Tensor | None:
        """Return the class (B,) of each sample; None if the priors have no classes."""
        if class_name is not None:
            return torch.full((len(indices),), priors.class_index(class_name))
        if not priors.classes:
            return None
        return generative.draw_labels(priors.class_counts, seed, indices)

    def _decode_samples(
        self, codes: Codes, label: Tensor | None, params: SamplingParams, kept: KeptCodes | None
    ) -> Tensor:
        """Return the images of samples with classes (B,). A kept part is decoded with all levels
        and pasted in.
        """

        def decode(decoder: Autoencoder, codes: Codes) -> Tensor:
            on_device = tuple(level.to(self.device) for level in codes)
            return decoder.decode(on_device, None, self.config.data.image_size).cpu()

        generator = self.load_generator(len(codes), params.decoder)
        if isinstance(generator, SingleGridAutoencoder):
            generator = generator.of_classes(label)
        images = decode(generator, codes)
        if kept is not None and len(codes) < len(kept.codes):
            reconstructions = decode(self.autoencoder, kept.codes)
            geometry = self.config.model.geometry
            images = generative.paste_kept_part(images, reconstructions, kept, geometry)
        return images

    @torch_defaults()
    def keep_part(self, image: Tensor, keep: float | str | Mask) -> KeptCodes:
        """Encode an image (C, height, width), and choose the codes that a completion keeps (see
        `complete`).
        """
        size = self.config.data.image_size
        keep = _as_mask(keep) if isinstance(keep, Tensor | np.ndarray) else keep
        for noun, pixels in {"image": image, "mask": keep}.items():
            if isinstance(pixels, Tensor) and pixels.shape[-2:] != size:
                sides = "x".join(map(str, pixels.shape[-2:]))
                expected = "x".join(map(str, size))
                raise InputError(f"the {noun} has {sides} pixels; this model completes {expected}")
        codes = tuple(code.cpu() for code in self.encode(image[None]))
        grids = [(code.shape[1], code.shape[2]) for code in codes]
        if isinstance(keep, Tensor):  # pad the mask as `encode` pads the image
            if keep.numel() != math.prod(size):
                raise InputError(f"the mask has shape {tuple(keep.shape)}; expected {size}")
            # The padded image has a square of `geometry.unit` pixels per code of the coarsest grid.
            geometry = self.config.model.geometry
            height, width = (geometry.unit * side for side in min(grids))
            mask = keep.reshape(1, 1, *size).float()
            # `pad_to_grid` scales the mask to -1 and 1
            keep = pad_to_grid(mask, geometry.margin // 2, height, width)[0, 0] > 0
        return KeptCodes(codes, generative.mask_kept_codes(keep, grids))

    def complete(
        self,
        image: Images,
        count: int = 1,
        *,
        keep: float | str | Mask = 0.5,
        class_name: str | int | None = None,
        seed: int = 0,
        params: SamplingParams | None = None,
    ) -> Tensor:
        """Complete an image (C, Y, X): keep the codes of a part of it and draw the rest.

        Codes at the border of the part also depend on a few pixels beyond it. Returns images
        (count, C, Y, X). Raises InputError as `sample`, or if the image does not have the
        training size or `keep` is not valid.

        Args:
            keep: A fraction in (0, 1) of the rows from the top, or a mask (Y, X) bool. Codes are
                drawn in raster order, and do not depend on kept codes after them.
            count: Number of completions.
            class_name: As for `sample` (default: drawn by how well the kept codes fit a class).
            seed: As for `sample`.
            params: How codes are drawn (default: as in sampling.json).
        """
        channels = self.autoencoder.channels
        batch = as_images(image, channels, self.config.data.max_pixels)
        if len(batch) != 1:
            raise InputError(f"there are {len(batch)} images; complete takes one")
        to_unit_images(batch, channels)  # only for its checks, before `keep` is looked at
        kept = self.keep_part(batch[0], keep)
        return self.draw(count, seed=seed, class_name=class_name, params=params, kept=kept).images

    @torch_defaults()
    def evaluate(self, data: Any = None, **options: Any) -> Any:
        """Return the report of `hrvqvae evaluate` (default: on the test images of the training).

        The weights on disk are measured, with this model's beam and on its device.

        Args:
            data: As for `train`. A data set without splits is measured whole.
            options: As for `evaluation.report.evaluate_run`, such as split, limit or effort.

        Raises:
            InputError: As `evaluate_run`.
        """
        from hrvqvae.training.options import collect_fields

        # by name: evaluation/ imports this module
        evaluate_run = resolve_name("hrvqvae.evaluation.report:evaluate_run")

        # Data sets are registered by the name of their run. "the data set" is no run, so it does
        # not replace the data that this run was trained on.
        root = collect_fields("training", {}, "the data set", data).get("data.root")
        options = {"device": str(self.device), "beam": self.beam, **options}
        return evaluate_run(self.run.path, root=root, **options)

    @torch_defaults()
    def train_prior(
        self, *, data: Any = None, level: int | None = None, resume: bool = False, **options: Any
    ) -> None:
        """Train the priors of the model's run folder, as `hrvqvae train-prior` does. Raises as
        `train`.

        Args:
            data: As for `train` (default: the images of the autoencoder's training).
            level: Train the prior of this level alone; 1 is the coarsest.
            resume: As for `train`.
            options: As for `train`, but the short names, such as "seed", set fields of
                `prior.training`.
        """
        from hrvqvae.distributed.launch import process_group
        from hrvqvae.training import options as arguments
        from hrvqvae.training import prior

        run = self.run.path
        fields = arguments.collect_fields("prior.training", options, run, data)
        with process_group():
            outcomes = prior.train(run, fields, level=level, resume=resume)
        self._priors = None  # the next sample reads the new priors
        arguments.raise_signal(*outcomes.values())


@torch_defaults()
def train(
    preset: str | Path,
    *,
    data: Any = None,
    test_data: Any = None,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    **options: Any,
) -> Model:
    """Train an autoencoder into a run folder, as `hrvqvae train` does, and return its model.

    Args:
        preset: A preset, a configuration file, or a run folder to resume.
        data: A folder of images; Parquet, tar or Arrow files; or a map-style torch `Dataset` of
            images (C, Y, X), uint8 or float in [0, 1], or of tuples (image, label). Default: the
            data of the preset.
        test_data: A second `Dataset`, to evaluate on (default: `data` is divided as the field
            `data.split` says).
        out: The run folder (default: runs/PRESET).
        resume: Continue from the newest checkpoint.
        force: Continue even if files of codes, priors and decoders become void.
        options: max_steps, max_minutes, seed, device, init_from, or any field of the configuration
            by its dotted name: `**{"model.quantizer.levels": 4}`.

    Raises InputError as the command does. Ctrl-C saves a checkpoint for `resume=True` and raises
    KeyboardInterrupt.
    """
    from hrvqvae.distributed.launch import process_group
    from hrvqvae.training import autoencoder
    from hrvqvae.training import options as arguments

    run = arguments.choose_run_folder(str(preset), out)
    fields = arguments.collect_fields("training", options, run.path, data, test_data)
    with process_group():
        outcome = autoencoder.train(str(preset), run, fields, resume=resume, force=force)
    arguments.raise_signal(outcome)
    return Model(run.path, options.get("device", "cpu"))


def load(run: str | Path, device: str | torch.device = "cpu", beam: int | None = None) -> Model:
    """Load a trained model: a run folder, or the name of a model inside the package.

    The encoder's search keeps the `beam` best partial sums at every level up to the last one
    (default: as in training). More of them give less error and take more time (docs/results.md).

    Raises:
        InputError: There is no such model or device, or the beam is below 1, or given for a model
            with a single level per grid.
        DamagedFileError: The weights are damaged or do not fit their configuration.
    """
    return Model(run, device, beam)


def _as_mask(mask: Mask) -> Tensor:
    """Return a mask as a bool tensor on the CPU, or raise InputError."""
    try:
        values = mask.bool().numpy(force=True) if isinstance(mask, Tensor) else mask
        return torch.from_numpy(values.astype(np.bool_, order="C"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the mask is {reprlib.repr(mask)}; it must be (Y, X) bool") from error


def _open_encoder(run: Path, beam: int | None, effort: int, device: str) -> Encode:
    """Return the encoder of a run, in a worker of Ray."""
    return Model(run, device, beam).encoder(effort=effort)


def _to_tensor(values: Any) -> Tensor:
    # torch takes no arrays with negative strides
    return torch.as_tensor(
        np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values
    )
