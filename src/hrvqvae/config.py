"""The whole description of a run: frozen dataclasses, no torch, no effect on import.

A field name is the dotted path that the command line takes (`--model.quantizer.codewords 8`), that
`config.yaml` holds, and that a preset cites its source for. A system brings a model configuration of its own:
a frozen dataclass with `system`, `latent_grids`, `num_symbols`, `num_codewords` and `quantizer`, which SYSTEMS lists.
Values that differ by level (the lists of Tables 7 and 9) are tuples, coarse first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from hrvqvae.errors import InputError

Grid = tuple[int, int]
T = TypeVar("T")

_PILLOW_PIXELS = 178_956_970  # beyond this Pillow refuses by itself


def _require(holds: bool, name: str, value: object, what: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value!r}; it must be {what}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they become the pixels that a model sees (spec.md Table 5).

    Attributes:
        dataset: mnist, fashion-mnist, cifar10, or the name of an image folder (imagenet, ffhq, photos, ...).
        root: folder of the data; None takes the variable HRVQVAE_DATA, else the user's cache folder.
        size: height and width in pixels that images of a folder are resized and cropped to.
        channels: 1 (greyscale) or 3 (RGB).
        train_samples, test_samples: published counts (0: not published); they give the published training steps.
        split: how a folder without train/ and test/ is divided: by a hash of the file name, or its first
            `train_samples` names in sorted order for training ("sorted", FFHQ's convention).
        test_fraction: share of the files that goes to the test split where the split is by hash.
        crop: random crops of the training images, or the centre one; test images always take the centre.
        flip: mirror half of the training images.
        labels: whether class folders are classes.
        on_error: a broken image stops the run, or is skipped and counted.
        max_pixels: largest image that is decoded, in pixels.
        workers: processes that decode the images of a folder.
        memory_mb: folders whose images have no random crop are held in memory as uint8 up to this size.
    """

    dataset: str = "mnist"
    root: str | None = None
    size: int = 28
    channels: int = 1
    train_samples: int = 0
    test_samples: int = 0
    split: Literal["hash", "sorted"] = "hash"
    test_fraction: float = 0.1
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    labels: bool = True
    on_error: Literal["stop", "skip"] = "stop"
    max_pixels: int = 64_000_000
    workers: int = 2
    memory_mb: int = 512

    def __post_init__(self) -> None:
        _require(self.size >= 1, "data.size", self.size, "at least 1 pixel")
        _require(self.channels in (1, 3), "data.channels", self.channels, "1 (greyscale) or 3 (RGB)")
        _require(0 < self.test_fraction < 1, "data.test_fraction", self.test_fraction, "between 0 and 1")
        _require(self.workers >= 0, "data.workers", self.workers, "at least 0")
        _require(1 <= self.max_pixels <= _PILLOW_PIXELS, "data.max_pixels", self.max_pixels, f"1 to {_PILLOW_PIXELS}")


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """One flat codebook on each latent grid (spec.md section 3, Tables 4 and 7).

    Attributes:
        codewords: of a codebook.
        dim: D, width of a codeword.
        beta: weight of the commitment loss.
        update: codewords follow moving averages of what they stand for, or the gradient of the codebook loss.
        decay: decay of those moving averages.
        init_vectors: latent vectors that the k-means start takes (0: random start).
        revive_every: training steps between revivals of dead codewords (0: none).
        revive_below: a codeword is dead when its share of its codebook's assignments is below this / codewords.
    """

    codewords: int = 512
    dim: int = 32
    beta: float = 0.25
    update: Literal["ema", "gradient"] = "ema"
    decay: float = 0.99
    init_vectors: int = 131_072
    revive_every: int = 100
    revive_below: float = 0.03

    def __post_init__(self) -> None:
        _require(self.codewords >= 2, "model.quantizer.codewords", self.codewords, "at least 2")
        _require(self.dim >= 1, "model.quantizer.dim", self.dim, "at least 1")
        _require(self.beta >= 0, "model.quantizer.beta", self.beta, "at least 0")
        _require(0 <= self.decay < 1, "model.quantizer.decay", self.decay, "at least 0 and below 1")
        for name in ("init_vectors", "revive_every", "revive_below"):
            _require(getattr(self, name) >= 0, f"model.quantizer.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True, kw_only=True)
class TreeQuantizerConfig(QuantizerConfig):
    """Linked codebooks (spec.md section 2, Table 6): as a flat codebook's, and how they are linked.

    Attributes:
        levels: L, number of quantization levels; `codewords` is m, of one codebook: level l has m^l in all. `beta` is
            beta_l of every level, and beta_0 of the combined latent.
    """

    levels: int = 3
    codewords: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.levels >= 1, "model.quantizer.levels", self.levels, "at least 1")
        values = self.codewords**self.levels * self.dim
        _require(values <= 2**30, "model.quantizer.codewords ** levels * dim", values, "at most 2^30 (4 GiB of leaves)")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Encoder and decoder, which all systems have (spec.md Tables 4, 6 and 7).

    Attributes:
        stride: image pixels a latent position of the finest grid, a side: 2^s.
        padding: pixels added on each side of the image before encoding, cropped after decoding.
        hidden_units: channels of the convolutions.
        residual_units: channels inside a residual block.
        residual_blocks: residual blocks in the encoder, and in the decoder.
        kernel: filter size of the convolutions that keep the resolution.
    """

    stride: int = 2
    padding: int = 0
    hidden_units: int = 64
    residual_units: int = 64
    residual_blocks: int = 2
    kernel: int = 3

    def __post_init__(self) -> None:
        power_of_two = self.stride >= 2 and self.stride & (self.stride - 1) == 0
        _require(power_of_two, "model.stride", self.stride, "a power of two, at least 2")
        _require(self.padding >= 0, "model.padding", self.padding, "at least 0")
        _require(self.hidden_units >= 2, "model.hidden_units", self.hidden_units, "at least 2")
        _require(self.kernel % 2 == 1 and self.kernel > 0, "model.kernel", self.kernel, "odd and positive")
        _require(self.residual_units >= 1, "model.residual_units", self.residual_units, "at least 1")
        _require(self.residual_blocks >= 0, "model.residual_blocks", self.residual_blocks, "at least 0")

    def grid(self, height: int, width: int, times: int = 1) -> Grid:
        """(H, W) for an image of that many pixels, on a grid that is `times` coarser than the finest."""
        pixels, stride = 2 * self.padding, self.stride * times
        return math.ceil((height + pixels) / stride), math.ceil((width + pixels) / stride)


@dataclass(frozen=True, kw_only=True)
class HRVQVAEConfig(NetworkConfig):
    """One encoder, one latent grid, L levels of linked codebooks, one decoder (spec.md section 2, Table 6)."""

    system: Literal["hrvqvae"] = "hrvqvae"
    quantizer: TreeQuantizerConfig = field(default_factory=TreeQuantizerConfig)

    def latent_grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """(H, W) of each level's codes for an image of that many pixels; one grid for all levels."""
        return (self.grid(height, width),) * self.quantizer.levels

    @property
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code of each level can take: m, since its parent is known."""
        return (self.quantizer.codewords,) * self.quantizer.levels

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """Codewords of each level in all: m^l."""
        return tuple(self.quantizer.codewords**level for level in range(1, self.quantizer.levels + 1))


@dataclass(frozen=True, kw_only=True)
class FlatConfig(NetworkConfig):
    """One latent grid with one flat codebook of K codewords, however it is trained."""

    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def latent_grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """(H, W) of the one level of codes for an image of that many pixels."""
        return (self.grid(height, width),)

    @property
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code can take: K."""
        return (self.quantizer.codewords,)

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """Codewords of the one codebook: K."""
        return self.num_symbols


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(FlatConfig):
    """One encoder, one latent grid, one flat codebook, one decoder (spec.md section 3)."""

    system: Literal["vqvae"] = "vqvae"


