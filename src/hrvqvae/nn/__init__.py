"""Blocks that know nothing of quantization."""

from hrvqvae.nn.causal import Attention, CausalConv2d, GatedResidualBlock, attend, cheap_dropout
from hrvqvae.nn.convolutional import Decoder, Encoder, ResidualStack
from hrvqvae.nn.normalization import BatchNorm2d
from hrvqvae.nn.refiner import Refiner, RefiningDecoder

__all__ = [
    "Attention",
    "BatchNorm2d",
    "CausalConv2d",
    "Decoder",
    "Encoder",
    "GatedResidualBlock",
    "Refiner",
    "RefiningDecoder",
    "ResidualStack",
    "attend",
    "cheap_dropout",
]
