"""A run's autoencoder as a folder of two ONNX graphs that give its codes, except at ties, and its images.

encoder: images (B, C, Y, X) float32 in [0, 1] -> a tensor of codes (B, H_l, W_l) int64 for each level, coarse first
decoder: codes of every level, levels () int64 -> images (B, C, Y', X') float32 in [0, 1]

B, Y and X are free. The encoder's graph repeats an image's last rows and columns where it does not fill its grid, as
`encode` does. The decoder's graph gives all that the grid holds: the image is its part `[..., :Y, :X]`. Values are not
checked inside a graph: a code out of range is an error of the runtime, or another codeword.
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.export import Dim

from hrvqvae.checkpoints.export import without_paths
from hrvqvae.checkpoints.run import Run
from hrvqvae.config import Config, to_dict
from hrvqvae.models.base import Autoencoder
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import create_folder
from hrvqvae.utils.quantities import counted

PIXELS = 1e-4
"""What rounding may change of an image, on the scale [0, 1]."""

_ABOUT = "hrvqvae"  # the name of a file's metadata: JSON with the configuration and the numbers of levels to decode
_PARTS = ("encoder", "decoder")
_NEEDS = ("onnx", "onnxscript", "onnxruntime")
_NEAR = 32  # images that are looked at beside one whose codes differ
_EXAMPLE = 3  # images, and positions of the coarsest grid a side: a size of 1 would be taken for a constant


class _Encoder(nn.Module):
    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor) -> Codes:
        return self.autoencoder.encode(images)


class _Decoder(nn.Module):
    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.progressive = getattr(autoencoder, "progressive_decoder", None)  # whose weights are the graph's too

    def forward(self, codes: Codes, levels: Tensor) -> Tensor:
        return self.autoencoder.decode_prefix(codes, levels)


def trace(autoencoder: Autoencoder, config: Config) -> tuple[bytes, bytes, int]:
    """(encoder, decoder, least image size a side) of a model in evaluation mode on the CPU.

    The least size has two positions a side on the coarsest grid: torch takes one for a constant. Raises InputError
    where torch.export can't trace the system.
    """

    def rows_of(size: int) -> int:
        return min(config.model.latent_grids(size, size)[0])

    least = next(size for size in itertools.count(1) if rows_of(size) >= 2)
    size = next(one for one in itertools.count(least + 1) if rows_of(one) >= _EXAMPLE)
    names = tuple(f"codes_{level}" for level in range(1, len(config.model.num_symbols) + 1))
    batch, height, width = Dim("batch", min=1), Dim("height", min=least), Dim("width", min=least)
    images = torch.rand(_EXAMPLE, autoencoder.channels, size, size + least)
    about = {"config": to_dict(without_paths(config)), "prefixes": list(autoencoder.prefixes)}
    with torch.no_grad(), _silent():
        codes = autoencoder.encode(images)
        free = ({0: batch, 2: height, 3: width},)
        encoder = _traced(_Encoder(autoencoder), (images,), free, ("images",), names, about)
        rows, columns = Dim("rows", min=rows_of(least)), Dim("columns", min=rows_of(least))
        times = [len(code[0]) // len(codes[0][0]) for code in codes]  # coarse first: a whole number
        sides = [(rows, columns) if n == 1 else (rows * n, columns * n) for n in times]
        grids = tuple({0: batch, 1: height_of_grid, 2: width_of_grid} for height_of_grid, width_of_grid in sides)
        given = (codes, torch.tensor(1))
        decoder = _traced(_Decoder(autoencoder), given, (grids, None), (*names, "levels"), ("images",), about)
    return encoder, decoder, least


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing is printed or logged by torch, which reports its internals when it traces and reads graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with catch_warnings(), redirect_stderr(io.StringIO()):
            simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _traced(
    module: nn.Module, arguments: tuple[Any, ...], dynamic: tuple[Any, ...], inputs: tuple[str, ...],
    outputs: tuple[str, ...], about: dict[str, Any],
) -> bytes:  # fmt: skip
    """The file of a graph, with what it is about as JSON; `dynamic`: the inputs' free sizes as for torch.export."""
    try:
        program = torch.export.export(module, arguments, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch names many kinds
        reason, system = " ".join(str(error).split())[:160], about["config"]["model"]["system"]
        raise InputError(f"torch.export can't trace the system {system} ({reason})") from error
    exported = torch.onnx.export(
        program, dynamo=True, verbose=False, external_data=False, input_names=inputs, output_names=outputs,
        dynamic_shapes=dynamic,
    )  # fmt: skip
    assert exported is not None
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # with the paths of this machine
    exported.model.metadata_props[_ABOUT] = json.dumps(about, sort_keys=True)
    return exported.model_proto.SerializeToString()  # type: ignore[no-any-return]


class OnnxModel:
    """The encoder and the decoder of a folder, run by onnxruntime on the CPU with as many threads as torch has."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # its errors are raised
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(folder / f"{part}.onnx", options, ["CPUExecutionProvider"]) for part in _PARTS
        )

    def encode(self, images: Tensor) -> Codes:
        """Codes of images (B, C, Y, X), float32 in [0, 1]: (B, H_l, W_l) int64 of each level, coarse first."""
        return self._run(self._encoder, images)

    def decode(self, codes: Codes, levels: int) -> Tensor:
        """Images (B, C, Y', X') float32 in [0, 1], as large as the grid, from codes of every level."""
        return self._run(self._decoder, *codes, torch.tensor(levels))[0]

    @staticmethod
    def _run(session: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = {one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), inputs, strict=True)}
        return tuple(torch.from_numpy(one) for one in session.run(None, given))


@dataclass
class Agreement:
    """The outcome of a comparison; a code that is neither equal nor an error is a tie."""

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
def compare(model: Autoencoder, graphs: OnnxModel, batches: Iterable[Tensor]) -> Agreement:
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
    """How many codes of a graph are those of no image near the one that it was given: what differs else is a tie."""
    errors = [one != other for one, other in zip(ours, theirs, strict=True)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(_NEAR):
        if not any(one.any() for one in errors):
            break
        noise = torch.rand(images.shape, generator=generator) * 2 - 1
        codes = model.encode((images + PIXELS * noise).clamp(0, 1))
        errors = [one & (code != other) for one, code, other in zip(errors, codes, theirs, strict=True)]
    return sum(int(one.sum()) for one in errors)


def _check_images(config: Config, least: int) -> list[Tensor]:
    """3 images of the size of training, and 1 that need not fill the grid; `least` or more pixels a side."""
    generator, size = torch.Generator().manual_seed(0), max(config.data.size, least)
    sizes = (3, size, size), (1, size + 3, size + size // 2 + 1)
    return [torch.rand(count, config.data.channels, *side, generator=generator) for count, *side in sizes]


def export_graphs(run: str | Path, out: Path, beam: int | None = None) -> tuple[list[Path], Agreement]:
    """Write the encoder and the decoder of a run as graphs that agree with it, whole or not at all; -> the files.

    Args:
        beam: paths that the encoder's search keeps at each level; None keeps as many as in training.

    Raises:
        InputError: the run has no model, or no linked codebooks for a beam, the system can't be traced, the graphs fail
            or do not agree with the model, `out` exists or can't be written.
        ModuleNotFoundError: a package is missing.
    """
    with create_folder(out) as folder:
        for module in _NEEDS:
            importlib.import_module(module)
        model, config = Run(run).load(beam=beam)
        encoder, decoder, least = trace(model, config)
        for part, content in zip(_PARTS, (encoder, decoder), strict=True):
            (folder / f"{part}.onnx").write_bytes(content)
        try:
            agreement = compare(model, OnnxModel(folder), _check_images(config, least))
        except Exception as error:  # of the runtime, where a size was taken for a constant
            why = " ".join(str(error).split())[-200:]
            raise InputError(f"the graphs fail on images of another number or size ({why})") from error
        if agreement.errors or agreement.pixels > PIXELS:
            raise InputError(f"the graphs of {run} do not agree with the model ({agreement})")
    return sorted(out.iterdir()), agreement
