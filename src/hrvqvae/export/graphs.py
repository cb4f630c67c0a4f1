"""A run's autoencoder as two ONNX graphs (docs/graphs.md).

encoder: from images (B, C, Y, X) float32 in [0, 1] to the codes (B, H_l, W_l) int64 of each level,
    coarse first
decoder: from the codes of every level and `levels`, () int64, to images (B, C, Y', X') float32 in
    [0, 1]

B, Y and X are free. The encoder pads an image to its grid; the decoder returns the whole grid,
whose part `[..., :Y, :X]` is the image. The graphs check no values. Codes equal those of the model,
except at ties.
"""

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
from hrvqvae.checkpoints.folder import open_run
from hrvqvae.config import Config, to_dict
from hrvqvae.models.base import Autoencoder
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError, one_line
from hrvqvae.utils.outputs import create_folder
from hrvqvae.utils.quantities import counted

TOLERANCE = 1e-4
"""Largest difference that rounding may make to an image, whose values are in [0, 1]."""

# key of a file's metadata: JSON with the configuration and the prefixes that can be decoded
_METADATA = "hrvqvae"
_GRAPHS = ("encoder", "decoder")
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_NUM_NEIGHBOURS = 32  # noisy copies of the images that tell ties from errors
# images of the traced example, and the least positions along a side of their coarsest grid:
# torch.export takes a size of 1 for a constant
_EXAMPLE = 3


class _Encoder(nn.Module):
    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor) -> Codes:
        return self.autoencoder.encode(images)


class _Decoder(_Encoder):
    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__(autoencoder)
        # The autoencoder hides this decoder from its modules; as an attribute it is exported.
        self.progressive = getattr(autoencoder, "progressive_decoder", None)

    def forward(self, codes: Codes, levels: Tensor) -> Tensor:  # type: ignore[override]
        return self.autoencoder.decode_prefix(codes, levels)


