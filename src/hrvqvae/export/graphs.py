"""From an autoencoder to two graphs, encoder and decoder; the forms that they are written in, and how they are run.

encoder: images (B, C, Y, X) float32 in [0, 1] -> a tensor of codes (B, H_l, W_l) int64 for each level, coarse first
decoder: codes of every level, levels () int64 -> images (B, C, Y', X') float32 in [0, 1]

B, Y and X are free. The encoder's graph repeats an image's last rows and columns where it does not fill its grid, as
`encode` does. The decoder's graph gives all that the grid holds: the image is its part `[..., :Y, :X]`. Values are not
checked inside a graph: a code out of range is an error of the runtime, or another codeword.
"""

from __future__ import annotations

import io
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from hrvqvae.config import Config
from hrvqvae.models.base import Autoencoder
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError

ABOUT = "hrvqvae"  # the name of a file's metadata: JSON with the configuration and the numbers of levels to decode
_EXAMPLE = 3  # images, and positions of the coarsest grid a side: a size of 1 would be taken for a constant


class Graph(NamedTuple):
    """One traced graph, with the names of its tensors."""

    program: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: tuple[Any, ...]  # the free sizes of the inputs, in the form that torch.export takes


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


def trace(autoencoder: Autoencoder, config: Config) -> tuple[Graph, Graph, int]:
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
    free = {0: batch, 2: height, 3: width}
    with torch.no_grad(), _silent():
        codes = autoencoder.encode(images)
        encoder = _traced(_Encoder(autoencoder), (images,), (free,), config)
        rows, columns = Dim("rows", min=rows_of(least)), Dim("columns", min=rows_of(least))
        times = [len(code[0]) // len(codes[0][0]) for code in codes]  # coarse first: a whole number
        sides = [(rows, columns) if n == 1 else (rows * n, columns * n) for n in times]
        grids = tuple({0: batch, 1: height_of_grid, 2: width_of_grid} for height_of_grid, width_of_grid in sides)
        decoder = _traced(_Decoder(autoencoder), (codes, torch.tensor(1)), (grids, None), config)
    decoded = Graph(decoder, (*names, "levels"), ("images",), (grids, None))
    return Graph(encoder, ("images",), names, (free,)), decoded, least


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


def _traced(module: nn.Module, arguments: tuple[Any, ...], dynamic: tuple[Any, ...], config: Config) -> ExportedProgram:
    try:
        program = torch.export.export(module, arguments, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch names many kinds
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"torch.export can't trace the system {config.model.system} ({reason})") from error
    for part in program.graph_module.modules():  # the whole, and branches of it
        if isinstance(part, GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)  # with the paths of this machine
    return program


class GraphModel(ABC):
    """The encoder and the decoder of a folder, run on the CPU with as many threads as torch has."""

    name: ClassVar[str]  # of the form, in messages
    suffix: ClassVar[str]  # of the files `encoder` and `decoder`
    needs: ClassVar[tuple[str, ...]] = ()  # modules

    def __init__(self, folder: Path) -> None:
        self._encoder, self._decoder = (self._load(folder / f"{part}{self.suffix}") for part in ("encoder", "decoder"))

    def encode(self, images: Tensor) -> Codes:
        """Codes of images (B, C, Y, X), float32 in [0, 1]: (B, H_l, W_l) int64 of each level, coarse first."""
        return tuple(self._run(self._encoder, images))

    def decode(self, codes: Codes, levels: int) -> Tensor:
        """Images (B, C, Y', X') float32 in [0, 1], as large as the grid, from codes of every level."""
        return self._run(self._decoder, codes, torch.tensor(levels))[0]

    @staticmethod
    @abstractmethod
    def to_bytes(graph: Graph, about: str) -> bytes:
        """The content of a graph's file, with that text under the name `ABOUT`."""

    @staticmethod
    @abstractmethod
    def _load(path: Path) -> Any: ...

    @staticmethod
    @abstractmethod
    def _run(graph: Any, *arguments: Tensor | Codes) -> Sequence[Tensor]: ...


class OnnxModel(GraphModel):
    """ONNX, run by onnxruntime."""

    name, suffix, needs = "ONNX", ".onnx", ("onnx", "onnxscript", "onnxruntime")

    @staticmethod
    def to_bytes(graph: Graph, about: str) -> bytes:
        with _silent():
            exported = torch.onnx.export(
                graph.program, dynamo=True, verbose=False, external_data=False, input_names=graph.inputs,
                output_names=graph.outputs, dynamic_shapes=graph.dynamic,
            )  # fmt: skip
        assert exported is not None
        for node in exported.model.graph.all_nodes():
            node.metadata_props.clear()
        exported.model.metadata_props[ABOUT] = about
        return exported.model_proto.SerializeToString()  # type: ignore[no-any-return]

    @staticmethod
    def _load(path: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # its errors are raised
        return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    @staticmethod
    def _run(graph: Any, *arguments: Tensor | Codes) -> Sequence[Tensor]:
        given = [one.numpy() for part in arguments for one in (part if isinstance(part, tuple) else (part,))]
        names = [one.name for one in graph.get_inputs()]
        return [torch.from_numpy(one) for one in graph.run(None, dict(zip(names, given, strict=True)))]


class TorchModel(GraphModel):
    """A program of torch.export, run by torch."""

    name, suffix = "torch.export", ".pt2"

    @staticmethod
    def to_bytes(graph: Graph, about: str) -> bytes:
        content = io.BytesIO()
        with _silent():
            torch.export.save(graph.program, content, extra_files={ABOUT: about})
        return content.getvalue()

    @staticmethod
    def _load(path: Path) -> Any:
        with _silent():
            return torch.export.load(path).module()

    @staticmethod
    @torch.inference_mode()
    def _run(graph: Any, *arguments: Tensor | Codes) -> Sequence[Tensor]:
        found: Tensor | Codes = graph(*arguments)
        return (found,) if isinstance(found, Tensor) else found


FORMS: dict[str, type[GraphModel]] = {"onnx": OnnxModel, "torch": TorchModel}
