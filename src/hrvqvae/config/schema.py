"""The whole description of a run: frozen dataclasses, no torch, no effect on import.

A field name is the dotted path that the command line takes (`--model.quantizer.codewords 8`), that
`config.yaml` holds, and that a preset cites its source for. Values that differ by level are tuples, coarse first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

from hrvqvae.config.data import DataConfig
from hrvqvae.config.entries import PRIORS
from hrvqvae.config.model import ModelConfig
from hrvqvae.config.prior import Levels, PriorConfig
from hrvqvae.config.progressive import ProgressiveConfig
from hrvqvae.config.training import TrainingConfig

C = TypeVar("C")

DEFAULT_SYSTEM, DEFAULT_PRIOR = "hrvqvae", "pixelsnail"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run: data, model, training, priors, the progressive decoder.

    Attributes:
        name: the preset that it began as.
        prior: by default PixelSNAIL networks.
    """

    name: str = "custom"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=1))
    prior: PriorConfig = field(default_factory=lambda: PriorConfig(network=PRIORS.get(DEFAULT_PRIOR).config()))
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)

    @property
    def prior_levels(self) -> tuple[Levels, ...]:
        """The levels that each prior covers, coarse first. Raises InputError where its network can't cover them."""
        return self.prior.network.covers(self.model.latent_grids(self.data.size, self.data.size))

    def with_root(self, root: str | None) -> Config:
        """The same with its data in another root folder; None leaves it."""
        return self if root is None else dataclasses.replace(self, data=dataclasses.replace(self.data, root=root))


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain values, for JSON and YAML."""
    return dataclasses.asdict(config)


def from_plain(kind: type[C], values: Mapping[str, Any]) -> C:
    """A dataclass from nested plain values of the right types, such as `to_dict` gives; what is missing is default."""
    hints = get_type_hints(kind)
    given = {
        name: from_plain(hints[name], value) if isinstance(value, Mapping) else value for name, value in values.items()
    }
    return kind(**given)


def updated(config: C, values: Mapping[str, Any]) -> C:
    """A dataclass with fields replaced by nested plain values of the right types."""
    given = {
        name: updated(getattr(config, name), value) if isinstance(value, Mapping) else value
        for name, value in values.items()
    }
    return dataclasses.replace(config, **given)  # type: ignore[type-var]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf of a nested mapping, in order."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested mappings; `flatten` is the inverse."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


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