def trace(autoencoder: Autoencoder, config: Config) -> tuple[bytes, bytes, int]:
    """Trace a model, in evaluation mode on the CPU, into encoder and decoder. Raises InputError if
    it can't be traced.

    The third value is the smallest side of images that the graphs take: two positions on the
    coarsest grid, because torch.export takes a single position for a constant.
    """

    def coarsest_side(size: int) -> int:
        return min(config.model.geometry.grids(size, size)[0])

    # An example whose sizes differ from all that torch.export could take for constants.
    smallest = next(size for size in itertools.count(1) if coarsest_side(size) >= 2)
    size = next(size for size in itertools.count(smallest + 1) if coarsest_side(size) >= _EXAMPLE)
    names = tuple(f"codes_{level}" for level in range(1, len(config.model.num_symbols) + 1))
    batch = Dim("batch", min=1)
    height = Dim("height", min=smallest)
    width = Dim("width", min=smallest)
    # height and width differ, too
    images = torch.rand(_EXAMPLE, autoencoder.channels, size, size + smallest)
    metadata = {"config": to_dict(without_paths(config)), "prefixes": list(autoencoder.prefixes)}
    with torch.no_grad(), _silence_torch():
        # images to codes
        codes = autoencoder.encode(images)
        free = ({0: batch, 2: height, 3: width},)
        encoder = _build_graph(_Encoder(autoencoder), (images,), free, ("images",), names, metadata)

        # codes to images
        rows = Dim("rows", min=coarsest_side(smallest))
        columns = Dim("columns", min=coarsest_side(smallest))
        # Each grid is a multiple of the coarsest. torch.export refuses the dimension 1 * rows.
        factors = [len(code[0]) // len(codes[0][0]) for code in codes]
        sides = [(rows, columns) if n == 1 else (rows * n, columns * n) for n in factors]
        grids = tuple({0: batch, 1: high, 2: wide} for high, wide in sides)
        example = (codes, torch.tensor(1))
        decoder = _build_graph(
            _Decoder(autoencoder), example, (grids, None), (*names, "levels"), ("images",), metadata
        )
    return encoder, decoder, smallest


@contextmanager
def _silence_torch() -> Iterator[None]:
    """Hide what torch prints and logs about its internals while it traces and reads graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with catch_warnings(), redirect_stderr(io.StringIO()):
            simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _build_graph(
    module: nn.Module,
    arguments: tuple[Any, ...],
    dynamic_shapes: tuple[Any, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    metadata: dict[str, Any],
) -> bytes:
    """Trace a module with example arguments into an ONNX file's content, with names and
    metadata.
    """
    try:
        program = torch.export.export(
            module, arguments, dynamic_shapes=dynamic_shapes, strict=False
        )
    except Exception as error:  # torch raises errors of many types
        system = metadata["config"]["model"]["system"]
        raise InputError(
            f"torch.export can't trace the system {system} ({one_line(error)})"
        ) from error
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=dynamic_shapes,
    )
    assert exported is not None
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # paths of this machine
    exported.model.metadata_props[_METADATA] = json.dumps(metadata, sort_keys=True)
    return exported.model_proto.SerializeToString()  # type: ignore[no-any-return]


class OnnxModel:
    """The encoder and the decoder in a folder, run by onnxruntime on the CPU with torch's number of
    threads.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # fatal only: errors are raised too
        files = (folder / f"{name}.onnx" for name in _GRAPHS)
        run = onnxruntime.InferenceSession
        self._encoder, self._decoder = (
            run(file, options, ["CPUExecutionProvider"]) for file in files
        )

    def encode(self, images: Tensor) -> Codes:
        """Return the codes of images (B, C, Y, X) float32 in [0, 1]: (B, H_l, W_l) int64 per level,
        coarse first.
        """
        return self._run(self._encoder, images)

    def decode(self, codes: Codes, levels: int) -> Tensor:
        """Return images (B, C, Y', X') float32 in [0, 1] from the codes of all levels, of which
        `levels` are used.
        """
        return self._run(self._decoder, *codes, torch.tensor(levels))[0]

    @staticmethod
    def _run(session: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        feed = {
            node.name: tensor.numpy()
            for node, tensor in zip(session.get_inputs(), inputs, strict=True)
        }
        return tuple(torch.from_numpy(output) for output in session.run(None, feed))


@dataclass
class Agreement:
    """The outcome of a comparison of graphs with their model."""

    images: int = 0
    codes: int = 0
    equal: int = 0  # codes
    errors: int = 0  # codes that differ and are no tie
    difference: float = 0.0  # largest difference of decoded images, over all prefixes of the levels

    def __str__(self) -> str:
        tied = self.codes - self.equal - self.errors
        wrong = f", {self.errors:,} wrong" if self.errors else ""
        return (
            f"{counted(self.images, 'image')}: {self.equal:,} of {self.codes:,} codes equal,"
            f" {tied:,} tied{wrong}; decoded images differ by at most {self.difference:.1e}"
        )


@torch.inference_mode()
def compare_graphs(model: Autoencoder, graphs: OnnxModel, batches: Iterable[Tensor]) -> Agreement:
    """Compare graphs with their model on batches of images (B, C, Y, X), float32 in [0, 1]."""
    agreement = Agreement()
    for images in batches:
        expected = model.encode(images)
        codes = graphs.encode(images)
        agreement.images += len(images)
        agreement.codes += sum(code.numel() for code in expected)
        if [code.shape for code in expected] != [code.shape for code in codes]:
            agreement.errors = agreement.codes
            agreement.difference = torch.inf
            break

        # images of all prefixes of the levels
        for levels in model.prefixes:
            right = model.decode(expected[:levels], levels)
            decoded = graphs.decode(expected, levels)  # a graph takes the codes of all levels
            difference = torch.inf
            if right.shape == decoded.shape:
                difference = float((right - decoded).abs().nan_to_num(torch.inf).max())
            agreement.difference = max(agreement.difference, difference)

        # codes; ties are no errors
        agreement.equal += sum(int((a == b).sum()) for a, b in zip(expected, codes, strict=True))
        agreement.errors += count_errors(model, images, expected, codes)
    return agreement


def count_errors(model: Autoencoder, images: Tensor, expected: Codes, codes: Codes) -> int:
    """Count the codes of a graph that differ from the model's and are no tie.

    A code is a tie if the model gives it to one of some images within TOLERANCE of the original.
    """
    wrong = [right != code for right, code in zip(expected, codes, strict=True)]  # masks
    generator = torch.Generator().manual_seed(0)
    for _ in range(_NUM_NEIGHBOURS):
        if not any(mask.any() for mask in wrong):
            break
        noise = torch.rand(images.shape, generator=generator) * 2 - 1
        nearby = model.encode((images + TOLERANCE * noise).clamp(0, 1))
        pairs = zip(wrong, nearby, codes, strict=True)
        wrong = [mask & (near != code) for mask, near, code in pairs]
    return sum(int(mask.sum()) for mask in wrong)


def export_graphs(
    run: str | Path, out: Path, beam: int | None = None
) -> tuple[list[Path], Agreement]:
    """Write the encoder and the decoder of a run into the new folder `out`, or nothing if they
    differ from the model.

    Return the files and the outcome of the comparison. `beam` is as for `hrvqvae.load`.

    Raises:
        InputError: The run has no model, or no linked codebooks for a beam; the system can't be
            traced; the graphs fail or do not agree with the model; `out` exists or can't be
            written.
        ModuleNotFoundError: A package is missing.
    """
    with create_folder(out) as folder:
        for package in _PACKAGES:
            importlib.import_module(package)

        # trace and write
        model, config = open_run(run).load(beam=beam)
        encoder, decoder, smallest = trace(model, config)
        for name, content in zip(_GRAPHS, (encoder, decoder), strict=True):
            (folder / f"{name}.onnx").write_bytes(content)

        # compare on images of two sizes and batch sizes
        generator = torch.Generator().manual_seed(0)
        size = max(*config.data.image_size, smallest)
        # the second need not fill the grid
        shapes = ((3, size, size), (1, size + 3, size + size // 2 + 1))
        batches = [
            torch.rand(count, model.channels, *sides, generator=generator)
            for count, *sides in shapes
        ]
        try:
            agreement = compare_graphs(model, OnnxModel(folder), batches)
        except Exception as error:  # from the runtime, if tracing took a size for a constant
            reason = " ".join(str(error).split())[-200:]
            raise InputError(
                f"the graphs fail on images of another number or size ({reason})"
            ) from error
        if agreement.errors or agreement.difference > TOLERANCE:
            raise InputError(f"the graphs of {run} do not agree with the model ({agreement})")
    return sorted(out.iterdir()), agreement
