"""A run's autoencoder as a folder with two graphs that give its codes, except at ties, and its images."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hrvqvae.checkpoints.export import without_paths
from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.config import Config, to_dict
from hrvqvae.export.graphs import FORMS, GraphModel, trace
from hrvqvae.models.base import Autoencoder
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import writing_folder
from hrvqvae.utils.quantities import counted

PIXELS = 1e-4
"""The largest difference of images, on the scale [0, 1]."""

TIE = 1e-5
"""Two codes are tied where the distances from the vector to theirs differ by less than this share of the longest vector
of the image: about the error of float32 in another order of summation."""


@dataclass
class Agreement:
    """The outcome of a comparison.

    A code that is neither equal nor an error is a tie, or a finer code of an image in which a coarser one is tied.
    """

    images: int = 0
    codes: int = 0
    equal: int = 0
    errors: int = 0  # codes that differ and are no tie
    pixels: float = 0.0  # the largest difference of decoded images, over all numbers of levels

    def __str__(self) -> str:
        tied = self.codes - self.equal - self.errors
        wrong = f", {self.errors:,} wrong" if self.errors else ""
        return (
            f"{counted(self.images, 'image')}: {self.equal:,} of {self.codes:,} codes equal, {tied:,} tied{wrong}; "
            f"decoded images differ by at most {self.pixels:.1e}"
        )


@torch.inference_mode()
def compare(model: Autoencoder, graphs: GraphModel, batches: Iterable[Tensor]) -> Agreement:
    """Compare on batches of images (B, C, Y, X), float32 in [0, 1]."""
    found = Agreement()
    for images in batches:
        ours, theirs = model.encode(images), graphs.encode(images)
        found.images += len(images)
        found.codes += sum(one.numel() for one in ours)
        if [one.shape for one in ours] != [one.shape for one in theirs]:
            found.errors, found.pixels = found.codes, torch.inf
            break
        for levels in model.prefixes:
            one, other = model.decode(ours[:levels], levels), graphs.decode(ours, levels)
            apart = float((one - other).abs().max()) if one.shape == other.shape else torch.inf
            found.pixels = max(found.pixels, apart)
        found.equal += sum(int((one == other).sum()) for one, other in zip(ours, theirs, strict=True))
        found.errors += count_errors(model, images, ours, theirs)
    return found


def count_errors(model: Autoencoder, images: Tensor, ours: Codes, theirs: Codes) -> int:
    """How many codes differ and are no tie, each image judged by the coarsest level at which its codes differ."""
    errors = 0
    agreed = torch.ones(len(images), dtype=torch.bool)
    for level, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        differ = (one != other) & agreed[:, None, None]
        agreed &= ~differ.flatten(1).any(1)
        if not differ.any():
            continue
        pairs, others = model.assignments(images, ours), model.assignments(images, theirs)
        if not pairs:
            errors += int(differ.sum())
            continue
        target, chosen = pairs[level]
        length = target.norm(dim=-1).amax((1, 2), keepdim=True)
        apart = (target - chosen).norm(dim=-1) - (target - others[level][1]).norm(dim=-1)
        errors += int((differ & (apart.abs() > TIE * length)).sum())
    return errors


def _check_images(config: Config, least: int) -> list[Tensor]:
    """3 images of the size of training, and 1 that need not fill the grid; `least` or more pixels a side."""
    generator, size = torch.Generator().manual_seed(0), max(config.data.size, least)
    batches = []
    for count, height, width in ((3, size, size), (1, size + 3, size + size // 2 + 1)):
        noise = torch.rand(count, config.data.channels, height, width, generator=generator)
        coarse = torch.rand(count, config.data.channels, 4, 4, generator=generator)
        smooth = interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
        batches.append(0.9 * smooth + 0.1 * noise)
    return batches


def export_graphs(run: str | Path, out: Path, form: str, beam: int | None = None) -> tuple[list[Path], Agreement]:
    """Write the encoder and the decoder of a run as graphs that agree with it, whole or not at all; -> the files.

    Args:
        form: "onnx" or "torch".
        beam: paths that the encoder's search keeps at each level; None keeps as many as in training.

    Raises:
        InputError: the run has no model, or no linked codebooks for a beam, the system can't be traced, the graphs fail
            or do not agree with the model, `out` exists or can't be written.
        ModuleNotFoundError: a package is missing.
    """
    kind = FORMS[form]
    with writing_folder(out) as folder:
        for module in kind.needs:
            importlib.import_module(module)
        model, config = load_with_config(run, beam=beam)
        encoder, decoder, least = trace(model, config)
        about = json.dumps(
            {"config": to_dict(without_paths(config)), "prefixes": list(model.prefixes)}, sort_keys=True
        )  # fmt: skip
        for part, graph in (("encoder", encoder), ("decoder", decoder)):
            (folder / f"{part}{kind.suffix}").write_bytes(kind.to_bytes(graph, about))
        try:
            agreement = compare(model, kind(folder), _check_images(config, least))
        except Exception as error:  # of the runtime, where a size was taken for a constant
            why = " ".join(str(error).split())[-200:]
            raise InputError(f"the {kind.name} graphs fail on images of another number or size ({why})") from error
        if agreement.errors or agreement.pixels > PIXELS:
            raise InputError(f"the {kind.name} graphs of {run} do not agree with the model ({agreement})")
    return sorted(out.iterdir()), agreement
