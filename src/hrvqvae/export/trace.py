"""From an autoencoder to two graphs, encoder and decoder.

encoder: images (B, C, Y, X) float32 in [0, 1] -> a tensor of codes (B, H_l, W_l) int64 for each level, coarse first
decoder: codes of every level, levels () int64 -> images (B, C, Y', X') float32 in [0, 1]

B, Y and X are free. An image that does not fill its latent grid is grown inside the encoder's graph, as in `encode`:
its last rows and columns are repeated. The decoder's graph gives all that the grid holds, (Y', X') >= (Y, X): the image
is its upper left part, `[..., :Y, :X]`.

Values are not checked inside a graph: a code out of range is an error of whatever runs it, or another codeword.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from hrvqvae.config import Config
from hrvqvae.models.base import Autoencoder
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError

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
        self.progressive_decoder = getattr(
            autoencoder, "progressive_decoder", None
        )  # whose weights are the graph's too

    def forward(self, codes: Codes, levels: Tensor) -> Tensor:
        return self.autoencoder.decode_prefix(codes, levels)


@dataclass(frozen=True)
class Graph:
    """One traced graph.

    Attributes:
        program: what torch.export made.
        inputs: names of its tensors, in order.
        outputs: names of what it gives, in order.
        dynamic: which sizes of the inputs are free, in the form that torch.export takes.
    """

    program: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: tuple[Any, ...]


@dataclass(frozen=True)
class Graphs:
    """The encoder and the decoder of a model, and the least image size a side that torch's own form takes."""

    encoder: Graph
    decoder: Graph
    least: int


def code_names(config: Config) -> tuple[str, ...]:
    """Names of the codes of each level: codes_1, codes_2, ..."""
    return tuple(f"codes_{level}" for level in range(1, len(config.model.num_symbols) + 1))


def least_size(config: Config) -> int:
    """The smallest image, pixels a side, whose coarsest grid has two positions a side: one is no free size to torch."""
    return next(size for size in itertools.count(1) if min(config.model.latent_grids(size, size)[0]) >= 2)


def trace(autoencoder: Autoencoder, config: Config) -> Graphs:
    """Trace a model, in evaluation mode and on the CPU.

    Raises:
        InputError: torch.export can't trace the system; its reason is told.
    """
    least = least_size(config)
    size = next(n for n in itertools.count(least + 1) if config.model.latent_grids(n, n)[0][0] >= _EXAMPLE)
    names = code_names(config)
    batch, height, width = Dim("batch", min=1), Dim("height", min=least), Dim("width", min=least)
    images = torch.rand(_EXAMPLE, autoencoder.channels, size, size + least)
    free = {0: batch, 2: height, 3: width}
    with torch.no_grad(), silent():
        codes = autoencoder.encode(images)
        encoder = _traced(_Encoder(autoencoder), (images,), (free,), config)
        fewest = config.model.latent_grids(least, least)[0][0]
        rows, columns = Dim("rows", min=fewest), Dim("columns", min=fewest)
        times = [len(code[0]) // len(codes[0][0]) for code in codes]  # coarse first: a whole number
        grids = tuple({0: batch, 1: _multiple(rows, n), 2: _multiple(columns, n)} for n in times)
        decoder = _traced(_Decoder(autoencoder), (codes, torch.tensor(1)), (grids, None), config)
    return Graphs(
        Graph(encoder, ("images",), names, (free,)),
        Graph(decoder, (*names, "levels"), ("images",), (grids, None)),
        least,
    )


def _multiple(dim: Any, times: int) -> Any:
    return dim if times == 1 else dim * times


@contextmanager
def silent() -> Iterator[None]:
    """None of what torch has to say about its own internals while it traces, translates and reads graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with catch_warnings(), redirect_stderr(StringIO()):
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
