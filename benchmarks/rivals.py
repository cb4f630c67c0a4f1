"""Rivals that the paper does not have: importing this module registers fsq and vqpytorch.

They adapt the quantizers of vector-quantize-pytorch. Shapes: (B, H, W, D) latents, L levels; the
library takes vectors (1, N, D) with N = B * H * W.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from benchmarks.common import import_rival
from hrvqvae.config.entries import System
from hrvqvae.config.model import NetworkConfig
from hrvqvae.config.registry import register_system
from hrvqvae.config.section import AtLeastTwo, PerLevel, Positive, Range, Section, Weight
from hrvqvae.config.systems import AS_HRVQVAE, settings
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import Codes, Quantized
from hrvqvae.utils.errors import NonFiniteError, require

library = import_rival("vector_quantize_pytorch")


class FSQQuantizerConfig(Section, section="model.quantizer"):
    """Finite scalar quantization: each of a few channels is rounded to one of a few values (Mentzer
    et al. 2023).
    """

    #: L_i, values of each channel; their product is the number of codes.
    channel_levels: PerLevel[Annotated[int, Range(3)]] = (8, 8, 8)
    #: D, width of a latent; unless D is the number of channels, linear layers map between them
    dim: Positive = 32

    def check(self) -> None:
        codes = math.prod(self.channel_levels)
        require(
            codes <= 2**24, "the product of model.quantizer.channel_levels", codes, "at most 2^24"
        )


class FSQConfig(NetworkConfig):
    """A latent grid with finite scalar quantization."""

    system: str = "fsq"
    quantizer: FSQQuantizerConfig = FSQQuantizerConfig()
    codewords_searched = 0

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return (math.prod(self.quantizer.channel_levels),)


class LibraryQuantizerConfig(Section, section="model.quantizer"):
    """A quantizer of the library, with its defaults.

    simvq: Zhu et al. 2024. lfq: Yu et al. 2023. qinco: a network shifts the codewords by the
    coarser codes (Huijben et al. 2024). vq: moving averages, the rotation trick, the library's
    k-means start and restart.
    """

    name: Literal["simvq", "lfq", "qinco", "vq"] = "simvq"
    codewords: AtLeastTwo = 512  #: per level; a power of two for lfq
    levels: Positive = 1  #: of residual quantization without links; 1: a flat codebook
    dim: Positive = 32  #: D, width of a latent
    beta: Weight | None = None  #: weight of the commitment loss (default: the library's)

    def check(self) -> None:
        fits = self.name != "lfq" or self.codewords & (self.codewords - 1) == 0
        self.require(fits, "codewords", "a power of two for lfq")


class LibraryConfig(NetworkConfig):
    """A latent grid with a quantizer of the library."""

    system: str = "vqpytorch"
    quantizer: LibraryQuantizerConfig = LibraryQuantizerConfig()

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return (self.quantizer.codewords,) * self.quantizer.levels

    @property
    def start_vectors(self) -> int:
        """Number of latents for the library's k-means start, which only vq and qinco have."""
        return 131_072 if self.quantizer.name in ("vq", "qinco") else 0

    @property
    def codewords_searched(self) -> int:
        """Distances that a search computes per position; lfq takes signs."""
        return 0 if self.quantizer.name == "lfq" else sum(self.num_symbols)


