"""A run's autoencoder as a folder with two graphs, written only if they do what the model does."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hrvqvae.checkpoints.export import without_paths
from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.config import Config, to_dict
from hrvqvae.export.agreement import Agreement, compare
from hrvqvae.export.forms import FORMS, GraphModel
from hrvqvae.export.trace import trace
from hrvqvae.models.base import Autoencoder
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import TEMPORARY


def check_images(config: Config, least: int) -> list[Tensor]:
    """Drawn images of two sizes: that of training, and one that need not fill the grid; and of two numbers of images.

    Args:
        least: pixels that each side must have.
    """
    generator, size = torch.Generator().manual_seed(0), max(config.data.size, least)
    batches = []
    for count, height, width in ((3, size, size), (1, size + 3, size + size // 2 + 1)):
        noise = torch.rand(count, config.data.channels, height, width, generator=generator)
        coarse = torch.rand(count, config.data.channels, 4, 4, generator=generator)
        smooth = interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
        batches.append(0.9 * smooth + 0.1 * noise)
    return batches


def _compared(model: Autoencoder, graphs: GraphModel, batches: Sequence[Tensor]) -> Agreement:
    """Raises InputError where the graphs fail on these images, as those do that hold a size for a constant."""
    try:
        return reduce(add, (compare(model, graphs, images) for images in batches))
    except Exception as error:  # of whatever runs the graphs, each with errors of its own
        reason = " ".join(str(error).split())[-200:]
        raise InputError(f"the {graphs.name} graphs fail on images of another number or size ({reason})") from error


def export_graphs(run: str | Path, out: Path, form: str, beam: int | None = None) -> tuple[list[Path], Agreement]:
    """Write the encoder and the decoder of a run as graphs, and check them against the model; -> the files.

    Written whole or not at all.

    Args:
        form: "onnx" or "torch".
        beam: paths that the encoder's search keeps at each level; None keeps as many as it was trained with.

    Raises:
        InputError: the run has no model, or no linked codebooks for a beam, a package is missing, the system can't be
            traced, the graphs fail or do not agree with the model, `out` exists or can't be written.
    """
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder")
    kind = FORMS[form]
    kind.require()
    model, config = load_with_config(run, beam=beam)
    graphs = trace(model, config)
    about = {"config": to_dict(without_paths(config)), "prefixes": list(model.prefixes)}
    partial = out.with_name(f"{TEMPORARY}{out.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for part, graph in (("encoder", graphs.encoder), ("decoder", graphs.decoder)):
            (partial / f"{part}{kind.suffix}").write_bytes(kind.to_bytes(graph, about))
        written = kind(partial)
        agreement = _compared(model, written, check_images(config, graphs.least))
        if not agreement.holds:
            raise InputError(f"the {kind.name} graphs of {run} do not agree with the model ({agreement})")
        partial.rename(out)
    except OSError as error:
        raise InputError(f"{out} can't be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(path for path in out.iterdir()), agreement
