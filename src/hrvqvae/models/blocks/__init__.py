"""Blocks that know nothing of quantization."""

from hrvqvae.models.blocks.causal import Attention, CausalConv2d, GatedResidualBlock, attend, cheap_dropout
from hrvqvae.models.blocks.convolutional import Decoder, Encoder, ResidualStack
from hrvqvae.models.blocks.normalization import BatchNorm2d
from hrvqvae.models.blocks.refiner import ProgressiveDecoder, Refiner

__all__ = [
    "Attention",
    "BatchNorm2d",
    "CausalConv2d",
    "Decoder",
    "Encoder",
    "GatedResidualBlock",
    "ProgressiveDecoder",
    "Refiner",
    "ResidualStack",
    "attend",
    "cheap_dropout",
]