class Adapter(nn.Module, ABC):
    """A quantizer of the library in place of a `ResidualQuantizer`, in float32. In training the
    library draws from torch's global generator.
    """

    @abstractmethod
    def _quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return quantized vectors (1, N, D), codes (1, N, L), and losses averaged over the N * D
        elements.
        """

    @abstractmethod
    def _look_up(self, codes: Tensor) -> Tensor:
        """Return the vectors (1, N, D) of codes (1, N, l) of the first l levels."""

    def forward(self, latents: Tensor) -> Quantized:
        vectors = latents.reshape(1, -1, latents.shape[-1]).float()
        # the check would wait for a GPU
        is_checked = vectors.device.type == "cpu" and not torch.compiler.is_compiling()
        if is_checked and not vectors.isfinite().all():
            raise NonFiniteError("a latent is NaN or infinite")
        with torch.autocast(latents.device.type, enabled=False):
            quantized, codes, losses = self._quantize(vectors)
        return Quantized(
            quantized.view(latents.shape),
            tuple(
                level_codes.reshape(latents.shape[:-1]).long() for level_codes in codes.unbind(-1)
            ),
            {name: loss * latents.numel() for name, loss in losses.items()},
        )

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Codes:
        training = self.training
        self.eval()
        try:
            codes: Codes = self(latents).codes
        finally:
            self.train(training)
        return codes

    def lookup(self, codes: Codes) -> Tensor:
        with torch.autocast(codes[0].device.type, enabled=False):
            return self._look_up(torch.stack(codes, -1).view(1, -1, len(codes))).view(
                *codes[0].shape, -1
            )

    def codeword_indices(self, codes: Codes) -> Codes:
        return codes

    def restart_dead_codes(self, latents: Tensor, rng: torch.Generator) -> int:
        return 0

    @torch.no_grad()
    def initialize(self, latents: Tensor, rng: torch.Generator, weight: float = 1.0) -> None:
        """Encode latents (..., D) once: some quantizers of the library initialize themselves from
        their first input.
        """
        with torch.random.fork_rng([latents.device] if latents.is_cuda else []):
            torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
            self.encode(latents)


class FSQQuantizer(Adapter):
    """Finite scalar quantization, which bounds and rounds each channel (Mentzer et al. 2023). It
    has no losses.

        z (B, H, W, D) -> linear -> tanh, round -> grid points (B, H, W, channels) -> linear -> (B,
        H, W, D)

    The code is the index of the grid point; it changes fastest along the first channel.
    """

    config: FSQQuantizerConfig

    def __init__(self, config: FSQQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        # With `return_indices` the library would build a table of all codes: large, and impossible
        # on the meta device.
        self.fsq: Any = library.FSQ(
            levels=list(config.channel_levels), dim=config.dim, return_indices=False
        )
        self.fsq.return_indices = True

    def _quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantized, codes = self.fsq(vectors)
        return quantized, codes.unsqueeze(-1), {}

    def _look_up(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.fsq.indices_to_codes(codes.squeeze(-1))
        return vectors


# by name in the configuration: class of the library, its argument for beta, further options
_RESIDUAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "simvq": ("ResidualSimVQ", "input_to_quantize_commit_loss_weight", {}),
    "lfq": ("ResidualLFQ", "commitment_loss_weight", {}),
    "qinco": (
        "ResidualVQ",
        "commitment_weight",
        {"implicit_neural_codebook": True, "kmeans_init": True},
    ),
    "vq": ("ResidualVQ", "commitment_weight", {"kmeans_init": True, "threshold_ema_dead_code": 2}),
}


class LibraryQuantizer(Adapter):
    """A residual quantizer of the library. Its losses are added up to one loss, "auxiliary"."""

    def __init__(self, config: LibraryQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        kind, beta, options = _RESIDUAL[config.name]
        if config.beta is not None:
            options = {**options, beta: config.beta}
        options = {**options, "num_quantizers": config.levels, "codebook_size": config.codewords}
        self.residual: Any = getattr(library, kind)(dim=config.dim, **options)

    def _quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantized, codes, losses = self.residual(vectors)
        return quantized, codes, {"auxiliary": losses.sum()}

    def _look_up(self, codes: Tensor) -> Tensor:
        missing = self.config.levels - codes.shape[-1]
        vectors: Tensor = self.residual.get_output_from_indices(pad(codes, (0, missing), value=-1))
        return vectors


class LibraryAutoencoder(SingleGridAutoencoder):
    """An autoencoder with a single grid and a quantizer of the library: SimVQ, LFQ, QINCo,
    VectorQuantize or FSQ.
    """

    def __init__(self, config: FSQConfig | LibraryConfig, channels: int) -> None:
        settings = config.quantizer
        quantizer = (
            FSQQuantizer(settings)
            if isinstance(settings, FSQQuantizerConfig)
            else LibraryQuantizer(settings)
        )
        super().__init__(config, channels, cast(Any, quantizer))


_MODEL = "benchmarks.rivals:LibraryAutoencoder"
_FSQ = "model.quantizer.channel_levels 8,8,8 8,8,8 8,8,8 8,8"
_LIBRARY = """
    model.quantizer.levels     1
    model.quantizer.codewords  512  512  512  64
    model.quantizer.beta       null
"""
FSQ = System(
    name="fsq",
    title="FSQ",
    config=FSQConfig(),
    model=_MODEL,
    settings=AS_HRVQVAE | settings("FSQ's own for 512 and 64 codes", _FSQ),
)
VQPYTORCH = System(
    name="vqpytorch",
    title="Library quantizer",
    config=LibraryConfig(),
    model=_MODEL,
    settings=AS_HRVQVAE | settings("as many codewords as the tree has leaves", _LIBRARY),
)
for system in (FSQ, VQPYTORCH):
    register_system(system)