@dataclass(frozen=True, kw_only=True)
class VQVAE2Config(NetworkConfig):
    """Several latent grids, each half as wide as the one below it and with a flat codebook of its own (section 3).

    Attributes:
        grids: latent grids; the finest is `stride` times coarser than the image, each next one twice as coarse.
    """

    system: Literal["vqvae2"] = "vqvae2"
    grids: int = 3
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.grids >= 1, "model.grids", self.grids, "at least 1")

    def latent_grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """(H, W) of each grid's codes for an image of that many pixels, coarse first."""
        top = self.grid(height, width, 2 ** (self.grids - 1))
        return tuple((top[0] * 2**finer, top[1] * 2**finer) for finer in range(self.grids))

    @property
    def num_symbols(self) -> tuple[int, ...]:
        """Values that a code of each grid can take: K."""
        return (self.quantizer.codewords,) * self.grids

    @property
    def num_codewords(self) -> tuple[int, ...]:
        """Codewords of each grid's codebook: K."""
        return self.num_symbols


@dataclass(frozen=True, kw_only=True)
class VQGANConfig(FlatConfig):
    """One latent grid, one flat codebook; trained for what images look like as well (spec.md section 3).

    Attributes:
        perceptual: the perceptual loss. auto is the best whose network is on this machine when a run begins (the run
            keeps its name); none leaves it out.
        perceptual_weight: its weight beside the squared error.
        adversarial_weight: weight of the generator's adversarial loss, times the adaptive weight (Esser et al. 2021,
            equation 7).
        adversarial_start: training steps before the discriminator begins.
        discriminator_units: channels of the patch discriminator's first layer.
        discriminator_layers: its layers that halve the resolution.
    """

    system: Literal["vqgan"] = "vqgan"
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(codewords=1024))
    perceptual: Literal["auto", "lpips-vgg16", "efficientnet-lite0", "none"] = "auto"
    perceptual_weight: float = 1.0
    adversarial_weight: float = 0.8
    adversarial_start: int = 10_000
    discriminator_units: int = 64
    discriminator_layers: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("perceptual_weight", "adversarial_weight", "adversarial_start"):
            _require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "at least 0")
        for name in ("discriminator_units", "discriminator_layers"):
            _require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")


ModelConfig = HRVQVAEConfig | VQVAEConfig | VQVAE2Config | VQGANConfig
SYSTEMS: Mapping[str, type[HRVQVAEConfig] | type[VQVAEConfig] | type[VQVAE2Config] | type[VQGANConfig]] = {
    "hrvqvae": HRVQVAEConfig, "vqvae": VQVAEConfig, "vqvae2": VQVAE2Config, "vqgan": VQGANConfig,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimization of one stage (spec.md Tables 5 and 6).

    Attributes:
        batch_size: images a step.
        epochs, max_steps, max_minutes: the budget; whichever is spent first ends the run (0: no such limit).
        learning_rate: Adam's rate, after the warm-up.
        adam_beta2: decay of Adam's second moment; its first moment's is 0.9.
        schedule: constant, or a linear warm-up and a cosine down to zero over the budget.
        warmup_steps: steps of the warm-up.
        polyak_decay: decay of the moving average of the network's weights.
        precision: auto takes bf16 where the processor or GPU computes in it.
        memory_format: layout of images and weights in memory.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads (0: as torch decides).
        seed: start weights, data order, augmentation, k-means and revival depend on it alone.
        log_every, evaluate_every, checkpoint_every: in steps.
        evaluation_images: test images that an evaluation during training takes.
    """

    batch_size: int = 128
    epochs: int = 0
    max_steps: int = 0
    max_minutes: float = 0.0
    learning_rate: float = 3e-3
    adam_beta2: float = 0.999
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = 100
    polyak_decay: float = 0.9
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    device: str = "auto"
    threads: int = 0
    seed: int = 0
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 500
    evaluation_images: int = 1_000

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every", "evaluate_every", "checkpoint_every", "evaluation_images"):
            _require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "at least 1")
        for name in ("epochs", "max_steps", "max_minutes", "warmup_steps", "threads", "seed"):
            _require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "at least 0")
        _require(0 < self.learning_rate < math.inf, "training.learning_rate", self.learning_rate, "above 0")
        _require(self.seed < 2**31, "training.seed", self.seed, "below 2^31")
        _require(0 <= self.adam_beta2 < 1, "training.adam_beta2", self.adam_beta2, "at least 0 and below 1")
        _require(0 <= self.polyak_decay < 1, "training.polyak_decay", self.polyak_decay, "at least 0 and below 1")
        if not (self.epochs or self.max_steps or self.max_minutes):
            raise InputError(
                "no budget: give training.epochs, training.max_steps (--max-steps) or training.max_minutes"
            )


@dataclass(frozen=True, kw_only=True)
class PixelSNAILConfig:
    """The autoregressive network of each level (spec.md Tables 8 and 9).

    `attention_layers` and `dropout` hold one value for all levels, or one a level, coarse first.

    Attributes:
        hidden_units: channels of the features.
        residual_units: channels inside a gated residual block.
        residual_blocks: gated residual blocks in all; the attention layers are spread evenly among them.
        attention_layers: causal attention layers.
        attention_heads: heads of each; their number divides `hidden_units`.
        kernel: filter size of the causal convolutions.
        dropout: share of the activations inside a residual block that training drops.
    """

    kind: Literal["pixelsnail"] = "pixelsnail"
    hidden_units: int = 64
    residual_units: int = 64
    residual_blocks: int = 12
    attention_layers: tuple[int, ...] = (4,)
    attention_heads: int = 8
    kernel: int = 5
    dropout: tuple[float, ...] = (0.1,)

    def __post_init__(self) -> None:
        for name in ("hidden_units", "residual_units", "residual_blocks", "attention_heads"):
            _require(getattr(self, name) >= 1, f"prior.network.{name}", getattr(self, name), "at least 1")
        _require(self.kernel % 2 == 1 and self.kernel >= 3, "prior.network.kernel", self.kernel, "odd, at least 3")
        name = "prior.network.attention_layers"
        _require(bool(self.attention_layers), name, self.attention_layers, "one number, or one a level")
        for number in self.attention_layers:
            _require(
                0 <= number <= self.residual_blocks, name, number, f"0 to residual_blocks ({self.residual_blocks})"
            )
        _require(bool(self.dropout), "prior.network.dropout", self.dropout, "one share, or one a level")
        for share in self.dropout:
            _require(0 <= share < 1, "prior.network.dropout", share, "at least 0 and below 1")
        if any(self.attention_layers) and self.hidden_units % self.attention_heads:
            raise InputError(
                f"prior.network.attention_heads is {self.attention_heads}; it must divide hidden_units "
                f"({self.hidden_units})"
            )


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A GPT-like network (spec.md section 3; Esser et al. 2021).

    Attributes:
        hidden_units: width of the features.
        layers: of attention and two-layer network.
        heads: of each attention; their number divides `hidden_units`.
        dropout: share of what a layer adds that training drops.
    """

    kind: Literal["transformer"] = "transformer"
    hidden_units: int = 256
    layers: int = 6
    heads: int = 8
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("hidden_units", "layers", "heads"):
            _require(getattr(self, name) >= 1, f"prior.network.{name}", getattr(self, name), "at least 1")
        _require(0 <= self.dropout < 1, "prior.network.dropout", self.dropout, "at least 0 and below 1")
        if self.hidden_units % self.heads:
            raise InputError(f"prior.network.heads is {self.heads}; it must divide hidden_units ({self.hidden_units})")


NETWORKS: Mapping[str, type[PixelSNAILConfig] | type[TransformerConfig]] = {
    "pixelsnail": PixelSNAILConfig, "transformer": TransformerConfig,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The priors of all levels and their training (spec.md section 2, Tables 8 and 9).

    Attributes:
        network: one autoregressive network a level.
        training: optimization of each level's network; budgets are a level's own.
        batch_size: batch size of each level, coarse first, where they differ; else `training.batch_size`.
        held_out: share of the training images whose codes are held out; the state that codes them best is kept.
    """

    network: PixelSNAILConfig | TransformerConfig = field(default_factory=PixelSNAILConfig)
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(batch_size=32, epochs=50, learning_rate=1e-3, polyak_decay=0.99)
    )
    batch_size: tuple[int, ...] = ()
    held_out: float = 0.05

    def __post_init__(self) -> None:
        for number in self.batch_size:
            _require(number >= 1, "prior.batch_size", number, "at least 1")
        _require(0 < self.held_out < 1, "prior.held_out", self.held_out, "between 0 and 1")

    def training_of(self, level: int) -> TrainingConfig:
        """Optimization of the network of a level (0 is the coarsest)."""
        size = at_level(self.batch_size, level) if self.batch_size else self.training.batch_size
        return dataclasses.replace(self.training, batch_size=size)


def at_level(values: tuple[T, ...], level: int) -> T:
    """The value of a level, of one value for all levels or one a level. Raises InputError where there is none."""
    if len(values) == 1:
        return values[0]
    if level < len(values):
        return values[level]
    raise InputError(f"{values!r} has {len(values)} values; level {level + 1} needs one, or give one for all levels")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run: data, model, training, priors. `name` is the preset that it began as."""

    name: str = "custom"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=HRVQVAEConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=1))
    prior: PriorConfig = field(default_factory=PriorConfig)

    def with_root(self, root: str | None) -> Config:
        """The same with its data in another root folder; None leaves it."""
        return self if root is None else dataclasses.replace(self, data=dataclasses.replace(self.data, root=root))


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain values, for JSON and YAML."""
    return dataclasses.asdict(config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf of a nested mapping, in order."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def training_steps(samples: int, epochs: int, batch_size: int) -> int:
    """Steps of that many epochs: samples * epochs / batch, rounded down (how Table 5 counts)."""
    return samples * epochs // batch_size


def bits_per_image(model: ModelConfig, height: int, width: int) -> float:
    """Bits that the codes of one image take: positions * log2(symbols), over the levels (appendix A.1)."""
    grids = model.latent_grids(height, width)
    return math.fsum(h * w * math.log2(m) for (h, w), m in zip(grids, model.num_symbols, strict=True))


def compression_ratio(model: ModelConfig, channels: int, height: int, width: int) -> float:
    """Bits of the 8-bit image over bits of its codes (appendix A.1: 170.67 for 256x256x3 and FFHQ's row)."""
    return 8 * channels * height * width / bits_per_image(model, height, width)
